"""``timm:NAME``: the models of timm, without their classifier.

The preprocessing is timm's own for evaluation, from the configuration of the pretrained weights.
"""

import contextlib
import difflib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tagrank.data.files import first_line
from tagrank.errors import InputError
from tagrank.features.backbones.backbone import Backbone, Library, import_library, make_backbone
from tagrank.features.backbones.hub import hub_file, safer_names
from tagrank.features.backbones.weights import digest, reading

_PREFIX = "timm:"


class Timm(Library):
    form = "timm:NAME"

    def knows(self, name: str) -> bool:
        return name.startswith(_PREFIX)

    def check(self, name: str) -> None:
        timm = import_library("timm", name, "timm")
        model, _, tag = name.removeprefix(_PREFIX).partition(".")
        if not timm.is_model(model):
            near = difflib.get_close_matches(model, timm.list_models(), n=1)
            raise InputError(
                "backbone: expected timm:NAME with a name in timm.list_models()"
                f"{f', such as {near[0]}' if near else ''}; got {name!r:.80}"
            )
        tags = [other.partition(".")[2] for other in timm.list_pretrained(f"{model}.*")]
        if tag and tag not in tags:
            choices = f"{', '.join(tags[:8])}{', ...' if tags[8:] else ''}" or "it has none"
            raise InputError(f"backbone: expected pretrained weights of timm's {model} ({choices}), got {name!r:.80}")

    def feature_size(self, name: str) -> int:
        timm = import_library("timm", name, "timm")
        with torch.device("meta"):
            network = timm.create_model(name.removeprefix(_PREFIX), num_classes=0).eval()
            size = timm.data.resolve_model_data_config(network)["input_size"]
            return int(network(torch.empty(1, *size)).shape[1])

    def load(self, name: str, weights: str | Path | None) -> Backbone:
        timm = import_library("timm", name, "timm")
        config = timm.get_pretrained_cfg(name.removeprefix(_PREFIX))
        path = _pretrained_file(name, config) if weights is None else Path(weights)
        label = f"sha256:{digest(name, [path])}"
        with reading(path):
            state = timm.models.load_state_dict(str(path), weights_only=True)
            if not all(isinstance(value, Tensor) for value in state.values()):
                raise ValueError("it has other things than tensors")
        network = _with_state(name, config, state, path)
        data = timm.data.resolve_model_data_config(network)
        return make_backbone(name, network, timm.data.create_transform(**data, is_training=False), label, data)


def _with_state(name: str, config: Any, state: dict[str, Tensor], path: Path) -> nn.Module:
    """A network with weights, without its classifier. timm translates the names in files of other origin.

    timm passes over missing weights in silence if the network is made without its classifier. So it is made with that
    of the file, if there is one, and loses it afterwards.
    """
    timm = import_library("timm", name, "timm")
    names = config.classifier if config else None
    classifier = names if isinstance(names, str) else names[0] if names else ""
    matrix = state.get(f"{classifier}.weight")
    default = config.num_classes if config else 0
    failure: Exception | None = None
    for classes in dict.fromkeys([default, 0] if matrix is None else [len(matrix)]):
        overlay = {"state_dict": dict(state), "num_classes": classes, "label_offset": 0}
        try:
            network = timm.create_model(
                name.removeprefix(_PREFIX), pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay
            )
        except Exception as error:  # the functions that rename weights raise many kinds of exceptions
            failure = error
            continue
        if classes:
            network.reset_classifier(0)
        return network  # type: ignore[no-any-return]
    lines = [line.strip() for line in str(failure).splitlines()] or [""]
    raise InputError(f"{path}: not weights of {name}: {lines[min(1, len(lines) - 1)]:.200}") from failure


def _pretrained_file(name: str, config: Any) -> Path:
    """The file of the pretrained weights, downloaded if the cache does not have it."""
    if config is None or not (config.hf_hub_id or config.url):
        raise InputError(f"{name}: timm has no pretrained weights for it; give a file (--weights)")
    if config.hf_hub_id:
        files = safer_names(config.hf_hub_filename or "pytorch_model.bin")
        return hub_file(name, config.hf_hub_id, files, "timm")
    hub = import_library("timm.models._hub", name, "timm")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return Path(hub.download_cached_file(config.url, progress=True))
    except Exception as error:
        raise InputError(
            f"{name}: cannot get {config.url} ({first_line(error)}); download the file elsewhere and give its path as "
            "weights (--weights)"
        ) from error
