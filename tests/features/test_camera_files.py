"""HEIC images that pillow-heif writes, and raw files (DNG) that are written here byte by byte."""

import io
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tagrank.errors import InputError
from tagrank.features.image_sources import use_source
from tagrank.features.images import read_image, use_image

Pixels = NDArray[np.uint8]
QUARTERS = {"tl": (220, 40, 40), "tr": (40, 200, 40), "bl": (40, 40, 220), "br": (200, 200, 200)}


def scene(width: int = 600, height: int = 400) -> Pixels:
    """A red, a green, a blue and a white quarter, from left to right and down."""
    pixels = np.empty((height, width, 3), np.uint8)
    down, right = height // 2, width // 2
    pixels[:down, :right], pixels[:down, right:] = QUARTERS["tl"], QUARTERS["tr"]
    pixels[down:, :right], pixels[down:, right:] = QUARTERS["bl"], QUARTERS["br"]
    return pixels


def corners(image: Image.Image) -> str:
    """The colours of the corners of an image: r, g, b or w, from left to right and down."""

    def name(x: int, y: int) -> str:
        colour = image.getpixel((x, y))
        assert isinstance(colour, tuple)
        return "w" if min(colour) > 150 else "rgb"[int(np.argmax(colour))]

    right, down = image.width - 20, image.height - 20
    return name(20, 20) + name(right, 20) + name(20, down) + name(right, down)


UPRIGHT = {1: "rgbw", 3: "wbgr", 6: "brwg", 8: "gwrb"}
"""The corners of the scene turned upright, by EXIF's orientation."""


def jpeg(pixels: Pixels, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=95, **options)
    return content.getvalue()


# A directory of a TIFF file: (tag, type, values). Types: 1 byte, 2 text, 3 16 bits, 4 32 bits, 5 and 10 fractions.
Entry = tuple[int, int, Any]


def directory(at: int, entries: Sequence[Entry]) -> bytes:
    """The bytes of a directory that begins at an offset, with the values that have no room in it behind it."""
    head, tail = struct.pack("<H", len(entries)), b""
    for tag, kind, values in sorted(entries):
        if kind == 2:
            content = values
        elif kind in (5, 10):
            content = b"".join(struct.pack("<ii", round(value * 10000), 10000) for value in values)
        else:
            content = struct.pack(f"<{len(values)}{'_BsHI'[kind]}", *values)
        place = content.ljust(4, b"\0")
        if len(content) > 4:
            place = struct.pack("<I", at + 2 + 12 * len(entries) + 4 + len(tail))
            tail += content + b"\0" * (len(content) % 2)
        head += struct.pack("<HHI", tag, kind, len(values)) + place
    return head + bytes(4) + tail


def dng(pixels: Pixels, orientation: int = 1, preview: bytes | None = None) -> bytes:
    """A DNG file (Adobe's specification, 1.4) of a sensor with the pattern RGGB, 16 bits, not compressed."""
    height, width, _ = pixels.shape
    light = ((pixels / 255.0) ** 2.2 * 60000).astype(np.uint16)
    sensor = light[..., 1].copy()
    sensor[0::2, 0::2], sensor[1::2, 1::2] = light[0::2, 0::2, 0], light[1::2, 1::2, 2]
    raw = sensor.tobytes()
    from_xyz = [3.2405, -1.5371, -0.4985, -0.9693, 1.8760, 0.0416, 0.0556, -0.2040, 1.0572]  # to linear sRGB
    camera: list[Entry] = [
        *((271, 2, b"Tests\0"), (272, 2, b"Drawn\0"), (274, 3, [orientation])),
        *((50706, 1, [1, 4, 0, 0]), (50708, 2, b"Tests Drawn\0"), (50721, 10, from_xyz)),
        *((50728, 5, [1, 1, 1]), (50778, 3, [21])),
    ]

    def strip(kind: int, w: int, h: int, bits: list[int], compression: int, photometric: int, content: bytes) -> Any:
        """The entries of an image at an offset that is not yet known."""
        return lambda offset: [
            *((254, 4, [kind]), (256, 4, [w]), (257, 4, [h]), (258, 3, bits), (259, 3, [compression])),
            *((262, 3, [photometric]), (273, 4, [offset]), (277, 3, [len(bits)]), (278, 4, [h])),
            (279, 4, [len(content)]),
        ]

    mosaic: list[Entry] = [(33421, 3, [2, 2]), (33422, 1, [0, 1, 1, 2]), (50714, 3, [0]), (50717, 4, [60000])]
    sensed = strip(0, width, height, [16], 1, 32803, raw)
    start = b"II*\0" + struct.pack("<I", 8)
    if preview is None:
        size = len(directory(8, [*camera, *mosaic, *sensed(0)]))
        return start + directory(8, [*camera, *mosaic, *sensed(8 + size)]) + raw
    preview += b"\0" * (len(preview) % 2)
    shown = strip(1, *Image.open(io.BytesIO(preview)).size, [8, 8, 8], 7, 6, preview)
    below = 8 + len(directory(8, [*camera, *shown(0), (330, 4, [0])]))
    at = below + len(directory(below, [*mosaic, *sensed(0)]))
    first = directory(8, [*camera, *shown(at), (330, 4, [below])])
    return start + first + directory(below, [*mosaic, *sensed(at + len(preview))]) + preview + raw


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


class TestHeic:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("pillow_heif", reason="needs pillow-heif")

    def encoded(self, pixels: Pixels, orientation: int = 1) -> bytes:
        import pillow_heif

        exif = Image.Exif()
        exif[0x0112] = orientation
        image, content = Image.fromarray(pixels), io.BytesIO()
        pillow_heif.from_pillow(image).save(content, quality=95, exif=exif.tobytes())
        return content.getvalue()

    @pytest.mark.parametrize(("orientation", "expected"), UPRIGHT.items())
    def test_it_is_read_upright(self, tmp_path: Path, orientation: int, expected: str) -> None:
        content = self.encoded(scene(), orientation)
        # Telephones export HEIC under other names too.
        for name in ("a.heic", "a.HIF", "a.jpg"):
            image = read_image(write(tmp_path, name, content))
            assert image.mode == "RGB"
            assert image.size == ((400, 600) if orientation > 4 else (600, 400))
            assert corners(image) == expected
        use_source(content, lambda image: None if corners(image) == expected else pytest.fail("bytes"))

    def test_its_pixels(self, tmp_path: Path) -> None:
        image = read_image(write(tmp_path, "a.heic", self.encoded(scene())))
        for (x, y), colour in zip(((150, 100), (450, 100), (150, 300), (450, 300)), QUARTERS.values(), strict=True):
            np.testing.assert_allclose(image.getpixel((x, y)), colour, atol=6)

    def test_damaged(self, tmp_path: Path) -> None:
        content = self.encoded(scene())
        for cut in (content[:40], content[: len(content) // 2]):
            with pytest.raises(InputError, match=r"a\.heic: damaged image|a\.heic: not a "):
                read_image(write(tmp_path, "a.heic", cut))

    def test_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path, "a.heic", self.encoded(scene()))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 400 // 2 - 1)
        with pytest.raises(InputError, match=r"a\.heic: too large: Image size \(240000 pixels\) exceeds limit"):
            read_image(path)


class TestRaw:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("rawpy", reason="needs rawpy")

    @pytest.mark.parametrize(("orientation", "expected"), UPRIGHT.items())
    def test_without_an_image_in_it(self, tmp_path: Path, orientation: int, expected: str) -> None:
        image = read_image(write(tmp_path, "a.dng", dng(scene(), orientation)))
        assert image.mode == "RGB"
        assert image.size == ((200, 300) if orientation > 4 else (300, 200))  # half of the sensor's
        assert corners(image) == expected

    @pytest.mark.parametrize("orientation", UPRIGHT)
    def test_the_image_in_it_is_read_upright(self, tmp_path: Path, orientation: int) -> None:
        grey = scene() // 2 + 60  # other than the sensor's pixels, so that one sees which were read
        exif = Image.Exif()
        exif[0x0112] = orientation
        plain = write(tmp_path, "a.jpg", jpeg(grey, exif=exif))
        for preview in (jpeg(grey), jpeg(grey, exif=exif), jpeg(grey, exif=Image.Exif())):
            path = write(tmp_path, "a.NEF", dng(scene(), orientation, preview))
            assert np.array_equal(read_image(path), read_image(plain))

    def test_an_image_in_it_that_is_too_small_is_left(self, tmp_path: Path) -> None:
        grey = scene(300, 200) // 2 + 60
        path = write(tmp_path, "a.dng", dng(scene(800, 600), 6, jpeg(grey)))
        assert use_image(path, lambda image: image.size, at_least=200) == (200, 300)
        assert use_image(path, lambda image: image.size, at_least=201) == (300, 400)
        assert corners(read_image(path)) == UPRIGHT[6]

    def test_a_large_image_in_it_is_read_at_a_fraction(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.dng", dng(scene(800, 600), 1, jpeg(scene(800, 600))))
        assert use_image(path, lambda image: image.size, at_least=150) == (200, 150)

    def test_damaged(self, tmp_path: Path) -> None:
        content = dng(scene())
        for wrong in (b"no raw file at all", content[:200], jpeg(scene())):
            with pytest.raises(InputError, match=r"a\.dng: not a raw file that LibRaw reads \("):
                read_image(write(tmp_path, "a.dng", wrong))
        with pytest.raises(InputError, match=r"a\.dng: "):
            read_image(write(tmp_path, "a.dng", content[: len(content) // 2]))
        with pytest.raises(InputError, match=r"b\.dng: damaged image \(image file is truncated"):
            read_image(write(tmp_path, "b.dng", dng(scene(), 1, jpeg(scene())[:2000])))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image, .*pip install 'tagrank.heic.'"),
        ("a.CR2", dng(scene(40, 40)), "a raw file, .*pip install 'tagrank.raw.'"),
    ],
)
def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(InputError, match=message):
        read_image(write(tmp_path, name, content))


def test_the_packages_are_imported_only_for_their_files() -> None:
    code = "import sys, tagrank.features.folders; print({'rawpy', 'pillow_heif', 'PIL'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
