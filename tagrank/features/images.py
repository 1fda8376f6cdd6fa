"""Photographs on disk to RGB images in memory."""

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
"""Read where Pillow has it: from 11.3 on, in builds with libavif."""
OTHERS = (
    *(AVIF, ".heic", ".heif", ".hif", ".jp2", ".jxl"),
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2"),
    *(".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
"""Suffixes of pictures that are not read, so that it can be said of them."""


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The images that some paths stand for.

    A folder stands for the images below it, known by their suffix (:data:`SUFFIXES`, any case), sorted by path; hidden
    files and folders are left out, links to folders not followed. Pictures of kinds that are not read (:data:`OTHERS`:
    HEIC, raw and the like) are counted in a line on stderr. Anything else stands for itself, whether it is there
    or not: :func:`read_image` is to say what is wrong with it.

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
    except OSError:  # a name too long for the file system, which read_image will report
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
        print(f"tagrank: {folder}: left out, as they cannot be read: {left}", file=sys.stderr)
    return sorted(found)


def _formats() -> tuple[str, ...]:
    from PIL import Image

    return (*FORMATS, "AVIF") if AVIF in Image.registered_extensions() else FORMATS


def read_image(path: str | Path) -> "PILImage.Image":
    """Read an image file as RGB, 8 bits, upright.

    Of an animation this is the first picture. The orientation in the EXIF data is applied; damaged EXIF data is
    ignored. Transparency is dropped and CMYK converted as ``PIL.Image.convert("RGB")`` does it, which is what
    torchvision's data sets do; 16-bit grey, which ``convert`` would clip to white, is scaled. A JPEG file of more than
    ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million), as telephones write them, is read at half its width and height, which
    needs a quarter of the memory.

    Safe to call from several threads: no setting of PIL or of the process is touched.

    Raises:
        InputError: the file is missing, not a file, empty, truncated, damaged, not an image of :data:`FORMATS` or
            AVIF, or has more than twice ``PIL.Image.MAX_IMAGE_PIXELS``, a JPEG file more than four times.
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
        # PIL's decoders raise almost anything on damaged files: SyntaxError, struct.error, IndexError, ValueError, ...
        raise InputError(f"{path}: damaged image ({type(error).__name__}: {error})") from error


def _open(path: Path) -> "PILImage.Image":
    """The image with its size; its pixels are not read yet."""
    from PIL import Image
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        return Image.open(path, formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow judges the size before one can ask for less of a JPEG.
        try:
            return JpegImageFile(path)
        except SyntaxError:
            raise error from None


def _halve(image: "PILImage.Image") -> None:
    """Have a JPEG of more pixels than Pillow's limit read at half its width and height; any other stays as it is."""
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
        # The pixels are good, and damaged EXIF data is common in photographs; PIL raises almost anything on it.
        return image


def _rgb(image: "PILImage.Image") -> "PILImage.Image":
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    elif "transparency" in image.info:
        # Straight from a palette to RGB, PIL warns that the transparency is lost.
        image = image.convert("RGBA")
    return image.convert("RGB")
