"""VOC 2007 in the layout of its devkit, with tag lists in MATLAB files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from typer.testing import Result

from tagrank.data.manifest import read_manifest

Write = Callable[..., Path]
Prepare = Callable[..., Result]
DEVKIT = "VOCdevkit/VOC2007"
WORDS = ["person", "dog", "bicycle", "café", "tree"]


def thing(name: str, *box: float, difficult: int = 0, truncated: int = 0, part: str = "") -> str:
    edges = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(edges, box, strict=True)) if box else ""
    bndbox = f"<bndbox>{corners}</bndbox>" if box else ""
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>{truncated}</truncated>"
        f"<difficult>{difficult}</difficult>{bndbox}{part}</object>"
    )


def annotation(*things: str, size: str = "<width>500</width><height>400</height><depth>3</depth>") -> str:
    return (
        "<annotation>\n\t<folder>VOC2007</folder>\n\t<filename>a.jpg</filename>\n\t<source>"
        "<database>The VOC2007 Database</database><flickrid>1</flickrid></source><owner><name>Ñandú</name></owner>\n\t"
        f"<size>{size}</size>\n\t<segmented>0</segmented>\n\t{''.join(things)}</annotation>\n"
    )


@pytest.fixture
def devkit(write: Write, tmp_path: Path) -> Path:
    """A devkit of five undamaged images."""
    head = thing("person", 200, 150, 300, 250, part="<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>")
    trees = {
        "000001": annotation(thing("dog", 1, 1, 100, 80), head),
        "000002": annotation(thing("car", 1, 1, 500, 400, difficult=1), thing("bus", 151, 121, 350, 280, truncated=1)),
        "000003": annotation(thing("cat", 101.5, 101, 300, 300)),
        "000005": annotation(),
        "000007": annotation(thing("sheep", 1, 1, 50, 50)),
    }
    for number, text in trees.items():
        write(f"{DEVKIT}/Annotations/{number}.xml", text)
        write(f"{DEVKIT}/JPEGImages/{number}.jpg")
    write(f"{DEVKIT}/ImageSets/Main/train.txt", "000001\n000002 \r\n")
    write(f"{DEVKIT}/ImageSets/Main/val.txt", "000003\n\n000005\n")
    write(f"{DEVKIT}/ImageSets/Main/test.txt", "000007")
    write(f"{DEVKIT}/ImageSets/Main/dog_train.txt", "000001  1\n000002 -1\n")
    return tmp_path


def structs(*entries: tuple[Any, Any], fields: tuple[str, ...] = ("filename", "taglist")) -> np.ndarray:
    """A 1 x N struct array with all the fields of the published files."""
    kinds = [(name, object) for name in (*fields, "objectcount", "objectscale", "gist", "color", "bow")]
    array = np.empty((1, len(entries)), dtype=kinds)
    for number, (file, tags) in enumerate(entries):
        array[0, number] = (file, tags, *(np.zeros((1, 4)) for _ in range(5)))
    return array


def row(*numbers: float) -> np.ndarray:
    return np.array([numbers], dtype=float)


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    folder = tmp_path / "tags"
    folder.mkdir()
    words = np.empty((1, len(WORDS)), dtype=object)
    words[0] = WORDS
    savemat(folder / "voc.mat", {"voc": words})
    savemat(
        folder / "train.mat",
        {
            "D1": structs(("000001.jpg", row(2, 1, 2, 4)), ("000002.jpg", row(5))),
            "D2": structs(("000003.jpg", np.array([[1, 3]], dtype=np.uint16)), ("000005.jpg", np.zeros((0, 0)))),
        },
    )
    savemat(folder / "test.mat", {"D1": structs(("VOC2007/JPEGImages/000007.jpg", row(1))), "D2": structs()})
    return folder


def test_lists(devkit: Path, lists: Path, prepare: Prepare) -> None:
    out = devkit / "voc.jsonl"
    result = prepare("voc2007", devkit, "--lists", lists, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{out}: 5 images read, 4 written with 5 different tags",
        "left out: 1, empty list",
    ]
    manifest = read_manifest(out)
    images = f"{DEVKIT}/JPEGImages"
    assert [(e.image, e.tags, e.split) for e in manifest.examples] == [
        (f"{images}/000001.jpg", ("dog", "person", "café"), "train"),
        (f"{images}/000002.jpg", ("tree",), "train"),
        (f"{images}/000003.jpg", ("person", "bicycle"), "train"),
        (f"{images}/000007.jpg", ("person",), "test"),
    ]
    assert all(manifest.image_path(example).is_file() for example in manifest.examples)


def test_importance(devkit: Path, prepare: Prepare) -> None:
    out = devkit / "voc.jsonl"
    result = prepare("voc2007", devkit / "VOCdevkit", "--order", "importance", "--out", out)
    assert result.exit_code == 0, result.output
    assert "left out: 1, no objects" in result.stdout
    # In the image of 500 x 400, the dog (100 x 80) is in a corner and the person (101 x 101) in the centre.
    assert [(e.image[-10:], e.tags, e.split) for e in read_manifest(out).examples] == [
        ("000001.jpg", ("person", "dog"), "train"),
        ("000002.jpg", ("bus",), "train"),
        ("000003.jpg", ("cat",), "val"),
        ("000007.jpg", ("sheep",), "test"),
    ]
    options = ("--order", "importance", "--difficult", "--no-truncated", "--overwrite", "--out", out)
    assert prepare("voc2007", devkit / DEVKIT, *options).exit_code == 0
    assert read_manifest(out).examples[1].tags == ("car",)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "annotation empty"),
        ("<annotation><object>", "damaged XML"),
        ("<html/>", "not an annotation"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "XML with a document type definition"),
        (annotation(thing("dog")), "object without a box"),
        (annotation(thing("", 1, 1, 2, 2)), "object without a name"),
        (annotation(thing("dog", 9, 9, 2, 2)), "box inside out"),
        (annotation(thing("dog", 1, 1, 2, float("nan"))), "not a number"),
        (annotation(thing("dog", 1, 1, 2, 2), size=""), "not a number"),
        (annotation(thing("dog", 1, 1, 2, 2), size="<width>0</width><height>9</height>"), "image without a size"),
        (annotation(thing(" \n", 1, 1, 2, 2)).encode("utf-16"), "object without a name"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "damaged XML"),
    ],
)
def test_damaged_annotations(devkit: Path, write: Write, prepare: Prepare, text: str | bytes, kind: str) -> None:
    path = write(f"{DEVKIT}/Annotations/000003.xml", text)
    arguments = ("voc2007", devkit, "--order", "importance", "--out", devkit / "voc.jsonl")
    failed = prepare(*arguments)
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert failed.stderr.startswith(f"tagrank: {path}: {kind}")
    assert not (devkit / "voc.jsonl").exists()
    skipped = prepare(*arguments, "--on-error", "skip")
    assert skipped.exit_code == 1
    assert f"left out: 1, {kind}\n" in skipped.stdout
    assert skipped.stderr == failed.stderr
    assert [e.image[-10:] for e in read_manifest(devkit / "voc.jsonl").examples] == [
        "000001.jpg",
        "000002.jpg",
        "000007.jpg",
    ]


def test_missing_images(devkit: Path, write: Write, prepare: Prepare) -> None:
    (devkit / DEVKIT / "JPEGImages" / "000001.jpg").unlink()
    write(f"{DEVKIT}/JPEGImages/000002.jpg", b"")
    (devkit / DEVKIT / "Annotations" / "000003.xml").unlink()
    write(f"{DEVKIT}/ImageSets/Main/test.txt", "000007\n000007\n")
    arguments = ("voc2007", devkit, "--order", "importance", "--out", devkit / "voc.jsonl")
    result = prepare(*arguments, "--on-error", "skip")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{devkit / 'voc.jsonl'}: 6 images read, 1 written with 1 different tags",
        "left out: 1, image missing",
        "left out: 1, image empty",
        "left out: 1, annotation missing or unreadable",
        "left out: 1, no objects",
        "left out: 1, image there twice",
    ]
    assert prepare(*arguments, "--overwrite", "--no-check-images").exit_code == 2  # because an annotation is missing


@pytest.mark.exhaustive
def test_words_and_file_names_in_other_shapes(devkit: Path, lists: Path, prepare: Prepare) -> None:
    """MATLAB may store words as a column, as a matrix of characters padded with spaces, or as cells in cells."""
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = "000007.jpg"
    savemat(lists / "test.mat", {"D1": structs((cell, row(4))), "D2": structs()})
    column = np.empty((len(WORDS), 1), dtype=object)
    column[:, 0] = WORDS
    nested = np.empty((1, len(WORDS)), dtype=object)
    for number, word in enumerate(WORDS):
        nested[0, number] = np.array([word], dtype=object)
    for variables in ({"voc": column, "n": row(5)}, {"words": np.array(WORDS)}, {"voc": nested}):
        savemat(lists / "voc.mat", variables)
        result = prepare("voc2007", devkit, "--lists", lists, "--overwrite", "--out", devkit / "voc.jsonl")
        assert result.exit_code == 0, result.stderr
        assert read_manifest(devkit / "voc.jsonl").examples[-1].tags == ("café",)


@pytest.mark.parametrize(
    ("taglist", "kind"),
    [
        (row(0, 1), "taglist number without a word: expected 1 to 5, got 0"),
        (row(6), "taglist number without a word: expected 1 to 5, got 6"),
        (row(1.5), "taglist number without a word: expected 1 to 5, got 1.5"),
        (row(float("nan")), "taglist number without a word: expected 1 to 5, got nan"),
        (np.ones((2, 2)), "taglist not a row of numbers: float64 [2, 2]"),
        ("person", "taglist not a row of numbers: <U6 [1]"),
    ],
)
def test_damaged_lists(devkit: Path, lists: Path, prepare: Prepare, taglist: Any, kind: str) -> None:
    savemat(lists / "test.mat", {"D1": structs(("000007.jpg", row(1))), "D2": structs(("000005", taglist))})
    result = prepare("voc2007", devkit, "--lists", lists, "--out", devkit / "voc.jsonl")
    assert result.exit_code == 2
    assert result.stderr == f"tagrank: {lists / 'test.mat'}: D2(1): {kind}\n"


@pytest.mark.exhaustive
def test_damaged_files_of_lists(devkit: Path, lists: Path, prepare: Prepare) -> None:
    def fails(file: str, content: bytes | dict[str, Any] | None) -> str:
        path, before = lists / file, (lists / file).read_bytes()
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            savemat(path, content)
        result = prepare("voc2007", devkit, "--lists", lists, "--out", devkit / "v.jsonl", "--on-error", "skip")
        path.write_bytes(before)
        assert result.exit_code == 2
        assert not (devkit / "v.jsonl").exists()
        return result.stderr.removeprefix(f"tagrank: {path}: ")

    whole = (lists / "train.mat").read_bytes()
    assert "no such file" in fails("voc.mat", None)
    assert "not a MATLAB file, or damaged" in fails("train.mat", b"")
    assert "not a MATLAB file, or damaged" in fails("train.mat", whole[: len(whole) // 2])
    assert "not a MATLAB file, or damaged" in fails("train.mat", b"no MATLAB" * 100)
    hdf5 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(512)
    assert "MATLAB 7.3 files cannot be read" in fails("test.mat", hdf5)
    assert "there is no D2" in fails("test.mat", {"D1": structs()})
    named = structs(("000001.jpg", row(1)), fields=("file", "taglist"))
    assert "D1: expected a struct array with filename and taglist" in fails("train.mat", {"D1": named, "D2": named})
    assert "D1: expected a struct array" in fails("train.mat", {"D1": row(1), "D2": row(1)})
    assert "word 2 is" in fails("voc.mat", {"voc": np.array([["dog", row(1)]], dtype=object)})
    assert "expected one variable" in fails("voc.mat", {"a": row(1), "b": row(1)})
    assert "expected a cell array of words" in fails("voc.mat", {"voc": row(1, 2)})


def test_options_and_folders(devkit: Path, lists: Path, prepare: Prepare) -> None:
    def fails(*arguments: Any) -> str:
        result = prepare("voc2007", *arguments)
        assert result.exit_code == 2
        return result.stderr

    out = ("--out", devkit / "voc.jsonl")
    assert "--lists: expected the folder" in fails(devkit, *out)
    assert "--lists: expected the folder" in fails(devkit, "--order", "lists", *out)
    assert "--lists cannot be used with --order importance" in fails(
        devkit, "--lists", lists, "--order", "importance", *out
    )
    for option in ("--difficult", "--no-truncated"):
        assert "need --order importance" in fails(devkit, "--lists", lists, option, *out)
    assert "expected VOCdevkit/VOC2007/JPEGImages" in fails(lists, "--order", "importance", *out)
    elsewhere = devkit / "other" / "voc.jsonl"
    assert f"expected a manifest in {devkit / DEVKIT / 'JPEGImages'} or in a folder above it" in fails(
        devkit, "--order", "importance", "--out", elsewhere
    )
    for split in ("train", "val", "test"):
        (devkit / DEVKIT / "ImageSets" / "Main" / f"{split}.txt").rename(devkit / f"{split}.txt")
    assert "expected train.txt, val.txt or test.txt" in fails(devkit, "--order", "importance", *out)
    (devkit / DEVKIT / "ImageSets" / "Main" / "train.txt").write_text("000001\n000002 -1\n")
    assert "train.txt, line 2: expected the number of an image" in fails(devkit, "--order", "importance", *out)
    out[1].write_text("mine")
    assert "the file already exists" in fails(devkit, "--lists", lists, *out)
    assert out[1].read_text() == "mine"
