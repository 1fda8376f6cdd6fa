"""From the name of a backbone to its library. To add a library, add it to :data:`LIBRARIES`."""

import contextlib
import difflib
from pathlib import Path

from tagrank.errors import InputError
from tagrank.features.backbones.backbone import Backbone, Library
from tagrank.features.backbones.efficientnet_lite import EfficientNetLite
from tagrank.features.backbones.open_clip_towers import OpenCLIP
from tagrank.features.backbones.small_cnn import SmallCNNLibrary
from tagrank.features.backbones.timm_models import Timm
from tagrank.features.backbones.torchvision_classifiers import Torchvision, classifiers
from tagrank.features.backbones.transformers_vision import Transformers

LIBRARIES: tuple[Library, ...] = (
    Timm(),
    OpenCLIP(),
    Transformers(),
    EfficientNetLite(),
    SmallCNNLibrary(),
    Torchvision(),
)
"""All libraries. The first that knows a name has it; torchvision, which is slow to import, is asked last."""


def load_backbone(name: str, weights: str | Path | None = None) -> Backbone:
    """Make a backbone and load its weights.

    Args:
        name: one of

            - ``"vgg16"``, whose feature is fc7 after its ReLU, 4096-d; any other classifier of torchvision, whose
              feature is the input of its last linear layer.
            - ``"timm:NAME"``: a model of timm, with the pooled features that it computes without its classifier.
            - ``"open_clip:NAME/PRETRAINED"``: the image tower of a model of open_clip, with its embedding.
            - ``"hf:ORG/NAME"`` or ``"hf:FOLDER"``: a vision model for transformers, on the Hugging Face Hub or in a
              folder, with the image's embedding if it has a text tower, too, and its pooled output otherwise.
            - ``"efficientnet_lite0"``, ``"efficientnet_lite1"``, ``"efficientnet_lite2"``, or ``"small_cnn"``.
        weights: one of

            - None: the pretrained weights, which are downloaded when they are first needed; EfficientNet-Lite takes
              those of its package, and ``"small_cnn"`` random ones.
            - A path: a state dict in a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file. The last layer of a
              classifier is ignored and may be missing. The preprocessing is that of the pretrained weights. For
              ``"hf:ORG/NAME"`` it is a folder with what the Hub has of the model.
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
    library = _library(name)
    library.check(name)
    return library.load(name, weights)


def is_known(name: str) -> bool:
    """Whether a name is of a library that :func:`load_backbone` knows, installed or not."""
    return any(library.knows(name) for library in LIBRARIES)


def check_backbone(name: str, dimension: int | None = None) -> None:
    """Check a name without loading weights.

    Args:
        name: as for :func:`load_backbone`.
        dimension: the length of features that this backbone is said to have computed.

    Raises:
        InputError: there is no such backbone, its library is not installed, or its features have another length.
    """
    library = _library(name)
    library.check(name)
    if dimension is not None and (size := library.feature_size(name)) not in (None, dimension):
        raise InputError(f"features: expected {size} per image, as {name} computes them (--backbone), got {dimension}")


def _library(name: str) -> Library:
    for library in LIBRARIES:
        if library.knows(name):
            return library
    names = [*EfficientNetLite.names, "small_cnn"]
    with contextlib.suppress(InputError):  # torchvision cannot be imported
        names += classifiers()
    near = difflib.get_close_matches(name, names)
    forms = ", ".join(library.form for library in LIBRARIES[:-1])
    raise InputError(
        f"backbone: expected {forms} or {LIBRARIES[-1].form}{f' (such as {near[0]})' if near else ''}, got {name!r:.60}"
    )
