"""Photographs as small pictures inside a page."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tagrank.features.image_sources import use_source


class Thumbnail(NamedTuple):
    """A JPEG image without metadata, as a data URI, with its size in pixels; ``tiny`` if it is shown enlarged."""

    uri: str
    width: int
    height: int
    tiny: bool


def thumbnail(image: Image.Image | Path, side: int, most_bytes: int) -> Thumbnail:
    """A small picture of an upright image.

    Args:
        image: the image or its file.
        side: the length of its longer side in pixels, if the image is not smaller.
        most_bytes: a picture with more bytes is compressed again with a lower quality.

    Raises:
        InputError: the image cannot be read.
    """
    small = use_source(image, lambda upright: upright, at_least=side)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    small.info.clear()
    # A small drawing is shown enlarged, which would make the artefacts of an ordinary JPEG visible.
    tiny = max(small.size) <= side // 2
    jpeg = b""
    for quality in (95,) if tiny else (80, 65, 50, 35):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, subsampling=0 if tiny else 2, optimize=True)
        jpeg = buffer.getvalue()
        if len(jpeg) <= most_bytes:
            break
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
    return Thumbnail(uri, small.width, small.height, tiny)
