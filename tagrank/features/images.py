"""Reads photographs: from files on disk to RGB images in memory."""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tagrank.data.files import reason
from tagrank.errors import InputError

if TYPE_CHECKING:
    from PIL import Image as PILImage

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
AVIF = ".avif"
"""Read if Pillow supports it: from version 11.3 on, in builds with libavif."""
OTHERS = (
    *(AVIF, ".heic", ".heif", ".hif", ".jp2", ".jxl"),
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2"),
    *(".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
"""Suffixes of pictures that cannot be read. They are counted, and the user gets to know."""


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """List the image files that paths stand for.

    A folder stands for the images below it, sorted by path. They are recognised by their suffix (:data:`SUFFIXES`, any
    case). Hidden files and folders are left out, and links to folders are not followed. Pictures in formats that cannot
    be read (:data:`OTHERS`: HEIC, raw and others) are left out too, and counted in a line on stderr. Any other path is
    returned as it is, whether the file exists or not; :func:`read_image` reports what is wrong with it.

    Raises:
        InputError: a folder has no images, or cannot be read.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        images.extend(_images_below(path) if _is_folder(path) else [path])
    return images


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the name is too long for the file system; read_image will report it
        return False


def _images_below(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: {reason(error)}") from error

    suffixes = SUFFIXES if len(_formats()) == len(FORMATS) else (*SUFFIXES, AVIF)
    found: list[Path] = []
    others: Counter[str] = Counter()
    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes and not name.startswith("."):
                found.append(Path(root, name))
            elif suffix in OTHERS and not name.startswith("."):
                others[suffix] += 1
    left = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    if not found:
        got = f"; got {left}" if left else ""
        raise InputError(f"{folder}: no images in this folder; expected files named {', '.join(suffixes)}{got}")
    if left:
        print(f"tagrank: {folder}: left out, because they cannot be read: {left}", file=sys.stderr)
    return sorted(found)


def _formats() -> tuple[str, ...]:
    from PIL import Image

    return (*FORMATS, "AVIF") if AVIF in Image.registered_extensions() else FORMATS


def read_image(path: str | Path) -> "PILImage.Image":
    """Read an image file as an upright RGB image with 8 bits per channel.

    - Of an animation, the first picture is read.
    - The orientation in the EXIF data is applied; damaged EXIF data is ignored.
    - ``PIL.Image.convert("RGB")`` drops transparency and converts CMYK, as in torchvision's data sets.
    - 16-bit grey is scaled; ``convert`` would clip it to white.
    - A JPEG file with more than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) pixels, which some telephones write, is
      read at half its width and height. This needs a quarter of the memory.

    Safe to call from several threads: it changes no setting of PIL or of the process.

    Raises:
        InputError: the file is missing, not a file, empty, truncated, damaged, not an image of :data:`FORMATS` or
            AVIF, or has more than 2 times ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (a JPEG file: more than 4 times).
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: expected an image file, got a {'folder' if path.is_dir() else 'special file'}")
        if size == 0:
            raise InputError(f"{path}: the file is empty")
        with _open(path) as image:
            _halve(image)
            image.load()
            return _rgb(_upright(image))
    except InputError:
        raise
    except UnidentifiedImageError as error:
        *most, last = _formats()
        raise InputError(f"{path}: not a {', '.join(most)} or {last} image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: too large: {error}") from error
    except MemoryError as error:
        raise InputError(f"{path}: not enough memory to read it") from error
    except OSError as error:
        raise InputError(f"{path}: {reason(error) if error.errno else f'damaged image ({error})'}") from error
    except Exception as error:
        # PIL's decoders raise many kinds of exceptions on damaged files: SyntaxError, struct.error, IndexError, ...
        raise InputError(f"{path}: damaged image ({type(error).__name__}: {error})") from error


def upright_rgb(image: "PILImage.Image") -> "PILImage.Image":
    """An image in memory as :func:`read_image` returns it. The given image must not be used any more."""
    return _rgb(_upright(image))


def _open(path: Path) -> "PILImage.Image":
    """Open an image: its size is known, its pixels are not read yet."""
    from PIL import Image
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        return Image.open(path, formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Image.open refuses the size before a JPEG can be set to be read at half of it. JpegImageFile does not check.
        try:
            return JpegImageFile(path)
        except SyntaxError:
            raise error from None


def _halve(image: "PILImage.Image") -> None:
    """Set a JPEG with more pixels than Pillow's limit to be read at half its width and height."""
    from PIL import Image
    from PIL.JpegImagePlugin import JpegImageFile

    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is None or pixels <= limit or not isinstance(image, JpegImageFile):
        return
    if pixels > 4 * limit:
        raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {4 * limit} pixels")
    image.draft(None, (max(1, image.width // 2), max(1, image.height // 2)))


def _upright(image: "PILImage.Image") -> "PILImage.Image":
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Damaged EXIF data is common in photographs whose pixels are good. PIL raises many kinds of exceptions on it.
        return image


def _rgb(image: "PILImage.Image") -> "PILImage.Image":
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif "transparency" in image.info:
        # When PIL converts from a palette directly to RGB, it warns that the transparency is lost.
        image = image.convert("RGBA")
    return image.convert("RGB")
