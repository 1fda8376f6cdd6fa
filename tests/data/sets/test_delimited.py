"""Open Images' CSV files, and CSV files of any other origin."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from tagrank.data.manifest import read_manifest

Write = Callable[..., Path]
Prepare = Callable[..., Result]
BOXES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside,"
    "XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
)
TREE, CAR, FACE = "/m/07j7r", "/m/0k4j", "/m/0dzct"


def box(image: str, label: str, x0: object, x1: object, y0: object, y1: object) -> str:
    return f"{image},xclick,{label},1,{x0},{x1},{y0},{y1},0,1,0,0,0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8"


@pytest.fixture
def root(write: Write, tmp_path: Path) -> Path:
    write("classes.csv", f'LabelName,DisplayName\r\n{TREE},Tree\r\n{CAR},"Car, motor"\r\n{FACE},Human face\r\n')
    rows = [
        BOXES,
        box("000002b66c9c498e", TREE, 0, 0.3, 0, 0.3),
        box("000002b66c9c498e", CAR, 0.4, 0.6, 0.4, 0.6),
        box("000002b66c9c498e", TREE, 0.5, 0.500001, 0.1, 0.1),
        box("000004f4400f6ec5", FACE, "0.000000", "1.000000", 0, 1),
    ]
    write("oidv6-train-annotations-bbox.csv", "\n".join(rows) + "\n")
    write("validation-annotations-bbox.csv", "\n".join([BOXES, box("00075905539074f2", CAR, 0, 1, 0, 1)]))
    for image in ("train/000002b66c9c498e", "train/000004f4400f6ec5", "validation/00075905539074f2"):
        write(f"images/{image}.jpg")
    return tmp_path


def test_boxes(root: Path, prepare: Prepare) -> None:
    out = root / "openimages.jsonl"
    files = (root / "oidv6-train-annotations-bbox.csv", root / "validation-annotations-bbox.csv")
    options = ("--classes", root / "classes.csv", "--images", root / "images", "--out", out)
    result = prepare("openimages", *files, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}: 3 images read, 3 written with 3 different tags\n"
    manifest = read_manifest(out)
    assert [(e.image, e.tags, e.split) for e in manifest.examples] == [
        ("images/train/000002b66c9c498e.jpg", ("Car, motor", "Tree"), "train"),
        ("images/train/000004f4400f6ec5.jpg", ("Human face",), "train"),
        ("images/validation/00075905539074f2.jpg", ("Car, motor",), "validation"),
    ]
    assert all(manifest.image_path(example).is_file() for example in manifest.examples)


def test_labels_by_confidence(root: Path, write: Write, prepare: Prepare) -> None:
    labels = write(
        "train-annotations-machine-imagelabels.csv",
        "\ufeffImageID,Source,LabelName,Confidence\r\n"
        f"000002b66c9c498e,machine,{TREE},0.5\r\n"
        f"000002b66c9c498e,machine,{CAR},0.9\r\n"
        f"000002b66c9c498e,verification,{TREE},1\r\n"
        f"000002b66c9c498e,verification,{FACE},0\r\n"
        f"000004f4400f6ec5,verification,{FACE},0\r\n",
    )
    options = ("--classes", write("c.csv", f"{TREE},Tree\n{CAR},Car\n{FACE},Face\n"), "--images", root / "images")
    result = prepare("openimages", labels, *options, "--out", root / "o.jsonl")
    assert result.exit_code == 0, result.output
    assert "left out: 1, no labels" in result.stdout
    assert [e.tags for e in read_manifest(root / "o.jsonl").examples] == [("Tree", "Car")]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (box("000004f4400f6ec5", CAR, 0, 1, 0, 1), None),
        (box("000002b66c9c498e", CAR, 0, 1, 0, 1), "image there twice"),
        (box("000004f4400f6ec5", "/m/none", 0, 1, 0, 1), "class without a description"),
        (box("000004f4400f6ec5", CAR, 0, 1.5, 0, 1), "not a number from 0 to 1"),
        (box("000004f4400f6ec5", CAR, "nan", 1, 0, 1), "not a number from 0 to 1"),
        (box("000004f4400f6ec5", CAR, 0.6, 0.5, 0, 1), "box inside out"),
        (box("0000000000000000", CAR, 0, 1, 0, 1), "image missing"),
        (box("../x", CAR, 0, 1, 0, 1), "no image named"),
        ("000004f4400f6ec5,xclick,/m/0k4j,1,0,1", "row with the wrong number of fields"),
    ],
)
def test_damaged_boxes(root: Path, prepare: Prepare, row: str, kind: str | None) -> None:
    path = root / "oidv6-train-annotations-bbox.csv"
    path.write_text(path.read_text() + row + "\n")
    arguments = ("openimages", path, "--classes", root / "classes.csv", "--images", root / "images")
    failed = prepare(*arguments, "--out", root / "o.jsonl")
    if kind is None:
        assert failed.exit_code == 0
        return
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert ("line 6: image" if kind == "image there twice" else kind) in failed.stderr
    skipped = prepare(*arguments, "--out", root / "o.jsonl", "--on-error", "skip")
    assert skipped.exit_code == 1
    assert f"left out: 1, {kind}" in skipped.stdout
    assert skipped.stderr == failed.stderr


def test_damaged_files_of_open_images(root: Path, write: Write, prepare: Prepare) -> None:
    def fails(boxes: str | bytes = BOXES, classes: str = f"{TREE},Tree\n") -> str:
        options = ("--classes", write("c.csv", classes), "--images", root / "images", "--on-error", "skip")
        result = prepare("openimages", write("boxes.csv", boxes), *options, "--out", root / "o.jsonl")
        assert (result.exit_code, result.stdout) == (2, "")
        return result.stderr

    assert "boxes.csv: expected a first line" in fails("")
    assert "expected at least one example to write" in fails()
    assert "the column 'ImageID' is missing; columns: image, tags" in fails("image,tags\n")
    assert "the column 'YMin' appears more than once" in fails(BOXES.replace("YMax", "YMin") + "\n")
    assert "boxes.csv: not UTF-8, somewhere after line 0" in fails(b"\xff\xfe" + BOXES.encode("utf-16-le"))
    assert "boxes.csv, after line 1: not CSV" in fails(BOXES + '\n"a"b,\n')
    assert "c.csv, line 1: expected two columns" in fails(classes="/m/1,a,b\n")
    assert "c.csv, line 2: expected a label such as" in fails(classes="id,name\nTree,/m/1\n")
    assert "c.csv, line 2: the label /m/1 already has the name 'a'" in fails(classes="/m/1,a\n/m/1,b\n")
    assert "c.csv, line 2: expected two columns" in fails(classes="/m/1,a\n/m/2\n")


def test_any_csv(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    rows = [
        "photo;people;when;part",
        'a/é.jpg;"dog | ""red"" ball|dog";1;train',
        "b.jpg;cat ||;2;val",
        "b.jpg;bowl|cat;3;val",
        "",
        'c.jpg;" ";4;',
        '"d\n.jpg";x;5;',
    ]
    path = write("photos.csv", "\ufeff" + "\r\n".join(rows))
    for image in ("a/é.jpg", "b.jpg", "c.jpg", "d\n.jpg"):
        write(image)
    columns = ("--image-column", "photo", "--tags-column", "people", "--split-column", "part")
    options = (*columns, "--separator", "|", "--delimiter", ";", "--out", tmp_path / "m.jsonl")
    result = prepare("csv", path, *options, "--on-error", "skip")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'm.jsonl'}: 4 images read, 2 written with 4 different tags",
        "left out: 1, no tags",
        "left out: 1, not fit for a manifest",
    ]
    a, b = read_manifest(tmp_path / "m.jsonl").examples
    assert (a.image, a.tags, a.split) == ("a/é.jpg", ("dog", '"red" ball'), "train")
    # The sums of reciprocal positions are: cat 1 + 1/2, bowl 1.
    assert (b.image, b.lists, b.tags, b.split) == ("b.jpg", (("cat",), ("bowl", "cat")), ("cat", "bowl"), "val")
    assert prepare("csv", path, *options).exit_code == 2


@pytest.mark.parametrize(
    "cell",
    [
        "['dog', 'red ball']",
        '["dog","red ball"]',
        "('dog', 'red ball')",
        "['dog' 'red ball']",
        "[ 'dog',\n 'red ball', ]",
        "dog, red ball",
        " dog ,red ball\u00a0",
        r"['d\x6fg', 'red ball']",
        r'["d\u006fg", "red\u0020ball"]',
    ],
)
def test_lists_as_programs_print_them(write: Write, prepare: Prepare, tmp_path: Path, cell: str) -> None:
    quoted = cell.replace('"', '""')
    path = write("photos.csv", f'image,tags\na.jpg,"{quoted}"\nb.jpg,[]\n')
    write("a.jpg")
    result = prepare("csv", path, "--out", tmp_path / "m.jsonl")
    assert result.exit_code == 0, result.output
    assert "1 written" in result.stdout
    assert "left out: 1, no tags" in result.stdout
    assert read_manifest(tmp_path / "m.jsonl").examples[0].tags == ("dog", "red ball")


@pytest.mark.parametrize(
    "cell", ["[dog, ball]", "{'dog', 'ball'}", "{dog,ball}", "['dog', 3]", "['dog', ball']", "[[]]", r"['\x']"]
)
def test_brackets_that_are_no_list(write: Write, prepare: Prepare, tmp_path: Path, cell: str) -> None:
    path = write("photos.csv", f'image,tags\na.jpg,"{cell}"\n')
    write("a.jpg")
    result = prepare("csv", path, "--out", tmp_path / "m.jsonl")
    assert result.exit_code == 2
    assert "photos.csv, line 2: tags in brackets: expected " in result.stderr


def test_spellings_of_a_path(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    names = ["a.jpg", f"{tmp_path}/b.jpg", "./c.jpg", "caf\u00e9/d.jpg", "sub\\e.jpg"]
    path = write("photos.csv", "image,tags\n" + "".join(f"{name},dog\n" for name in names))
    for name in ("a.jpg", "b.jpg", "c.jpg", "cafe\u0301/d.jpg", "sub/e.jpg"):
        write(name)
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    for root in (tmp_path, tmp_path.parent / f"{tmp_path.name}-link"):
        result = prepare("csv", root / path.name, "--out", root / "m.jsonl", "--overwrite")
        assert result.exit_code == 0, result.output
        images = [e.image for e in read_manifest(root / "m.jsonl").examples]
        assert images == ["a.jpg", "b.jpg", "./c.jpg", "cafe\u0301/d.jpg", "sub/e.jpg"]


def test_csv_with_tabs_and_images_in_another_folder(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    path = write("lists/photos.tsv", "image\ttags\na.jpg\tdog, ball\n")
    write("photos/a.jpg")
    arguments = ("csv", path, "--images", tmp_path / "photos", "--delimiter", "tab", "--out", tmp_path / "m.jsonl")
    assert prepare(*arguments).exit_code == 0
    assert [(e.image, e.tags) for e in read_manifest(tmp_path / "m.jsonl").examples] == [
        ("photos/a.jpg", ("dog", "ball"))
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image,tags\na.jpg,dog,ball\n", (), "line 2: row with the wrong number of fields: expected 2 fields, got 3"),
        ("image,tags\n,dog\n", (), "line 2: no image named"),
        ("image,tags\n/etc/passwd,dog\n", ("--no-check-images",), "/etc/passwd: image outside of its folder"),
        ("image,tags\n../a.jpg,dog\n", ("--no-check-images",), "../a.jpg: image outside of its folder"),
        (
            "image,tags\na.jpg,dog\nb.jpg,dog\na.jpg,cat\n",
            (),
            "photos.csv, line 4: image 'a.jpg' is already in the manifest",
        ),
        (
            'image,tags\na.jpg,x\nb.jpg,"dog, a\nb"\n',
            (),
            "photos.csv, line 4: tags[1]: expected text without white space",
        ),
        ("image,tags,s\na.jpg,dog,night\n", ("--split-column", "s"), "line 2: unknown split"),
        ("image,tags,s\na.jpg,x,test\na.jpg,x,val\n", ("--split-column", "s"), "image in several splits: test, val"),
        ("image,tags\na.jpg,dog\n", ("--split-column", "s"), "the column 's' is missing; columns: image, tags"),
        (
            "image,tags\na.jpg,dog\n",
            ("--delimiter", ";;"),
            "--delimiter: expected 'tab' or one character that is not a quote",
        ),
        ("image,tags\na.jpg,dog\n", ("--separator", ""), "--separator: expected at least one character"),
        ("image,tags\n" + "a" * 200_000 + ",dog\n", (), "after line 1: not CSV (field larger than field limit"),
    ],
)
def test_bad_csv(
    write: Write, prepare: Prepare, tmp_path: Path, text: str, options: tuple[str, ...], message: str
) -> None:
    path = write("photos.csv", text)
    write("a.jpg")
    write("b.jpg")
    result = prepare("csv", path, *options, "--out", tmp_path / "m.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (tmp_path / "m.jsonl").exists()
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "\ufeffsep=;"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_separator_of_excel(write: Write, prepare: Prepare, tmp_path: Path, first: str, end: str) -> None:
    write("a.jpg")
    lines = (first, "image;tags", 'a.jpg;"dog,\r\n ball"', "a.jpg;dog;x", "")
    path = write("photos.csv", end.join(lines))
    arguments = ("csv", path, "--out", tmp_path / "m.jsonl")
    assert "photos.csv, line 5: row with the wrong number of fields" in prepare(*arguments).stderr
    path.write_text(end.join(lines[:3]), encoding="utf-8", newline="")
    assert prepare(*arguments).exit_code == 0
    assert [e.tags for e in read_manifest(tmp_path / "m.jsonl").examples] == [("dog", "ball")]


def feed(path: Path, text: str) -> threading.Thread:
    """Write a text to a named pipe, once, when somebody reads it."""
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_text, args=(text,), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("min_count", [1, 2])
def test_pipes(
    root: Path, write: Write, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_count: int
) -> None:
    """A pipe can be read only once, also if rare tags are to be left out. Images are in the current folder."""
    write("photos/a.jpg")
    write("photos/b.jpg")
    monkeypatch.chdir(tmp_path / "photos")
    feed(tmp_path / "csv", '\ufeffimage,tags\na.jpg,dog\nb.jpg,"ball, dog"\n')
    out = tmp_path / "photos" / "m.jsonl"
    result = prepare("csv", tmp_path / "csv", "--out", out, "--min-count", min_count)
    assert result.exit_code == 0, result.output
    assert [e.tags for e in read_manifest(out).examples] == [("dog",), ("ball", "dog") if min_count == 1 else ("dog",)]
    feed(tmp_path / "boxes", (root / "oidv6-train-annotations-bbox.csv").read_text())
    feed(tmp_path / "classes", (root / "classes.csv").read_text())
    out = root / "boxes.jsonl"
    arguments = ("--classes", tmp_path / "classes", "--images", root / "images" / "train", "--out", out)
    result = prepare("openimages", tmp_path / "boxes", *arguments, "--min-count", min_count)
    if min_count == 2:
        assert "none of the 2 images is left to write" in result.stderr
    else:
        assert [e.tags for e in read_manifest(out).examples] == [("Car, motor", "Tree"), ("Human face",)]


def test_a_file_on_stdin(write: Write, tmp_path: Path) -> None:
    write("a.jpg")
    command = [sys.executable, "-m", "tagrank", "prepare", "csv", "-", "--out", "m.jsonl"]
    done = subprocess.run(command, input=b"\xef\xbb\xbfimage,tags\na.jpg,dog\n", cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0
    assert [e.image for e in read_manifest(tmp_path / "m.jsonl").examples] == ["a.jpg"]
    empty = subprocess.run(
        [*command, "--overwrite"], input=b"", cwd=tmp_path, timeout=60, check=False, capture_output=True
    )
    assert empty.returncode == 2
    assert b"/dev/stdin: expected a first line with the names of the columns, the file is empty" in empty.stderr
