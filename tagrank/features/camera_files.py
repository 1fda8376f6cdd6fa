"""Photographs as telephones and cameras keep them: HEIC files and raw files, read by packages that are extras.

HEIC is recognised by its content, raw files by their suffix: by their content, most of them are TIFF files, of which
Pillow would read a thumbnail.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from tagrank.errors import InputError

if TYPE_CHECKING:
    import rawpy
    from PIL import Image as PILImage

HEIC = (".heic", ".heif", ".hif")
RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2"),
    *(".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
_PACKAGES = {"heic": ("pillow_heif", HEIC), "raw": ("rawpy", RAW)}
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

#: What has to be done with a picture that is turned as LibRaw says, as EXIF says it.
_ORIENTATIONS = {3: 3, 5: 8, 6: 6}


def readable_suffixes() -> tuple[str, ...]:
    """The suffixes of camera files that can be read here."""
    there = [suffixes for package, suffixes in _PACKAGES.values() if find_spec(package) is not None]
    return tuple(suffix for suffixes in there for suffix in suffixes)


def extras_for(suffixes: Iterable[str]) -> str:
    """What to install to read files with these suffixes, in brackets; nothing if nothing helps."""
    wanted = [
        extra
        for extra, (package, own) in _PACKAGES.items()
        if not set(own).isdisjoint(suffixes) and find_spec(package) is None
    ]
    return f" (pip install 'tagrank[{','.join(wanted)}]')" if wanted else ""


def is_raw(path: Path) -> bool:
    """Whether a file is a raw file, by its suffix."""
    return path.suffix.lower() in RAW


def is_heic(path: Path) -> bool:
    """Whether a file is a HEIC image, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:] in _BRANDS


def open_heic(path: Path) -> "PILImage.Image":
    """Open a HEIC image. It is upright already, because its pixels are turned as the file says when they are read.

    Raises:
        InputError: ``pillow-heif`` is not installed.
        DecompressionBombError: the image has more than 2 times ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
    """
    from PIL import Image

    if find_spec("pillow_heif") is None:
        raise InputError("a HEIC image, which is read by the package pillow-heif: pip install 'tagrank[heic]'")
    from pillow_heif import HeifImageFile

    image: PILImage.Image = HeifImageFile(path)  # type: ignore[no-untyped-call]
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > 2 * limit:
        raise Image.DecompressionBombError(
            f"Image size ({image.width * image.height} pixels) exceeds limit of {2 * limit} pixels"
        )
    return image


def open_raw(path: Path, at_least: int | None) -> "PILImage.Image":
    """Open a raw file: the JPEG image in it if that is large enough, else its pixels at half their width and height.

    Args:
        path: the raw file.
        at_least: how many pixels the shorter side needs; None for as many as half of the raw image has.

    Raises:
        InputError: ``rawpy`` is not installed, or LibRaw does not read the file.
    """
    if find_spec("rawpy") is None:
        raise InputError("a raw file, which is read by the package rawpy: pip install 'tagrank[raw]'")
    import rawpy

    from tagrank.features.raw_image import RawImage

    try:
        raw = rawpy.imread(str(path))
    except rawpy.LibRawError as error:
        raise InputError(f"not a raw file that LibRaw reads ({_words(error)})") from error
    needed = min(raw.sizes.width, raw.sizes.height) // 2 if at_least is None else at_least
    preview = _preview(raw)
    if preview is not None and min(preview.size) >= needed:
        raw.close()
        return preview
    return RawImage(raw)


def _preview(raw: "rawpy.RawPy") -> "PILImage.Image | None":
    """The largest JPEG image in a raw file, if it can be opened."""
    import rawpy
    from PIL import ExifTags
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        thumb = raw.extract_thumb()
        if thumb.format != rawpy.ThumbFormat.JPEG or not isinstance(thumb.data, bytes):
            return None
        image = JpegImageFile(BytesIO(thumb.data))
    except (rawpy.LibRawError, SyntaxError, OSError):
        return None
    # LibRaw gives an image without EXIF data the orientation of the raw file, but not one whose EXIF data lacks it.
    if (turned := _ORIENTATIONS.get(raw.sizes.flip)) is not None:
        image.getexif().setdefault(ExifTags.Base.Orientation, turned)
    return image


def _words(error: Exception) -> str:
    """LibRaw's message, which it gives as bytes."""
    (message,) = error.args or (type(error).__name__,)
    return message.decode(errors="replace") if isinstance(message, bytes) else str(message)
