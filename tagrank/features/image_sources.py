"""An image as a caller has it: a path, a file in an archive, the bytes of a file, a PIL image or an array of pixels."""

from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

from tagrank.errors import InputError
from tagrank.features.images import upright_rgb, use_image
from tagrank.features.web_dataset import ShardImage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

ImageSource: TypeAlias = Union[str, Path, ShardImage, bytes, "Image", "NDArray[Any]"]
"""A path; a file in a tar archive; the content of a file; a PIL image; or pixels, uint8 ``[h, w]``, ``[h, w, 3]`` or
``[h, w, 4]``."""

T = TypeVar("T")


def is_image(value: object) -> bool:
    """Whether a value is one image (:data:`ImageSource`), and not several."""
    from PIL.Image import Image

    return isinstance(value, (str, Path, ShardImage, bytes, bytearray, memoryview, Image)) or hasattr(
        value, "__array__"
    )


def use_source(source: ImageSource, function: "Callable[[Image], T]", at_least: int | None = None) -> T:
    """The result of a function of an image, which it gets upright and in RGB with 8 bits per channel.

    Args:
        source: the image. A PIL image is left as it is.
        function: of the image as :func:`tagrank.features.images.read_image` returns it.
        at_least: as for :func:`tagrank.features.images.use_image`.

    Raises:
        InputError: the image cannot be read, or is of none of these types.
    """
    from PIL import Image

    if isinstance(source, (str, Path)):
        return use_image(source, function, at_least)
    if isinstance(source, ShardImage):
        return _use_bytes(source.read(), function, at_least, str(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _use_bytes(source, function, at_least, f"image of {len(source)} bytes")
    if isinstance(source, Image.Image):
        try:
            return function(upright_rgb(source.copy()))
        except InputError as error:
            raise InputError(f"image: {error}") from error
        except (OSError, SyntaxError) as error:  # Pillow reads the pixels of an opened file when they are needed
            raise InputError(f"image: damaged ({error})") from error
    if hasattr(source, "__array__"):
        return function(_from_array(source))
    raise InputError(f"image: expected a path, bytes, a PIL image or an array of pixels, got {type(source).__name__}")


def _use_bytes(content: bytes, function: "Callable[[Image], T]", at_least: int | None, name: str) -> T:
    with NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            return use_image(file.name, function, at_least)
        except InputError as error:
            raise InputError(str(error).replace(file.name, name, 1)) from error


def _from_array(source: Any) -> "Image":
    import numpy as np
    from PIL import Image

    pixels = np.asarray(source)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        expected = "an array of uint8 of shape [h, w], [h, w, 3] or [h, w, 4]"
        raise InputError(f"image: expected {expected}, got {pixels.dtype} {list(pixels.shape)}")
    if not pixels.size:
        raise InputError(f"image: expected pixels, got an array of shape {list(pixels.shape)}")
    return upright_rgb(Image.fromarray(np.ascontiguousarray(pixels)))
