"""Photographs to time on: a folder's, or drawn ones of the sizes that cameras make."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from tagrank.cores import cores
from tagrank.features.folders import find_images

SIZES = {"small": (500, 375), "2 MP": (1632, 1224), "12 MP": (4000, 3000), "48 MP": (8064, 6048)}
"""Widths and heights: a picture on a web page, a photograph sent by a messenger, and two of telephones."""
DIFFERENT = {"small": 64, "2 MP": 24, "12 MP": 8, "48 MP": 2}
"""How many photographs of a size are drawn. Where more are asked for, they come again and again."""


def draw_photograph(seed: int, width: int, height: int) -> Image.Image:
    """Noise with a photograph's spectrum, whose amplitude falls with the frequency: a JPEG file is as large as its."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128, np.float32)
    side, strength = 4, 40.0
    while side < max(width, height):
        octave = rng.integers(0, 256, (max(2, side * height // width), side, 3), np.uint8)
        total += (np.asarray(Image.fromarray(octave).resize((width, height), Image.Resampling.BICUBIC)) - 128.0) * (
            strength / 74
        )
        side, strength = 2 * side, strength * 0.6
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def draw_photographs(folder: Path, size: str) -> list[Path]:
    """Draw the photographs of a size as JPEG files of quality 90, several at a time."""
    paths = [folder / f"{size.replace(' ', '-')}-{i:02d}.jpg" for i in range(DIFFERENT[size])]

    def draw(i: int) -> None:
        draw_photograph(i, *SIZES[size]).save(paths[i], quality=90)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(draw, range(len(paths))))
    return paths


def spread(found: Sequence[Path], count: int) -> list[Path]:
    """``count`` photographs evenly spaced over these, again and again if there are fewer."""
    if count > len(found):
        return [found[i % len(found)] for i in range(count)]
    return [found[i * len(found) // count] for i in range(count)]


def photographs(images: Path | None, scratch: Path, size: str, count: int) -> list[Path]:
    """``count`` photographs of a folder, or drawn ones of a size."""
    return spread(draw_photographs(scratch, size) if images is None else find_images([images]), count)
