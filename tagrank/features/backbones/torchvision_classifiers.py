"""The classifiers of torchvision; their feature is the input of their last linear layer."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tagrank.data.files import first_line
from tagrank.errors import InputError
from tagrank.features.backbones.backbone import Backbone, Library, import_library
from tagrank.features.backbones.weights import check_finite, load_weights

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")

# torchvision builds these two networks with other arguments when it loads weights into them.
_WITH_WEIGHTS = {"transform_input": True, "aux_logits": False, "init_weights": False}
_ARGUMENTS = {"googlenet": _WITH_WEIGHTS, "inception_v3": _WITH_WEIGHTS}


class Torchvision(Library):
    form = "a classifier of torchvision"

    def knows(self, name: str) -> bool:
        try:
            return name in classifiers()
        except InputError:  # which check() raises
            return name.isidentifier()

    def check(self, name: str) -> None:
        _models(name)

    def feature_size(self, name: str) -> int:
        models = _models(name)
        with torch.device("meta"):
            return _cut_classifier(name, models.get_model(name, **_ARGUMENTS.get(name, {})))[1]

    def load(self, name: str, weights: str | Path | None) -> Backbone:
        models = _models(name)
        enum = models.get_model_weights(name)
        entry = _weights_entry(name, enum, weights)
        if isinstance(entry, Path):
            network = models.get_model(name, **_ARGUMENTS.get(name, {}))
            removed, features = _cut_classifier(name, network)
            label = load_weights(name, network, entry, removed)
            transforms = enum.DEFAULT.transforms()
        else:
            network = _download(name, entry)
            _, features = _cut_classifier(name, network)
            check_finite(network, f"{name}, weights {entry.name}")
            label, transforms = entry.name, entry.transforms()
        spec = {"backbone": name, "weights": label, "preprocessing": " ".join(repr(transforms).split())}
        return Backbone(network, transforms, features, spec)


def classifiers() -> list[str]:
    """The names of torchvision's classifiers.

    Raises:
        InputError: torchvision cannot be imported.
    """
    models = _models(Torchvision.form)
    return models.list_models(module=models)  # type: ignore[no-any-return]


def _models(name: str) -> Any:
    """``torchvision.models``, for the backbone ``name``."""
    return import_library("torchvision.models", name, "annotate")


def _weights_entry(name: str, enum: Any, weights: str | Path | None) -> Any:
    """The member of torchvision's weights enum that ``weights`` names, or the path of a local file."""
    if weights is None:
        return enum.DEFAULT
    member = str(weights).removeprefix(f"{enum.__name__}.")
    if isinstance(weights, str) and member in enum.__members__:
        return enum[member]
    path = Path(weights)
    if isinstance(weights, Path) or path.suffix in WEIGHT_SUFFIXES or path.exists():
        return path
    raise InputError(f"weights: expected a file or one of {', '.join(enum.__members__)} for {name}, got {weights!r}")


def _cut_classifier(name: str, network: nn.Module) -> tuple[str, int]:
    """Remove the last linear layer. Returns the prefix of its parameters' names, and its input size."""
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(
            f"backbone: {name} does not end in a linear layer, whose input would be the feature; choose another one"
        )
    path, last = linear[-1]
    network.set_submodule(path, nn.Identity())
    return f"{path}.", last.in_features


def _download(name: str, entry: Any) -> nn.Module:
    """A network with weights of torchvision's enum, from torch.hub's cache or the internet."""
    models = _models(name)
    try:
        # torch.hub announces a download on stdout, where only the results of a command belong.
        with contextlib.redirect_stdout(sys.stderr):
            return models.get_model(name, weights=entry)  # type: ignore[no-any-return]
    except Exception as error:
        # No network, a timeout, a wrong hash, a full disk, a damaged file in the cache.
        raise InputError(
            f"{name}: cannot get the weights {entry.name} from {entry.url} or torch.hub's cache "
            f"({first_line(error)}); download the file elsewhere and give its path as weights (--weights)"
        ) from error
