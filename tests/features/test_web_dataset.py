"""Images in tar archives: which are found, that each is what it is as a file, and what becomes of damaged archives."""

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from tagrank.errors import InputError
from tagrank.features.image_sources import use_source
from tagrank.features.labelled import named_images
from tagrank.features.web_dataset import ShardImage, find_photographs, shard_images

LONG = "folder/" * 20 + "name-that-needs-a-header-of-its-own-" * 3 + ".jpg"


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 0, 255 - shade)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, files: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=format) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_images_in_the_order_of_the_archive(tmp_path: Path, format: int) -> None:
    files = {"b.jpg": picture(1), "b.json": b"{}", "./a.PNG": picture(2), "a.cls": b"7", LONG: picture(3)}
    shard = write_shard(tmp_path / "000.tar", {**files, ".hidden.jpg": b"", "é.png": picture(4)}, format)
    errors: list[InputError] = []
    images = list(shard_images(shard, errors))
    assert errors == []
    assert [image.name for image in images] == ["b.jpg", "a.PNG", LONG, "é.png"]
    assert [image.read() for image in images] == [picture(shade) for shade in (1, 2, 3, 4)]
    assert [str(image) for image in images[:2]] == [f"{shard}/b.jpg", f"{shard}/a.PNG"]


def test_an_image_is_what_it_is_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(picture(9))
    shard = write_shard(tmp_path / "000.tar", {"a.png": picture(9), "b.png": b"no image", "c.png": b""})
    whole, broken, empty = shard_images(shard, [])
    assert use_source(whole, Image.Image.tobytes) == use_source(file, Image.Image.tobytes)
    with pytest.raises(InputError, match=rf"^{shard}/b\.png: not a JPEG"):
        use_source(broken, Image.Image.tobytes)
    with pytest.raises(InputError, match=rf"^{shard}/c\.png: the file is empty"):
        use_source(empty, Image.Image.tobytes)


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("folder.jpg", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(InputError, match="no images in this archive"):
        find_photographs([tmp_path / "a.tar"])


@pytest.mark.parametrize("lost", [1, 700, 5000])
def test_a_truncated_archive_is_reported_and_its_whole_images_found(tmp_path: Path, lost: int) -> None:
    shard = write_shard(tmp_path / "a.tar", {f"{i}.png": picture(i) + bytes(3000) for i in range(5)})
    with tarfile.open(shard) as archive:
        last = archive.getmembers()[-1]
    os.truncate(shard, last.offset_data + last.size - lost)
    errors: list[InputError] = []
    found = [image.name for image in shard_images(shard, errors)]
    assert found == [f"{i}.png" for i in range(3 if lost == 5000 else 4)]
    (error,) = errors
    assert str(error).startswith(f"{shard}: ")


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {f"{i}.png": picture(i) for i in range(5)})
    with tarfile.open(shard) as archive:
        third = archive.getmembers()[3]
    with shard.open("r+b") as file:
        file.seek(third.offset + 10)
        file.write(b"\xff" * 200)
    errors: list[InputError] = []
    assert len(list(shard_images(shard, errors))) == 3
    assert f"damaged after byte {third.offset}" in str(errors[0])


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    packed = write_shard(tmp_path / "packed.tar", {"a.png": picture(1)}, mode="w:gz")
    (tmp_path / "empty.tar").touch()
    (tmp_path / "text.tar").write_text("nothing of the kind" * 100)
    for name in ("packed", "empty", "text"):
        with pytest.raises(InputError, match=f"{name}.tar: expected a tar archive that is not compressed"):
            find_photographs([tmp_path / f"{name}.tar"])
    with pytest.raises(InputError, match=r"nowhere\.tar: no such file"):
        find_photographs([tmp_path / "nowhere.tar"])
    whole = write_shard(tmp_path / "whole.tar", {"a.png": picture(1)})
    errors: list[InputError] = []
    assert find_photographs([packed, whole], on_error=errors.append) == list(shard_images(whole, []))
    assert len(errors) == 1


def test_an_archive_that_became_shorter(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"a.png": picture(1)})
    (image,) = shard_images(shard, [])
    os.truncate(shard, image.offset + 5)
    with pytest.raises(InputError, match=r"a\.png: expected \d+ bytes at 512"):
        image.read()


def test_photographs_of_all_kinds_of_places(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.png").write_bytes(picture(2))
    shard = write_shard(tmp_path / "a.tar", {"a.png": picture(1)})
    found = find_photographs([tmp_path / "c.png", shard, tmp_path / "folder"])
    assert [str(path.relative_to(tmp_path)) if isinstance(path, Path) else path.name for path in found] == [
        "c.png",
        "a.png",
        "folder/b.png",
    ]
    assert isinstance(found[1], ShardImage)


def test_names_in_a_store_are_those_in_the_archive(tmp_path: Path) -> None:
    one = write_shard(tmp_path / "1.tar", {"x/a.png": picture(1)})
    two = write_shard(tmp_path / "2.tar", {"x/b.png": picture(1), "./x/c.png": picture(2)})
    assert list(named_images([one, two])) == ["x/a.png", "x/b.png", "x/c.png"]
    assert list(named_images([one, one])) == ["x/a.png"]
    again = write_shard(tmp_path / "3.tar", {"x/a.png": picture(1)})
    with pytest.raises(InputError, match=r"would both be stored as 'x/a\.png'"):
        named_images([one, again])
