"""What a backbone is, and what a library of backbones has to tell of them."""

import contextlib
import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tagrank.data.files import first_line
from tagrank.errors import InputError
from tagrank.features.backbones.weights import check_finite

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_ASPECT = 32
"""The longer side over the shorter side, beyond which an image is cropped."""


class Backbone(nn.Module):
    """A network that computes one vector from an image, and the network's preprocessing.

    Made by :func:`tagrank.features.backbones.load_backbone`. A pretrained backbone is frozen: its parameters need no
    gradient, and it stays in evaluation mode even after :meth:`train`. ``backbone.requires_grad_(True)`` thaws it.

    Attributes:
        name: the name that it was loaded by.
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
        self._compiled: Callable[[Tensor], Tensor] | None = None
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
        if self._compiled is None or len(images) == 1:
            return self._run(images)
        # One compilation serves batches of all sizes, but for one image, for which PyTorch would make another.
        torch._dynamo.maybe_mark_dynamic(images, 0)
        return self._compiled(images)

    def compile_network(self) -> None:
        """From now on, compute batches of two images or more by what ``torch.compile`` makes of the network.

        It is made when the first of them is computed, which takes a while. Features are the same up to rounding.

        Raises:
            InputError: ``torch.compile`` does not work here: on CPUs it needs a C++ compiler.
        """
        import torch._dynamo

        device = next(self.parameters()).device
        try:
            torch.compile(torch.nn.functional.silu)(torch.ones(2, device=device))
        except Exception as error:  # whatever a compiler may say
            raise InputError(f"torch.compile does not work here: {first_line(error)}") from error
        self._compiled = torch.compile(self._run)

    def _run(self, images: Tensor) -> Tensor:
        return self.network(images)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> "Backbone":
        """Like :meth:`torch.nn.Module.train`, but a frozen backbone stays in evaluation mode."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))


class Library(ABC):
    """A library that backbones come from.

    Attributes:
        form: how its backbones are named, for messages: ``"timm:NAME"``.
    """

    form: str

    @abstractmethod
    def knows(self, name: str) -> bool:
        """Whether a name is one of this library's, by its form; the library need not be installed."""

    def check(self, name: str) -> None:  # noqa: B027 -- most have nothing to check
        """Raise an InputError if the library is not installed, or surely has no such network."""

    @abstractmethod
    def feature_size(self, name: str) -> int | None:
        """The length of the features, found without the weights; None if that is not possible."""

    @abstractmethod
    def load(self, name: str, weights: str | Path | None) -> Backbone:
        """Make the network, with the weights as :func:`tagrank.features.backbones.load_backbone` describes them."""


def make_backbone(
    name: str, network: nn.Module, preprocess: Callable[["Image"], Tensor], weights: str, preprocessing: object
) -> Backbone:
    """A frozen backbone from a network whose feature size is not known before it has computed a feature.

    Args:
        name: of the backbone.
        network: computes ``[B, D]`` from ``[B, 3, h, w]``.
        preprocess: makes float32 ``[3, h, w]`` of an RGB image; ``h`` and ``w`` are the same for all images.
        weights: identifies the weights.
        preprocessing: identifies the preprocessing, by its ``repr``.

    Raises:
        InputError: the weights have NaN or infinite elements, or preprocessing or network give other shapes than these.
    """
    from PIL import Image

    check_finite(network, f"{name}, weights {weights}")
    wide, high = (preprocess(Image.new("RGB", size)) for size in ((96, 64), (64, 96)))
    if wide.dim() != 3 or len(wide) != 3 or wide.shape != high.shape:
        raise InputError(
            f"{name}: expected preprocessing to pixels [3, h, w] of one size for all images, got "
            f"{list(wide.shape)} of a wide one and {list(high.shape)} of a high one; choose another backbone"
        )
    try:
        with torch.inference_mode():
            feature = network.eval()(wide.unsqueeze(0))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{name}: the network does not take what its preprocessing gives: {first_line(error)}"
        ) from error
    if feature.dim() != 2 or len(feature) != 1:
        raise InputError(
            f"{name}: expected one vector for each image, got shape {list(feature.shape)}; choose another backbone"
        )
    spec = {"backbone": name, "weights": weights, "preprocessing": " ".join(repr(preprocessing).split())}
    return Backbone(network, preprocess, feature.shape[1], spec)


def pixels(image: "Image") -> Tensor:
    """The pixels of an RGB image: float32 ``[3, h, w]``, 0 to 255."""
    import numpy as np

    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32))


def import_library(module: str, name: str, extra: str) -> Any:
    """Import a module of an optional package.

    Raises:
        InputError: it is not installed, or not in a build that fits torch's. The message names the backbone that needs
            it, and what to install.
    """
    try:
        with without_our_kernels():
            return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{name} needs packages that are not installed ({first_line(error)}): pip install 'tagrank[{extra}]'"
        ) from error
    # What torchvision, which other libraries import, raises if its operators cannot be loaded.
    except RuntimeError as error:
        raise InputError(
            f"{name}: {module} cannot be imported beside torch {torch.__version__} ({first_line(error)}): install "
            "torch and torchvision from one index, for the same version of CUDA or for CPUs"
        ) from error


@contextlib.contextmanager
def without_our_kernels() -> Iterator[None]:
    """Hide the folder ``kernels/`` of this repository, which cannot be imported under that name.

    transformers imports a package ``kernels`` if it finds one, and finds our folder if Python runs in a clone.
    """
    if "kernels" in sys.modules or importlib.util.find_spec("kernels") is None:
        yield
        return
    try:
        importlib.import_module("kernels")
    except ImportError:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if sys.modules.get("kernels", ...) is None:
            del sys.modules["kernels"]
