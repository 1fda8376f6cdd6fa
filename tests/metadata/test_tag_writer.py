"""Tags in files: read back with Pillow and an XML parser, and everything else of the files as it was."""

import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, IptcImagePlugin
from PIL.PngImagePlugin import PngInfo

pytest.importorskip("exiv2", reason="exiv2 is not installed (pip install 'tagrank[xmp]')")

from tagrank.errors import InputError
from tagrank.metadata import Naming, Outcome, Place, TagWriter, exiv2_image
from tagrank.metadata.exiv2_image import NAMESPACE
from tagrank.metadata.image_data import checked
from tagrank.metadata.keyword_lists import Ranked

NAMES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "lr": "http://ns.adobe.com/lightroom/1.0/",
    "digiKam": "http://www.digikam.org/ns/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "tagrank": NAMESPACE,
}
TAGS = Ranked(("zebra", "b\u00e4ll, red", "person"), (0.91234, 0.5, 0.25), "0f" * 16, 0.125, {"person": ("man",)})
PHOTOSHOP, IPTC_KEYWORDS = 0x0404, (2, 25)


def picture(pages: int = 1, mode: str = "RGB") -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (pages, 20, 30, 4), dtype=np.uint8)
    return [Image.fromarray(page).convert(mode) for page in noise]


def exif() -> Image.Exif:
    """With a note of a camera, which means something only at its place."""
    data = Image.Exif()
    data[ExifTags.Base.Make], data[ExifTags.Base.Orientation] = "Camera", 6
    data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = b"NOTE" * 40
    return data


def save(path: Path, format: str, **options: Any) -> Path:
    first, *others = picture(options.pop("pages", 1), options.pop("mode", "RGB"))
    more = {"save_all": True, "append_images": others} if others else {}
    first.save(path, format, **more, **options)
    os.utime(path, ns=(1_600_000_000_000_000_001, 1_500_000_000_123_456_789))
    return path


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TEXT = PngInfo()
TEXT.add_text("Comment", "a text")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain.jpg": ("JPEG", {}),
    "camera.jpg": ("JPEG", {"exif": exif(), "icc_profile": PROFILE, "comment": b"said", "progressive": True}),
    "pictures.jpg": ("MPO", {"pages": 2, "exif": exif()}),
    "plain.png": ("PNG", {}),
    "camera.png": ("PNG", {"exif": exif(), "icc_profile": PROFILE, "pnginfo": TEXT, "mode": "RGBA"}),
    "moving.png": ("PNG", {"pages": 3}),
    "plain.webp": ("WEBP", {"quality": 50}),
    "camera.webp": ("WEBP", {"exif": exif(), "icc_profile": PROFILE, "lossless": True, "mode": "RGBA"}),
    "moving.webp": ("WEBP", {"pages": 3}),
    "plain.tif": ("TIFF", {}),
    "camera.tif": ("TIFF", {"exif": exif(), "icc_profile": PROFILE, "compression": "tiff_lzw"}),
    "pages.tiff": ("TIFF", {"pages": 2, "compression": "tiff_adobe_deflate"}),
}


@pytest.fixture(params=KINDS)
def photograph(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    format, options = KINDS[request.param]
    return save(tmp_path / request.param, format, **options)


def tree(xmp: bytes) -> ElementTree.Element:
    return ElementTree.fromstring(xmp.strip(b"\0"))


def packet(path: Path) -> ElementTree.Element:
    """The XMP of an image file, from where Pillow found it, or a sidecar."""
    if path.suffix == ".xmp":
        return tree(path.read_bytes())
    with Image.open(path) as image:
        xmp = image.tag_v2[700] if image.format == "TIFF" else image.info["xmp"]
    return tree(xmp)


def listed(path: Path, name: str, kind: str = "Bag") -> list[str]:
    return [str(item.text) for item in packet(path).findall(f".//{name}/rdf:{kind}/rdf:li", NAMES)]


def iptc(path: Path) -> list[str]:
    with Image.open(path) as image:
        info = IptcImagePlugin.getiptcinfo(image) or {}
    words = info.get(IPTC_KEYWORDS, [])
    return [word.decode() for word in (words if isinstance(words, list) else [words])]


def pixels(data: bytes) -> list[tuple[str, bytes]]:
    pages = []
    with Image.open(BytesIO(data)) as image:
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            pages.append((image.mode, image.tobytes()))
    return pages


def compressed(data: bytes) -> bytes:
    """The compressed pixels, found without a parser: from the first scan, or the first chunk of pixels, to the end."""
    for start, end in (
        (b"\xff\xda\0\x0c", None),
        (b"IDAT", None),
        (b"VP8 ", b"XMP "),
        (b"VP8L", b"XMP "),
        (b"ANMF", b"XMP "),
    ):
        if start in data:
            return data[data.index(start) : data.index(end) if end and end in data else None]
    return b""


def test_tags_are_read_back_and_the_pixels_are_the_same(photograph: Path) -> None:
    before, status = photograph.read_bytes(), os.stat(photograph)
    writer = TagWriter(Place.embed)
    assert writer.write(photograph, TAGS) is Outcome.written
    after = photograph.read_bytes()
    assert listed(photograph, "dc:subject") == ["zebra", "b\u00e4ll, red", "person"]
    assert listed(photograph, "lr:hierarchicalSubject") == ["zebra", "b\u00e4ll, red", "person|man"]
    assert listed(photograph, "tagrank:Tags", "Seq") == list(TAGS.tags)
    assert listed(photograph, "tagrank:Scores", "Seq") == ["0.9123", "0.5000", "0.2500"]
    (about,) = packet(photograph).findall(".//rdf:Description", NAMES)
    assert about.get(f"{{{NAMESPACE}}}Model") == "0f" * 16
    assert about.get(f"{{{NAMESPACE}}}Unlike") == "0.1250"
    if photograph.suffix in (".jpg", ".tif", ".tiff"):
        assert iptc(photograph) == list(TAGS.tags)
    assert pixels(after) == pixels(before)
    assert compressed(after) == compressed(before)
    assert (compressed(after) == b"") == photograph.suffix.startswith(".tif")
    with Image.open(BytesIO(before)) as old, Image.open(BytesIO(after)) as new:
        for key in ("exif", "icc_profile", "comment", "Comment", "dpi"):
            assert old.info.get(key) == new.info.get(key)
        assert old.getexif().get_ifd(ExifTags.IFD.Exif) == new.getexif().get_ifd(ExifTags.IFD.Exif)
    now = os.stat(photograph)
    assert (now.st_mtime_ns, now.st_mode) == (status.st_mtime_ns, status.st_mode)
    assert [path.name for path in photograph.parent.iterdir()] == [photograph.name]

    assert writer.write(photograph, TAGS) is Outcome.unchanged
    assert os.stat(photograph) == now or os.stat(photograph).st_ino == now.st_ino
    assert os.stat(photograph).st_ctime_ns == now.st_ctime_ns
    assert writer.remove(photograph) is Outcome.removed
    left = photograph.read_bytes()
    assert pixels(left) == pixels(before)
    assert all(word not in left for word in (b"zebra", b"tagrank", b"hierarchicalSubject"))
    if photograph.name not in ("plain.webp", "camera.tif", "pages.tiff"):
        assert left == before
    assert writer.remove(photograph) is Outcome.unchanged


def xmp(**lists: Sequence[str]) -> bytes:
    """What another program might have written."""
    about = "".join(
        f"<{name.replace('_', ':')}><rdf:Bag>{''.join(f'<rdf:li>{word}</rdf:li>' for word in words)}</rdf:Bag>"
        f"</{name.replace('_', ':')}>"
        for name, words in lists.items()
    )
    spaces = " ".join(f'xmlns:{name}="{uri}"' for name, uri in NAMES.items() if name != "tagrank")
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {spaces}><rdf:Description rdf:about="" xmp:Rating="3" '
        f'xmlns:foo="http://foo.invalid/" foo:bar="kept">{about}'
        "<foo:deep><rdf:Seq><rdf:li foo:operation='crop' foo:params='gz12'/></rdf:Seq></foo:deep>"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def check_foreign(path: Path) -> None:
    (about,) = packet(path).findall(".//rdf:Description[@xmp:Rating]", NAMES)
    assert about.get(f"{{{NAMES['xmp']}}}Rating") == "3"
    assert about.get("{http://foo.invalid/}bar") == "kept"
    (step,) = packet(path).findall(".//{http://foo.invalid/}deep/rdf:Seq/rdf:li", NAMES)
    assert step.get("{http://foo.invalid/}operation") == "crop"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_what_a_person_had_stays(tmp_path: Path, suffix: str) -> None:
    """Other properties of XMP, keywords in any of the lists, and a word that tagrank would have written too."""
    format = {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    theirs = xmp(dc_subject=["Oma", "Person"], lr_hierarchicalSubject=["Family|Oma"], digiKam_TagsList=["Family/Oma"])
    options: dict[str, Any] = {"xmp": theirs}
    if suffix == "png":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", theirs.decode())
    elif suffix == "tif":
        options = {"tiffinfo": {700: theirs}}
    path = save(tmp_path / f"a.{suffix}", format, **options)
    writer = TagWriter(Place.embed)
    assert writer.write(path, TAGS) is Outcome.written
    check_foreign(path)
    assert listed(path, "dc:subject") == ["Oma", "Person", "zebra", "b\u00e4ll, red"]
    assert listed(path, "lr:hierarchicalSubject") == ["Family|Oma", "Person", "zebra", "b\u00e4ll, red", "person|man"]
    digikam = listed(path, "digiKam:TagsList", "Seq")
    assert digikam == ["Family/Oma", "Person", "zebra", "b\u00e4ll, red", "person/man"]
    assert writer.write(path, TAGS) is Outcome.unchanged
    assert writer.write(path, Ranked(("dog",))) is Outcome.written
    assert listed(path, "dc:subject") == ["Oma", "Person", "dog"]
    assert writer.write(path, Ranked(())) is Outcome.removed
    check_foreign(path)
    assert listed(path, "dc:subject") == ["Oma", "Person"]
    assert listed(path, "lr:hierarchicalSubject") == ["Family|Oma"]
    assert listed(path, "digiKam:TagsList", "Seq") == ["Family/Oma"]
    assert b"tagrank" not in path.read_bytes()


def iptc_block(*words: bytes, utf8: bool = False) -> bytes:
    """A Photoshop segment of JPEG with IPTC keywords and a by-line."""
    fields = [(1, 90, b"\x1b%G")] if utf8 else []
    fields += [(2, 80, words[0]), *((2, 25, word) for word in words)]
    data = b"".join(b"\x1c" + bytes([record, number]) + len(v).to_bytes(2, "big") + v for record, number, v in fields)
    block = (
        b"8BIM" + PHOTOSHOP.to_bytes(2, "big") + b"\0\0" + len(data).to_bytes(4, "big") + data + b"\0" * (len(data) % 2)
    )
    other = b"8BIM\x04\x25\0\0\0\0\0\x02ab"
    content = b"Photoshop 3.0\0" + other + block
    return b"\xff\xed" + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    ("words", "utf8", "expected"),
    [
        ((b"Oma", b"zebra"), False, ["Oma", "zebra", "b\u00e4ll, red", "person"]),
        (("M\u00e4rz".encode(), b"Oma"), True, ["M\u00e4rz", "Oma", "zebra", "b\u00e4ll, red", "person"]),
        ((b"M\xe4rz", b"Oma"), False, None),
        ((b"M\xe4rz", b"Oma"), True, None),
    ],
)
def test_iptc_keywords(tmp_path: Path, words: tuple[bytes, ...], utf8: bool, expected: list[str] | None) -> None:
    """They stay in their encoding. If that is unknown, tags are only in XMP."""
    path = save(tmp_path / "a.jpg", "JPEG")
    data = path.read_bytes()
    path.write_bytes(data[:20] + iptc_block(*words, utf8=utf8) + data[20:])
    before = path.read_bytes()
    writer = TagWriter(Place.embed)
    writer.write(path, TAGS)
    after = path.read_bytes()
    assert b"8BIM\x04\x25\0\0\0\0\0\x02ab" in after
    assert before[before.index(b"\x1c\x02\x50") :].startswith(
        b"\x1c\x02\x50" + len(words[0]).to_bytes(2, "big") + words[0]
    )
    if expected is None:
        assert iptc_block(*words, utf8=utf8) in after
        assert listed(path, "dc:subject") == list(TAGS.tags)
    else:
        assert iptc(path) == expected
        assert sorted(listed(path, "dc:subject")) == sorted({*expected})
    assert writer.write(path, TAGS) is Outcome.unchanged
    writer.remove(path)
    assert pixels(path.read_bytes()) == pixels(data)
    left = path.read_bytes()
    for word in words:
        assert b"\x1c\x02\x19" + len(word).to_bytes(2, "big") + word in left
    assert b"person" not in left


def test_sidecars(tmp_path: Path) -> None:
    """Of any format, also one that nobody here can read; the photograph is not touched."""
    for name in ("a.heic", "b.jpg", "c.cr2"):
        photo = tmp_path / name
        photo.write_bytes(b"not an image")
        status = os.stat(photo)
        writer = TagWriter(Place.sidecar)
        assert writer.write(photo, TAGS) is Outcome.written
        sidecar = tmp_path / f"{name}.xmp"
        assert listed(sidecar, "dc:subject") == list(TAGS.tags)
        assert listed(sidecar, "lr:hierarchicalSubject")[-1] == "person|man"
        written = os.stat(sidecar)
        assert writer.write(photo, TAGS) is Outcome.unchanged
        assert os.stat(sidecar).st_ctime_ns == written.st_ctime_ns
        assert TagWriter(Place.sidecar).write(photo, Ranked(("dog",))) is Outcome.written
        assert listed(sidecar, "dc:subject") == ["dog"]
        assert writer.remove(photo) is Outcome.removed
        assert not sidecar.exists()
        assert writer.remove(photo) is Outcome.unchanged
        assert os.stat(photo) == status or os.stat(photo).st_mtime_ns == status.st_mtime_ns


def test_a_sidecar_that_is_there(tmp_path: Path) -> None:
    """What another program wrote stays, and the time of the change tells that program of it."""
    photo = save(tmp_path / "a.jpg", "JPEG")
    sidecar = tmp_path / "a.jpg.xmp"
    sidecar.write_bytes(xmp(dc_subject=["Oma"]))
    os.chmod(sidecar, 0o640)
    os.utime(sidecar, (1, 1))
    writer = TagWriter(Place.sidecar)
    writer.write(photo, TAGS)
    check_foreign(sidecar)
    assert listed(sidecar, "dc:subject") == ["Oma", *TAGS.tags]
    assert os.stat(sidecar).st_mode & 0o777 == 0o640
    assert os.stat(sidecar).st_mtime > time.time() - 60
    writer.remove(photo)
    check_foreign(sidecar)
    assert listed(sidecar, "dc:subject") == ["Oma"]
    sidecar.write_bytes(b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><broken")
    with pytest.raises(InputError, match=r"a\.jpg\.xmp: its XMP is damaged|a\.jpg\.xmp: exiv2: "):
        writer.write(photo, TAGS)
    assert sidecar.read_bytes().endswith(b"<broken")


def test_a_new_sidecar_has_the_keywords_of_the_photograph(tmp_path: Path) -> None:
    """They would be hidden otherwise. Those that tagrank embedded are not a person's."""
    photo = save(tmp_path / "a.jpg", "JPEG", xmp=xmp(dc_subject=["Oma"]))
    TagWriter(Place.embed).write(photo, Ranked(("cat",)))
    writer = TagWriter(Place.sidecar)
    writer.write(photo, Ranked(("dog",)))
    assert listed(tmp_path / "a.jpg.xmp", "dc:subject") == ["Oma", "dog"]
    assert writer.write(photo, Ranked(("dog",))) is Outcome.unchanged
    writer.remove(photo)
    assert not (tmp_path / "a.jpg.xmp").exists()


@pytest.mark.parametrize(
    ("naming", "others", "expected"),
    [
        (Naming.full, [], "a.jpg.xmp"),
        (Naming.stem, [], "a.xmp"),
        (Naming.full, ["a.xmp"], "a.xmp"),
        (Naming.stem, ["a.jpg.xmp"], "a.jpg.xmp"),
        (Naming.full, ["a.xmp", "a.jpg.xmp"], "a.jpg.xmp"),
        (Naming.full, ["a.xmp", "a.dng"], "a.jpg.xmp"),
        (Naming.full, ["a.xmp", "a.txt", "b.dng"], "a.xmp"),
        (Naming.stem, ["a.dng"], None),
    ],
)
def test_names_of_sidecars(tmp_path: Path, naming: Naming, others: list[str], expected: str | None) -> None:
    photo = save(tmp_path / "a.jpg", "JPEG")
    for name in others:
        (tmp_path / name).write_bytes(xmp() if name.endswith(".xmp") else b"")
    writer = TagWriter(Place.sidecar, naming)
    if expected is None:
        with pytest.raises(InputError, match=r"a\.xmp would be the sidecar of other pictures too"):
            writer.write(photo, TAGS)
        return
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writer.write(photo, TAGS)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {expected}
    assert listed(tmp_path / expected, "dc:subject") == list(TAGS.tags)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    photo = save(tmp_path / "real" / "a.jpg", "JPEG")
    link = tmp_path / "link.jpg"
    link.symlink_to("real/a.jpg")
    TagWriter(Place.embed).write(link, TAGS)
    assert link.is_symlink()
    assert listed(photo, "dc:subject") == list(TAGS.tags)
    TagWriter(Place.sidecar).write(link, TAGS)
    assert sorted(path.name for path in tmp_path.rglob("*.xmp")) == ["a.jpg.xmp"]
    assert (tmp_path / "real" / "a.jpg.xmp").exists()


def test_read_only_files(tmp_path: Path) -> None:
    photo = save(tmp_path / "a.jpg", "JPEG")
    os.chmod(photo, 0o444)
    before = os.stat(photo)
    with pytest.raises(InputError, match=r"a\.jpg: is read-only$"):
        TagWriter(Place.embed).write(photo, TAGS)
    assert os.stat(photo).st_ctime_ns == before.st_ctime_ns
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
    TagWriter(Place.sidecar).write(photo, TAGS)
    os.chmod(tmp_path / "a.jpg.xmp", 0o444)
    for change in (lambda w: w.write(photo, Ranked(("dog",))), lambda w: w.remove(photo)):
        with pytest.raises(InputError, match=r"a\.jpg\.xmp: is read-only$"):
            change(TagWriter(Place.sidecar))


def test_extended_attributes_are_kept(tmp_path: Path) -> None:
    photo = save(tmp_path / "a.jpg", "JPEG")
    try:
        os.setxattr(photo, "user.rating", b"5")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    TagWriter(Place.embed).write(photo, TAGS)
    assert os.getxattr(photo, "user.rating") == b"5"


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("a.gif", lambda p: save(p, "GIF"), "tags can be embedded in JPEG, PNG, WebP and TIFF files, not in this one"),
        ("a.bmp", lambda p: save(p, "BMP"), "use --write sidecar"),
        ("a.dng", lambda p: save(p, "TIFF"), "not in this one; use --write sidecar"),
        ("a.tif", lambda p: save(p, "TIFF", pages=9), "exiv2 would change more of this file than keywords"),
        ("a.tif", lambda p: save(p, "TIFF", big_tiff=True), "exiv2: "),
        ("a.jpg", lambda p: p.write_bytes(b"no image"), "exiv2: "),
        ("a.jpg", lambda p: p.touch(), "exiv2: "),
        ("a.jpg", lambda p: p.mkdir(), "expected a photograph, got a folder"),
        ("a.jpg", lambda p: None, "expected a photograph, got no file"),
        ("a.jpg", lambda p: save(p, "JPEG", xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf"), "its XMP is damaged"),
        ("a.jpg", lambda p: save(p, "JPEG", xmp=xmp().replace(b"</rdf:Seq>", b"")), "its XMP is damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_written(tmp_path: Path, name: str, make: Callable[[Path], object], reason: str) -> None:
    make(tmp_path / name)
    before = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
    with pytest.raises(InputError) as error:
        TagWriter(Place.embed).write(tmp_path / name, TAGS)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert reason in str(error.value)
    assert before is None or (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ([] if reason.endswith("no file") else [name])


@pytest.mark.parametrize("tag", ["", "  ", "a\x00b", "a\nb", "\x0b", "\udc80", "\uffff"])
def test_tags_that_xml_cannot_have(tmp_path: Path, tag: str) -> None:
    photo = save(tmp_path / "a.jpg", "JPEG")
    for place in Place:
        with pytest.raises(InputError, match=r"a\.jpg: expected tags of letters and other signs, got '"):
            TagWriter(place).write(photo, Ranked(("dog", tag)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("tag", ["<b> & \"c\" 'd'", "\U0001f415 dog", "\u72ac", "a;b,c|d/e", "x" * 300, "]]>"])
def test_any_other_tag(tmp_path: Path, tag: str) -> None:
    photo = save(tmp_path / "a.jpg", "JPEG")
    for place in Place:
        writer = TagWriter(place)
        writer.write(photo, Ranked((tag, "dog")))
        assert listed(photo if place is Place.embed else tmp_path / "a.jpg.xmp", "dc:subject") == [tag, "dog"]
        assert writer.write(photo, Ranked((tag, "dog"))) is Outcome.unchanged
    assert iptc(photo) == [tag[:64], "dog"]


def test_a_library_that_changes_a_pixel_is_found_out(tmp_path: Path) -> None:
    """For each kind: a file with another pixel is refused, and one with other metadata is not."""
    for name in ("plain.jpg", "plain.png", "plain.webp", "plain.tif"):
        format, options = KINDS[name]
        path = save(tmp_path / name, format, **options)
        old = path.read_bytes()
        TagWriter(Place.embed).write(path, TAGS)
        kind = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "TIFF": "TIFF"}[format]
        assert listed(path, "dc:subject")
        written = path.read_bytes()
        path.write_bytes(checked(kind, old, written, True))
        assert listed(path, "dc:subject")
    changed = bytearray(written)
    changed[written.index(picture()[0].tobytes()[300:340])] ^= 1
    with pytest.raises(InputError, match="exiv2 would change more of this file than keywords"):
        checked("TIFF", old, bytes(changed), True)
    png = (tmp_path / "plain.png").read_bytes()
    wrong = png.replace(zlib.crc32(b"IEND").to_bytes(4, "big"), b"abcd")
    with pytest.raises(InputError, match="a PNG file that cannot be checked \\(wrong checksum"):
        checked("PNG", wrong, png, True)


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = save(tmp_path / "a.jpg", "JPEG")
    write = exiv2_image.ImageMetadata.write

    def meanwhile(metadata: exiv2_image.ImageMetadata) -> bytes:
        photo.write_bytes(b"by another program")
        return write(metadata)

    monkeypatch.setattr(exiv2_image.ImageMetadata, "write", meanwhile)
    with pytest.raises(InputError, match=r"a\.jpg: another program changed it meanwhile"):
        TagWriter(Place.embed).write(photo, TAGS)
    assert photo.read_bytes() == b"by another program"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]

    def made(metadata: exiv2_image.ImageMetadata) -> bytes:
        (tmp_path / "a.jpg.xmp").write_bytes(xmp())
        return write(metadata)

    monkeypatch.setattr(exiv2_image.ImageMetadata, "write", made)
    with pytest.raises(InputError, match=r"a\.jpg\.xmp: another program changed it meanwhile"):
        TagWriter(Place.sidecar).write(photo, TAGS)
    assert (tmp_path / "a.jpg.xmp").read_bytes() == xmp()


@pytest.mark.parametrize("place", Place)
def test_a_killed_writer_leaves_whole_files(tmp_path: Path, place: Place) -> None:
    photo = save(tmp_path / "a.jpg", "JPEG", exif=exif())
    command = [sys.executable, Path(__file__).with_name("kill.py"), photo, place.value, tmp_path / "killed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8


def test_what_killed_writers_left_is_deleted_after_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = save(tmp_path / "a.JPG", "JPEG")
    ours, others = [".a.JPG.0123abcd.tmp", ".b.jpg.xmp.0123abcd.tmp"], [".notes.txt.0123abcd.tmp", "x.jpg.0123abcd.tmp"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    TagWriter(Place.sidecar).write(photo, TAGS)
    assert all((tmp_path / name).exists() for name in (*ours, *others))
    later = time.time() + 3700
    monkeypatch.setattr(time, "time", lambda: later)
    TagWriter(Place.sidecar).write(photo, TAGS)
    assert not any((tmp_path / name).exists() for name in ours)
    assert all((tmp_path / name).exists() for name in others)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "exiv2", None)
    exiv2_image.library.cache_clear()
    try:
        with pytest.raises(InputError, match=r"needs exiv2: pip install 'tagrank\[xmp\]'"):
            TagWriter(Place.embed)
    finally:
        exiv2_image.library.cache_clear()
