import gc
import io
import os
import re
import struct
import subprocess
import sys
import time
import warnings
import weakref
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from tagrank.errors import InputError
from tagrank.features import images
from tagrank.features.images import read_image, use_image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header says that it is huge, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def write(tmp_path: Path, content: bytes, name: str = "image.jpg") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def message(path: Path) -> str:
    """The error of reading a file, without the path, which must come first."""
    with pytest.raises(InputError) as caught:
        read_image(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_pixels(tmp_path: Path, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = read_image(str(write(tmp_path, encoded(noise(), kind, **options))))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(noise()))


def test_jpeg(tmp_path: Path) -> None:
    flat = Image.new("RGB", (40, 30), (200, 100, 50))
    image = read_image(write(tmp_path, encoded(flat, "JPEG", quality=95)))
    assert image.size == (40, 30)
    assert np.abs(np.asarray(image).astype(int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    # For each EXIF orientation, how the pixels are stored in the file.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](np.asarray(noise()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(np.asarray(read_image(write(tmp_path, content))), np.asarray(noise()))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    assert read_image(write(tmp_path, encoded(noise(), "JPEG", exif=b"Exif\0\0" + exif))).size == (40, 30)


def test_modes(tmp_path: Path) -> None:
    def read(image: Image.Image, kind: str = "PNG") -> tuple[int, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pixel = read_image(write(tmp_path, encoded(image, kind))).getpixel((1, 1))
        assert isinstance(pixel, tuple)
        return pixel

    assert read(Image.new("L", (4, 4), 77)) == (77, 77, 77)
    assert read(Image.new("1", (4, 4), 1)) == (255, 255, 255)
    assert read(Image.new("LA", (4, 4), (77, 0))) == (77, 77, 77)
    assert read(Image.new("RGBA", (4, 4), (10, 20, 30, 0))) == (10, 20, 30)
    assert read(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF") == (255, 0, 0)
    assert read(Image.new("RGB", (4, 4), (10, 20, 30)).quantize(4)) == (10, 20, 30)
    assert read(Image.new("RGBA", (4, 4), (10, 20, 30, 128)).quantize(4)) == (10, 20, 30)
    assert read(Image.new("RGB", (4, 4), (10, 20, 30)), "GIF") == (10, 20, 30)
    for kind in ("PNG", "TIFF"):
        for value, expected in ((0, 0), (257, 1), (25700, 100), (65535, 255)):
            assert read(Image.fromarray(np.full((4, 4), value, np.uint16)), kind) == (expected,) * 3


def test_first_picture_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(write(tmp_path, content)).getpixel((3, 3)) == (255, 0, 0)


def test_not_a_file(tmp_path: Path) -> None:
    assert message(tmp_path / "nowhere.jpg") == "no such file or directory"
    assert message(tmp_path) == "expected an image file, got a folder"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert message(tmp_path / "pipe.jpg") == "expected an image file, got a special file"
    assert message(write(tmp_path, b"")) == "the file is empty"


@pytest.mark.parametrize(
    "content", [b"x", b"hello " * 100, b"%PDF-1.4\n", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    assert re.fullmatch(
        "not a JPEG, PNG, WEBP, BMP, GIF( or TIFF|, TIFF or AVIF) image", message(write(tmp_path, content))
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_truncated(tmp_path: Path, kind: str) -> None:
    whole = encoded(noise(), kind)
    for part in (0.3, 0.6, 0.9):
        content = whole[: int(part * len(whole))]
        assert "image" in message(write(tmp_path, content))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_an_image_or_an_input_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = np.frombuffer(encoded(noise(), kind), dtype=np.uint8)
        for _ in range(60):
            content = whole.copy()
            places = generator.integers(0, len(whole) if generator.random() < 0.5 else 64, 8)
            content[places] = generator.integers(0, 256, 8)
            try:
                assert read_image(write(tmp_path, content.tobytes())).mode == "RGB"
                outcomes["read"] += 1
            except InputError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "too large: Image size (900000000 pixels) exceeds limit of 178956970 pixels"
    path = write(tmp_path, png_of_size(30_000, 30_000))
    assert message(path).startswith(said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert message(path).startswith(said)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    path = write(tmp_path, encoded(noise(), "JPEG"))
    assert message(path) == "too large: Image size (1200 pixels) exceeds limit of 1196 pixels"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_is_that_of_pil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, encoded(noise(), "PNG"))
    for limit in (1200, 600, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert read_image(path).size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    assert message(path).startswith("too large: ")


@pytest.mark.parametrize("limit", [1199, 599, 300])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_large_jpeg_is_read_at_half_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, action: Literal["ignore", "error"]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    path = write(tmp_path, encoded(gradient, "JPEG", quality=95, exif=exif))
    whole = read_image(path)
    assert whole.size == (30, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        half = read_image(path)
    assert half.size == (15, 20)
    assert np.abs(np.asarray(half, int) - np.asarray(whole.resize((15, 20), Image.Resampling.BOX), int)).max() <= 4


def test_from_several_threads(tmp_path: Path) -> None:
    good = write(tmp_path, encoded(noise(), "PNG"), "good.png")
    bad = write(tmp_path, encoded(noise(), "PNG")[:500], "bad.png")
    filters = list(warnings.filters)

    def read(path: Path) -> tuple[int, int] | None:
        try:
            return read_image(path).size
        except InputError:
            return None

    with ThreadPoolExecutor(4) as executor:
        sizes = list(executor.map(read, [good, bad] * 50))
    assert sizes == [(40, 30), None] * 50
    assert warnings.filters == filters


def test_mpo(tmp_path: Path) -> None:
    flat = Image.new("RGB", (40, 30), (200, 100, 50))
    content = encoded(flat, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])
    assert np.abs(np.asarray(read_image(write(tmp_path, content)), int) - [200, 100, 50]).max() <= 3


def test_avif_where_pillow_has_it(tmp_path: Path) -> None:
    if ".avif" in Image.registered_extensions():
        flat = Image.new("RGB", (40, 30), (200, 100, 50))
        image = read_image(write(tmp_path, encoded(flat, "AVIF", quality=95), "b.avif"))
        assert np.abs(np.asarray(image, int) - [200, 100, 50]).max() <= 8


def with_tags(*tags: tuple[int, int, bytes], gps: tuple[tuple[int, int, bytes], ...] = ()) -> bytes:
    """EXIF data with orientation 6 and some tags: their number, type and value."""

    def directory(entries: list[tuple[int, int, bytes]], base: int) -> bytes:
        sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}
        after = base + 2 + 12 * len(entries) + 4
        out, data = struct.pack("<H", len(entries)), b""
        for tag, kind, value in sorted(entries):
            place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<L", after + len(data))
            data += value if len(value) > 4 else b""
            out += struct.pack("<HHL", tag, kind, len(value) // sizes[kind]) + place
        return out + struct.pack("<L", 0) + data

    entries = [(0x112, 3, struct.pack("<H", 6)), *tags]
    if not gps:
        return b"Exif\0\0II*\0\x08\0\0\0" + directory(entries, 8)
    end = 8 + len(directory([*entries, (0x8825, 4, bytes(4))], 8))
    first = directory([*entries, (0x8825, 4, struct.pack("<L", end))], 8)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + directory(list(gps), end)


ODD_TAGS = {
    "resolution as text": with_tags((282, 2, b"72\0")),
    "positioning as a byte": with_tags((531, 1, b"\1")),
    "description as bytes": with_tags((270, 7, b"\xff\xfe\0abc")),
    "strip offsets": with_tags((273, 2, b"none\0")),
    "altitude as a fraction of nothing": with_tags(gps=((5, 5, bytes(8)),)),
    "time as text": with_tags(gps=((7, 2, b"12:00:00\0"),)),
    "GPS data beyond the end": with_tags((0x8825, 4, b"\xff\xff\xff\x7f")),
    "EXIF data as text": with_tags((0x8769, 2, b"none\0")),
}


@pytest.mark.parametrize("odd", ODD_TAGS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_the_orientation_counts_whatever_the_other_tags_are(tmp_path: Path, odd: str, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0}
    content = encoded(noise(), kind, exif=ODD_TAGS[odd], **options)
    stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(write(tmp_path, content))), np.rot90(stored, -1))


@pytest.mark.parametrize("tag", [282, 273 + 10_000, 0x8769, 0x8825])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_the_orientation_of_a_tiff_counts_whatever_the_other_tags_are(
    tmp_path: Path, tag: int, compression: str | None
) -> None:
    content = encoded(noise(), "TIFF", tiffinfo={0x112: 6, 40_000: "mark"}, compression=compression)
    # The entry of the tag with which the text is found, made another tag with the type of a text.
    place = content.index(struct.pack("<HH", 40_000, 2))
    content = content[:place] + struct.pack("<HH", tag, 2) + content[place + 4 :]
    upright = read_image(write(tmp_path, content))
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(noise()), -1))


@pytest.mark.parametrize("value", [(1, b"\6"), (4, b"\6\0\0\0"), (3, b"\6\0\6\0")])
def test_an_orientation_of_another_type(tmp_path: Path, value: tuple[int, bytes]) -> None:
    exif = with_tags()[:6] + b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHL", 0x112, value[0], 1) + value[1].ljust(4, b"\0")
    assert read_image(write(tmp_path, encoded(noise(), "JPEG", exif=exif + bytes(4)))).size == (30, 40)


def test_nobody_turns_an_image_again(tmp_path: Path) -> None:
    image = read_image(write(tmp_path, encoded(noise(), "JPEG", exif=with_tags())))
    assert image.size == ImageOps.exif_transpose(image).size == (30, 40)


SHADES = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    "values",
    [
        SHADES / np.float32(255),
        SHADES.astype(np.float32),
        SHADES * np.float32(257),
        SHADES.astype(np.int32),
        SHADES * np.int32(257),
        SHADES * np.int32(2**31 // 256),
        SHADES * np.uint16(257),
    ],
)
def test_grey_of_more_than_8_bits(tmp_path: Path, values: np.ndarray) -> None:
    image = read_image(write(tmp_path, encoded(Image.fromarray(values.astype(values.dtype)), "TIFF")))
    grey = np.asarray(image)[..., 1].astype(int)
    assert np.abs(grey - SHADES).max() <= (0 if values.max() in (1, 255, 65535) else 1)


@pytest.mark.parametrize(
    "value", [np.float32(-1), np.float32(np.nan), np.float32(np.inf), np.float32(1e6), np.int32(-1)]
)
def test_numbers_that_are_no_grey(tmp_path: Path, value: np.generic) -> None:
    values = np.full((4, 4), 100, value.dtype)
    values[1, 1] = value
    signed = {339: 2} if value.dtype == np.int32 else {}
    said = message(write(tmp_path, encoded(Image.fromarray(values), "TIFF", tiffinfo=signed)))
    assert re.fullmatch(r"expected grey values from 0 to [\d, ]+, got \S+ to \S+", said)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_white_is_zero(tmp_path: Path, dtype: type) -> None:
    values = (SHADES * np.uint16(257)).astype(dtype)
    content = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    place = content.index(struct.pack("<HHL", 262, 3, 1)) + 8
    content = content[:place] + b"\0" + content[place + 1 :]
    assert np.array_equal(np.asarray(read_image(write(tmp_path, content)))[..., 0], 255 - SHADES)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 4}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_its_end(tmp_path: Path, options: dict[str, object], mode: str) -> None:
    content = encoded(noise().convert(mode), "JPEG", **options)
    whole = read_image(write(tmp_path, content))
    for end in (content[:-2], content[:-1], content[:-2] + bytes(40)):
        assert read_image(write(tmp_path, end)).tobytes() == whole.tobytes()
    for cut in range(4, 40):
        assert "truncated" in message(write(tmp_path, content[:-cut])), cut


def test_threads_share_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (write(tmp_path, encoded(noise(*size), "PNG"), f"{size[0]}.png") for size in ((10, 10), (40, 30)))
    monkeypatch.setattr(images, "PIXELS_AT_ONCE", 200)
    together: list[list[int]] = []
    taken: list[int] = []

    def use(image: Image.Image) -> None:
        taken.append(image.width * image.height)
        together.append(list(taken))
        time.sleep(0.01)
        taken.remove(image.width * image.height)

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda path: use_image(path, use), [small, small, small, large] * 4))
    assert sorted({tuple(sorted(pixels)) for pixels in together}) == [(100,), (100, 100), (1200,)]


def test_an_error_of_the_function_is_no_error_of_the_file(tmp_path: Path) -> None:
    def fail(_: Image.Image) -> None:
        raise IndexError("mine")

    with pytest.raises(IndexError, match="mine"):
        use_image(write(tmp_path, encoded(noise(), "PNG")), fail)


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize(
    "kind",
    [
        "JPEG",
        pytest.param("PNG", marks=pytest.mark.exhaustive),
        pytest.param("TIFF", marks=pytest.mark.exhaustive),
        pytest.param("WEBP", marks=pytest.mark.exhaustive),
    ],
)
def test_an_image_is_gone_after_its_use(tmp_path: Path, kind: str) -> None:
    """Its memory is free without a garbage collection, which may come much later."""
    path = write(tmp_path, encoded(noise(), kind))
    kept = use_image(path, weakref.ref)
    assert kept() is None


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_an_error_keeps_no_image(tmp_path: Path, kind: str) -> None:
    """Errors are kept, for instance until all images were read."""
    path = write(tmp_path, encoded(noise(400, 300), kind)[:-20000])

    def alive() -> int:
        return sum(isinstance(thing, Image.Image) for thing in gc.get_objects())

    message(path)  # Pillow has images of its own once its formats are loaded
    before = alive()
    errors = []
    for _ in range(3):
        with pytest.raises(InputError, match="damaged image") as caught:
            use_image(path, lambda image: image.size)
        errors.append(caught.value)
        del caught
    assert alive() == before
    assert len(errors) == 3


@pytest.mark.exhaustive
def test_the_memory_of_large_images_goes_back(tmp_path: Path) -> None:
    """Threads keep none of it, and decode one image at a time if two have too many pixels."""
    code = """if True:
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from tagrank.features import images

        def memory(what):
            (line,) = [line for line in open("/proc/self/status") if line.startswith(what)]
            return int(line.split()[1]) / 1024

        images.PIXELS_AT_ONCE = 40_000_000
        images.use_image(sys.argv[1], lambda image: image.size)
        before, peak = memory("VmRSS"), memory("VmHWM")
        with ThreadPoolExecutor(4) as executor:
            list(executor.map(images.use_image, [sys.argv[1]] * 8, [lambda image: image.size] * 8))
        print(memory("VmRSS") - before, memory("VmHWM") - peak)
    """
    path = tmp_path / "large.png"
    Image.new("RGB", (6000, 4000)).save(path)  # 96 MB
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60)
    kept, more = map(float, done.stdout.split())
    assert kept < 30, done.stdout
    assert more < 80, done.stdout


@pytest.mark.parametrize(
    ("size", "at_least", "expected"),
    [
        ((800, 600), None, (800, 600)),
        ((800, 600), 301, (800, 600)),
        ((800, 600), 300, (400, 300)),
        ((800, 600), 151, (400, 300)),
        ((600, 800), 150, (150, 200)),
        ((800, 600), 75, (100, 75)),
        ((800, 600), 10, (100, 75)),  # libjpeg has no smaller fraction than an eighth
        ((803, 601), 300, (402, 301)),
        ((40, 30), 300, (40, 30)),
    ],
)
def test_a_large_jpeg_is_read_at_a_fraction(
    tmp_path: Path, size: tuple[int, int], at_least: int | None, expected: tuple[int, int]
) -> None:
    """Its shorter side still has as many pixels as are needed, and its pixels are means of those of the file."""
    row = np.linspace(0, 255, size[0]).astype(np.uint8)
    image = Image.fromarray(np.repeat(row[None, :, None], size[1], axis=0).repeat(3, axis=2))
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "a.png")
    read = use_image(tmp_path / "a.jpg", lambda image: image, at_least)
    assert read.size == expected
    assert abs(np.asarray(read, float) - np.asarray(image.resize(expected, Image.Resampling.BOX), float)).max() < 6
    # Other formats have no such fractions.
    assert use_image(tmp_path / "a.png", lambda image: image, at_least).size == size


def test_a_jpeg_read_at_a_fraction_is_turned_and_may_lack_its_end(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2])
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2000])
    whole, unended = (use_image(tmp_path / name, lambda image: image, 150) for name in ("a.jpg", "b.jpg"))
    assert whole.size == (150, 200)
    assert whole.tobytes() == unended.tobytes()
    with pytest.raises(InputError, match=r"truncated|damaged"):
        use_image(tmp_path / "c.jpg", lambda image: image, 150)
