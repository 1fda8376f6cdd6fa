"""Reads photographs: from files on disk to RGB images in memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ctypes import CDLL
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from tagrank.data.files import reason
from tagrank.errors import InputError
from tagrank.features.camera_files import is_heic, is_raw, open_heic, open_raw

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image as PILImage

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
PIXELS_AT_ONCE = 100_000_000
"""How many pixels all threads of a process decode at once. A single image may have more."""


def formats() -> tuple[str, ...]:
    """The formats that can be read: :data:`FORMATS`, and AVIF from Pillow 11.3 on in builds with libavif."""
    from PIL import Image

    return (*FORMATS, "AVIF") if ".avif" in Image.registered_extensions() else FORMATS


def read_image(path: str | Path) -> "PILImage.Image":
    """Read an image file as an upright RGB image with 8 bits per channel.

    - Of an animation, the first picture is read.
    - The orientation in the EXIF data is applied. Other EXIF data is not read.
    - Transparency is dropped and CMYK converted as ``PIL.Image.convert("RGB")`` does, as in torchvision's data sets.
    - Grey of more than 8 bits is scaled (:func:`_grey`).
    - A JPEG file that lacks only its end marker is whole.
    - HEIC images need the package pillow-heif, raw files of cameras rawpy. Of a raw file the JPEG image in it is read,
      if that is large enough (:func:`tagrank.features.camera_files.open_raw`).
    - A JPEG file with more than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) pixels, which some telephones write, is
      read at half its width and height. This needs a quarter of the memory.

    Safe to call from several threads: it changes no setting of PIL or of the process.

    Raises:
        InputError: the file is missing, not a file, empty, truncated, damaged, not an image of :data:`FORMATS` or
            AVIF, a HEIC or raw file that no installed package reads, has grey values that are no shades of grey, or has
            more than 2 times ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (a JPEG file: more than 4 times).
    """
    return use_image(path, lambda image: image)


def use_image(path: str | Path, function: "Callable[[PILImage.Image], T]", at_least: int | None = None) -> T:
    """The result of a function of :func:`read_image`'s image.

    While threads decode images and use them, they share :data:`PIXELS_AT_ONCE`; a larger image waits until it is alone.

    Args:
        path: the image file.
        function: of the image.
        at_least: if the function needs no more than this many pixels of the shorter side, a larger JPEG file is read at
            1/2, 1/4 or 1/8 of its width and height, which takes a fraction of the time: its shorter side then has at
            least so many pixels.

    Raises:
        InputError: as :func:`read_image`.
    """
    path = Path(path)
    with ExitStack() as share:
        try:
            return _use(path, function, share, at_least)
        except InputError as error:
            # The error alone: its traceback would keep the image as long as somebody keeps the error.
            failed = InputError(str(error))
        raise failed


def _use(path: Path, function: "Callable[[PILImage.Image], T]", share: ExitStack, at_least: int | None) -> T:
    """The result of a function of an image. The image's share of pixels is kept until the image is gone."""
    with ExitStack() as stack:
        with _faults(path):
            image = stack.enter_context(_open(path, at_least))
            _reduce(image, at_least)
            pixels = image.width * image.height
            share.enter_context(_SHARED.take(pixels))
            if pixels > PIXELS_AT_ONCE // 4:
                share.callback(_trim)
            upright = _rgb(_upright(_loaded(image, path, at_least)))
        return function(upright)


def _trim() -> None:
    """Give the memory of a large image back to the system: glibc would keep it for the thread that had it."""
    with suppress(AttributeError):  # another C library
        CDLL(None).malloc_trim(0)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Whatever is wrong with an image file becomes an InputError with the file's name."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        *most, last = formats()
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


class _Pixels:
    """Lets several threads have pixels at once, up to a limit."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._taken = 0

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until the pixels of all threads are within the limit, or no other thread has any."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= PIXELS_AT_ONCE)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_SHARED = _Pixels()


def _open(path: Path, at_least: int | None) -> "PILImage.Image":
    """Open an image: its size is known, its pixels are not read yet."""
    from PIL import Image, UnidentifiedImageError
    from PIL.JpegImagePlugin import JpegImageFile

    size = path.stat().st_size
    if not path.is_file():
        raise InputError(f"expected an image file, got a {'folder' if path.is_dir() else 'special file'}")
    if size == 0:
        raise InputError("the file is empty")
    if is_raw(path):
        return open_raw(path, at_least)
    try:
        return Image.open(path, formats=formats())
    except UnidentifiedImageError:
        if not is_heic(path):
            raise
        return open_heic(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Image.open refuses the size before a JPEG can be set to be read at half of it. JpegImageFile does not check.
        try:
            return JpegImageFile(path)
        except SyntaxError:
            raise error from None


def _reduce(image: "PILImage.Image", at_least: int | None) -> None:
    """Set a JPEG to be read at a fraction of its width and height.

    That is if its shorter side has at least twice ``at_least`` pixels, or the image more than Pillow's limit.
    """
    from PIL import Image
    from PIL.JpegImagePlugin import JpegImageFile

    if not isinstance(image, JpegImageFile):
        return
    fraction = 1 if at_least is None else min(image.size) // at_least
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        if pixels > 4 * limit:
            raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {4 * limit} pixels")
        fraction = max(fraction, 2)
    if fraction > 1:
        image.draft(None, (max(1, image.width // fraction), max(1, image.height // fraction)))


def _loaded(image: "PILImage.Image", path: Path, at_least: int | None) -> "PILImage.Image":
    """An image with its pixels as they are in the file."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.TiffImagePlugin import TiffImageFile

    if isinstance(image, TiffImageFile):
        # When the pixels are there, Pillow would read all EXIF data, and turn the image. An odd tag would end that.
        # A function that had the image would keep it until the garbage is collected: hundreds of megabytes.
        image.load_end = partial(_end_tiff, ref(image))  # type: ignore[method-assign]
    try:
        image.load()
    except OSError:
        # The image in a raw file has no name: the file is not it.
        ended = _ended(path, at_least) if isinstance(image, JpegImageFile) and image.filename else None
        if ended is None:
            raise
        return ended
    return image


def _end_tiff(image: "ref[PILImage.Image]") -> None:
    if tiff := image():
        tiff._size = tiff.im.size


def _ended(path: Path, at_least: int | None) -> "PILImage.Image | None":
    """The image of a JPEG file that lacks only its end marker; None if more is missing.

    The decoder makes up what is missing before an end marker. But no pixel of a whole image depends on what is put
    between the file's last byte and the marker. Of a progressive image, all scans must be there.
    """
    from PIL.JpegImagePlugin import JpegImageFile

    data = path.read_bytes().rstrip(b"\xff")  # half a marker
    images: list[PILImage.Image] = []
    for between in (b"", b"\x5a" * 64, b"\xa5" * 64):
        image = JpegImageFile(BytesIO(data + between + b"\xff\xd9"))
        _reduce(image, at_least)
        try:
            image.load()
            whole = _all_scans(data) and (not images or image.tobytes() == images[0].tobytes())
        except (OSError, ValueError, IndexError):
            whole = False
        if not whole:
            return None
        images = images or [image]
    return images[0]


def _all_scans(data: bytes) -> bool:
    """Whether a JPEG file, if it is progressive, has the last bit of each coefficient of each component."""
    missing: set[tuple[int, int]] = set()
    at = 2
    while (at := data.find(b"\xff", at)) >= 0:
        marker = data[at + 1 : at + 2]
        if marker == b"\xc2":  # the header of a progressive image
            missing = {(data[at + 10 + 3 * i], k) for i in range(data[at + 9]) for k in range(64)}
        if marker == b"\xda":  # the header of a scan: components, coefficients, and which of their bits
            end = at + 5 + 2 * data[at + 4]
            components, (first, last, bits) = data[at + 5 : end : 2], data[end : end + 3]
            if bits & 15 == 0:
                missing -= {(component, k) for component in components for k in range(first, last + 1)}
        alone = marker in (b"", b"\0", b"\xff") or b"\xd0" <= marker <= b"\xd9"
        at += 1 if marker == b"\xff" else 2 if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return not missing


def _upright(image: "PILImage.Image") -> "PILImage.Image":
    from PIL import ExifTags, Image
    from PIL.TiffImagePlugin import TiffImageFile

    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }
    try:
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else image.getexif()
        orientation = tags.get(ExifTags.Base.Orientation)
    except Exception:
        # EXIF data so damaged that no orientation is in it. The pixels are good. PIL raises many kinds of exceptions.
        return image
    if isinstance(orientation, bytes):
        orientation = int.from_bytes(orientation, "little")
    if orientation not in turn:
        return image
    upright = image.transpose(turn[orientation])
    upright.info = {}  # it has the orientation, and would be turned again by who reads it there
    return upright


def _rgb(image: "PILImage.Image") -> "PILImage.Image":
    if image.mode[0] in "IF":
        image = _grey(image)
    # When PIL converts transparency to RGB, it warns that it is lost.
    image.info.pop("transparency", None)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: "PILImage.Image") -> "PILImage.Image":
    """8-bit grey from grey with more bits.

    Integers of up to 16 bits are divided by the largest number of so many bits. Numbers of 32 bits have no usual range:
    white is the smallest of 1 (only for floating point), 255, 65,535 and (only for integers) the largest integer, that
    no pixel is above. An image so dark that this is wrong would be black otherwise.

    Raises:
        InputError: a number is negative, NaN, or above all of these.
    """
    import numpy as np
    from PIL import Image

    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    bits, signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
    integers = image.mode != "F"
    largest = 2 ** (bits - signed) - 1
    whites = (1, 255, 65535) if not integers else (255, 65535, largest) if bits > 16 else (largest,)

    def strips() -> "Iterator[tuple[slice, NDArray[Any]]]":
        for top in range(0, image.height, 256):
            rows = slice(top, min(top + 256, image.height))
            strip = np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
            yield rows, strip.view(np.uint32) if image.mode == "I" and not signed else strip

    low, high = np.inf, -np.inf
    for _, strip in strips():
        low, high = np.minimum(low, strip.min()), np.maximum(high, strip.max())
    if not 0 <= low <= high <= whites[-1]:  # NaN too
        raise InputError(f"expected grey values from 0 to {', '.join(map(str, whites))}, got {low:g} to {high:g}")
    white = next(white for white in whites if high <= white)
    grey = np.empty((image.height, image.width), np.uint8)
    for rows, strip in strips():
        grey[rows] = strip.astype(np.uint64) * 255 // white if integers else np.rint(strip.astype(float) * 255 / white)
    if tags.get(262) == 0:  # white is zero
        np.subtract(255, grey, out=grey)
    return Image.fromarray(grey)
