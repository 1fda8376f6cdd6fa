"""What happens to a photograph before a backbone reads it, as data that any program can follow."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from tagrank.data.schema import Positive, Rule
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone

if TYPE_CHECKING:
    from PIL.Image import Image

Three = Annotated[tuple[float, ...], Rule("three numbers", lambda numbers: len(numbers) == 3)]
Sides = Annotated[tuple[Positive, ...], Rule("one or two numbers", lambda numbers: len(numbers) in (1, 2))]


@dataclass(frozen=True)
class Preprocessing:
    """From an upright RGB image with values 0 to 255 to float32 ``[3, height, width]``, in the order of the fields.

    Attributes:
        longest: an image with a longer side of more than this many times its shorter side is first cropped to that,
            around its centre.
        resize: the new shorter side, or the new height and width.
        resample: the filter of the resizing, which widens when the image shrinks (antialiasing), as Pillow's do.
        rounding: of the longer side after resizing, and of the place of the crop. ``"down"``: the longer side is
            rounded down, the place to the nearest number (a half to the even one), as in torchvision. ``"nearest"``:
            the longer side is rounded to the nearest number, the place down.
        crop: the side of the square that is cut from the centre; ``None`` for none.
        subtract: is subtracted from red, green and blue.
        divide: they are then divided by this.
    """

    longest: Positive
    resize: Sides
    resample: Literal["bilinear", "bicubic"]
    rounding: Literal["down", "nearest"]
    crop: Positive | None
    subtract: Three
    divide: Three

    def __call__(self, image: "Image") -> Tensor:
        """The tensor of an RGB image. The image is already cropped to ``longest``, which :class:`Backbone` does."""
        from PIL.Image import Resampling

        (width, height), (left, top) = self.geometry(*image.size)
        if image.size != (width, height):
            image = image.resize((width, height), getattr(Resampling, self.resample.upper()))
        if self.crop is not None:
            image = image.crop((left, top, left + self.crop, top + self.crop))
        pixels = np.asarray(image).astype(np.float32)
        scaled = (pixels - np.array(self.subtract, np.float32)) / np.array(self.divide, np.float32)
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))

    def geometry(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Width and height after resizing, and left and top of the crop; these are 0 without one."""
        if len(self.resize) == 2:
            height, width = self.resize
        else:
            short = min(width, height)
            width, height = (self._side(side, short) for side in (width, height))
        place = (0, 0) if self.crop is None else (self._place(width - self.crop), self._place(height - self.crop))
        return (width, height), place

    def _side(self, side: int, short: int) -> int:
        if side == short:
            return self.resize[0]
        return self.resize[0] * side // short if self.rounding == "down" else round(side * (self.resize[0] / short))

    def _place(self, free: int) -> int:
        return round(free / 2) if self.rounding == "down" else free // 2


_NUMBER = r"(\d+(?:\.\d+)?)"
_SQUARE = re.compile(rf"RGB, (\d+) x (\d+) (bilinear|bicubic), x / {_NUMBER} - {_NUMBER}")
_CENTRE = re.compile(rf"RGB, shorter side (\d+) (bilinear|bicubic), centre (\d+), \(x - {_NUMBER}\) / {_NUMBER}")
_TORCHVISION = re.compile(
    r"ImageClassification\( crop_size=\[(\d+)\] resize_size=\[(\d+)\] mean=\[([^]]*)\] std=\[([^]]*)\] "
    r"interpolation=InterpolationMode\.(BILINEAR|BICUBIC) \)"
)


def preprocessing_of(backbone: Backbone, longest: int) -> Preprocessing:
    """The preprocessing of a backbone, read from its ``spec`` and compared with what the backbone does.

    Args:
        backbone: the backbone.
        longest: as in :class:`Preprocessing`.

    Raises:
        InputError: it is of another kind than :class:`Preprocessing` can say.
    """
    text = backbone.spec["preprocessing"]
    found = _parse(text, longest)
    if found is None or not _agrees(found, backbone.transform):
        raise InputError(
            f"{backbone.name}: its preprocessing ({text}) cannot be written into a file; export the ranker alone, for "
            "features (--input features)"
        )
    return found


def _parse(text: str, longest: int) -> Preprocessing | None:
    if match := _SQUARE.fullmatch(text):
        width, height, resample, divide, subtract = match.groups()
        scale = float(divide)
        sides = int(height), int(width)
        return Preprocessing(
            longest, sides, _filter(resample), "down", None, (float(subtract) * scale,) * 3, (scale,) * 3
        )
    if match := _CENTRE.fullmatch(text):
        side, resample, crop, subtract, divide = match.groups()
        both = (float(subtract),) * 3, (float(divide),) * 3
        return Preprocessing(longest, (int(side),), _filter(resample), "nearest", int(crop), *both)
    if match := _TORCHVISION.fullmatch(text):
        crop, side, mean, deviation, resample = match.groups()
        minus, by = _of_255(mean), _of_255(deviation)
        return Preprocessing(longest, (int(side),), _filter(resample.lower()), "down", int(crop), minus, by)
    return None


def _filter(name: str) -> Literal["bilinear", "bicubic"]:
    return "bicubic" if name == "bicubic" else "bilinear"


def _of_255(numbers: str) -> tuple[float, ...]:
    return tuple(255 * float(number) for number in numbers.split(","))


def _agrees(found: Preprocessing, transform: "Callable[[Image], Tensor]") -> bool:
    """Whether both make the same of noise of several sizes, with sides that do not divide evenly."""
    from PIL import Image

    random = np.random.default_rng(0)
    for width, height in ((301, 200), (199, 334), (224, 224), (64, 64), (33, 700), (500, 375)):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours, theirs = found(image), transform(image)
        # Some networks read values of up to 255, in which a rounding is as many times as large.
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > 1e-6 * max(1.0, float(theirs.abs().max())):
            return False
    return True
