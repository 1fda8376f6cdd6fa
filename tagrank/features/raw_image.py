"""The pixels of a raw file as an image of Pillow, which are computed when they are needed."""

from typing import TYPE_CHECKING, Any

from PIL import Image

from tagrank.errors import InputError

if TYPE_CHECKING:
    import rawpy


class RawImage(Image.Image):
    """A raw file at half its width and height: each two by two pixels of the sensor become one, upright, in sRGB.

    Args:
        raw: the opened file, which is closed when the pixels are there.
    """

    def __init__(self, raw: "rawpy.RawPy") -> None:
        super().__init__()
        sizes = raw.sizes
        self._raw: Any = raw
        self._mode = "RGB"
        self._size = ((sizes.width + 1) // 2, (sizes.height + 1) // 2)

    def load(self) -> Any:
        """Compute the pixels, with the camera's white balance.

        Raises:
            InputError: the file is damaged.
        """
        if self._raw is not None:
            import rawpy

            raw, self._raw = self._raw, None
            try:
                with raw:
                    pixels = Image.fromarray(raw.postprocess(half_size=True, use_camera_wb=True))
            except rawpy.LibRawError as error:
                raise InputError(f"damaged raw file ({error})") from error
            self.im, self._size = pixels.im, pixels.size
        return super().load()
