"""Which files of a folder are photographs, and what becomes of folders that cannot be read."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from tagrank.errors import InputError
from tagrank.features.folders import find_images


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if neither pillow-heif nor rawpy were installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "rawpy", None)


def test_find_images(tmp_path: Path) -> None:
    images = ["a.png", "b.JPG", "c.jfif", "d.jpe", "e.MPO", "sub/c.webp", "sub/deep/d.tiff", "sub-2/e.gif"]
    for name in [*reversed(images), "note.txt", ".hidden.jpg", ".git/f.jpg"]:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    photos = tmp_path / "photos"
    below = [photos / name for name in images]
    assert find_images([photos]) == below
    explicit = [tmp_path / "z.jpg", photos / "note.txt", tmp_path / "nowhere"]
    assert find_images([str(explicit[0]), photos, *explicit[1:]]) == [explicit[0], *below, *explicit[1:]]
    assert find_images([]) == []


@pytest.mark.usefixtures("no_extras")
def test_find_images_in_a_folder_without(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    with pytest.raises(InputError, match=r"no images in this folder; expected files named \.jpg, \.jpeg.*[a-z]$"):
        find_images([tmp_path])
    (tmp_path / "a.HEIC").touch()
    with pytest.raises(
        InputError, match=r"no images in this folder; .*; got 1 \.heic \(pip install 'tagrank\[heic\]'\)$"
    ):
        find_images([tmp_path])


@pytest.mark.usefixtures("no_extras")
def test_pictures_that_are_not_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.HEIC", "sub/b.heic", "c.dng", ".d.heic", "note.txt", "e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([tmp_path]) == [tmp_path / "e.jpg"]
    left = f"tagrank: {tmp_path}: left out, because they cannot be read: 1 .dng, 2 .heic"
    assert capsys.readouterr().err == f"{left} (pip install 'tagrank[heic,raw]')\n"


def test_camera_files_are_found_if_they_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pillow_heif")
    pytest.importorskip("rawpy")
    make(tmp_path, "a.HEIC", "b.dng", "c.CR3", "d.jpg", "e.jxl", "f.hif")
    assert [path.name for path in find_images([tmp_path])] == ["a.HEIC", "b.dng", "c.CR3", "d.jpg", "f.hif"]
    assert capsys.readouterr().err == f"tagrank: {tmp_path}: left out, because they cannot be read: 1 .jxl\n"


def test_avif_where_pillow_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b.avif").touch()
    if ".avif" in Image.registered_extensions():
        assert [path.name for path in find_images([tmp_path])] == ["a.png", "b.avif"]
    monkeypatch.setattr(Image, "registered_extensions", dict)
    assert [path.name for path in find_images([tmp_path])] == ["a.png"]
    assert "1 .avif" in capsys.readouterr().err


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("junk", ["@eaDir", "#recycle", ".thumbnails", ".@__thumb", "$RECYCLE.BIN", "lost+found"])
def test_folders_that_systems_make(tmp_path: Path, junk: str) -> None:
    make(tmp_path, "a/b.jpg", f"{junk}/c.jpg", f"a/{junk}/d/e.jpg", "@eaDir of mine/f.jpg")
    assert find_images([tmp_path]) == [tmp_path / "@eaDir of mine" / "f.jpg", tmp_path / "a" / "b.jpg"]
    assert find_images([tmp_path / junk]) == [tmp_path / junk / "c.jpg"]


def test_folders_to_exclude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "p/a.jpg", "p/out/b.jpg", "p/c/out/d.jpg", "p/c/e.jpg", "p/thumbs-1/f.jpg")

    def left(*exclude: str) -> list[str]:
        return [path.stem for path in find_images([tmp_path / "p"], exclude_folders=exclude)]

    assert left() == ["a", "e", "d", "b", "f"]
    assert left("out") == ["a", "e", "f"]
    assert left("out/", "thumbs-*") == ["a", "e"]
    assert left(f"{tmp_path}/p/out") == ["a", "e", "d", "f"]
    monkeypatch.chdir(tmp_path)
    assert left("p/c/") == ["a", "b", "f"]
    assert left("p") == left()


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that cannot be listed, by root neither."""
    make(tmp_path, "a.jpg", "locked/b.jpg", "z/c.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return tmp_path / "locked"


def test_a_folder_that_cannot_be_read(locked: Path, tmp_path: Path) -> None:
    errors: list[InputError] = []
    assert find_images([tmp_path], on_error=errors.append) == [tmp_path / "a.jpg", tmp_path / "z" / "c.jpg"]
    assert [str(error) for error in errors] == [f"{locked}: permission denied"]
    with pytest.raises(InputError, match="locked: permission denied"):
        find_images([tmp_path])


def test_if_there_is_no_image_at_all(locked: Path, tmp_path: Path) -> None:
    make(tmp_path, "empty/note.txt")
    errors: list[InputError] = []
    assert find_images([tmp_path / "empty", tmp_path / "z"], on_error=errors.append) == [tmp_path / "z" / "c.jpg"]
    assert "no images in this folder" in str(errors[0])
    for folder in (tmp_path / "empty", locked):
        with pytest.raises(InputError, match=r"no images in this folder|permission denied"):
            find_images([folder], on_error=errors.append)
    assert len(errors) == 1
