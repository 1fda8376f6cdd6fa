"""``small_cnn``, which is trained from random weights together with the ranker."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tagrank.features.backbones.backbone import Backbone, Library, pixels
from tagrank.features.backbones.weights import load_weights

if TYPE_CHECKING:
    from PIL.Image import Image


class SmallCNNLibrary(Library):
    form = "small_cnn"

    def knows(self, name: str) -> bool:
        return name == "small_cnn"

    def feature_size(self, name: str) -> int:
        return SmallCNN.feature_size

    def load(self, name: str, weights: str | Path | None) -> Backbone:
        network = SmallCNN()
        label = "none"
        if weights is not None and weights != "none":
            label = load_weights(name, network, Path(weights))
        spec = {"backbone": name, "weights": label, "preprocessing": "RGB, 64 x 64 bilinear, x / 127.5 - 1"}
        return Backbone(network, _preprocess, SmallCNN.feature_size, spec, frozen=False)


def _preprocess(image: "Image") -> Tensor:
    from PIL.Image import Resampling

    if image.size != (64, 64):
        image = image.resize((64, 64), Resampling.BILINEAR)
    return pixels(image) / 127.5 - 1.0


class SmallCNN(nn.Module):
    """A small convolutional network, trained from random weights: images ``[B, 3, 64, 64]`` to features ``[B, 256]``.

    Four stages of 3 x 3 convolutions each halve the height and width. Each channel of the last 4 x 4 grid gives two
    numbers: its mean (how much of a thing there is) and its maximum (whether the thing is there at all). Ranking needs
    both. A linear layer over the whole grid has four times the parameters and overfits.
    """

    feature_size = 256

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            _convolution(3, 24, stride=2),
            _convolution(24, 48, stride=2),
            _Residual(48),
            _convolution(48, 96, stride=2),
            _Residual(96),
            _convolution(96, 128, stride=2),
        )
        # Without the normalisation before the last ReLU, most of its units die early in training and stay dead.
        self.head = nn.Sequential(
            nn.Linear(2 * 128, self.feature_size, bias=False), nn.BatchNorm1d(self.feature_size), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, 256]`` of images ``[B, 3, 64, 64]`` in [-1, 1]."""
        # On CPUs the convolutions are faster in channels-last format. The images are converted and not the weights,
        # because safetensors cannot save channels-last weights.
        grid = self.stages(images.contiguous(memory_format=torch.channels_last))
        return self.head(torch.cat([grid.mean(dim=(2, 3)), grid.amax(dim=(2, 3))], dim=1))  # type: ignore[no-any-return]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _convolution(channels, channels)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.body(images)  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
