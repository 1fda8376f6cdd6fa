"""Shared by all data sets: from records to a manifest, on the command line."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from tagrank.data.manifest import Example, read_manifest
from tagrank.data.scenes import write_scenes
from tagrank.data.sets.records import Record, SkipError, make_record, write_records
from tagrank.errors import InputError

Write = Callable[..., Path]
Prepare = Callable[..., Result]


def test_every_set_has_help_with_an_example(prepare: Prepare) -> None:
    for name in ("voc2007", "labelme", "coco", "openimages", "csv"):
        result = prepare(name, "--help")
        assert result.exit_code == 0
        assert f"tagrank prepare {name}" in result.stdout.split("Example:")[1]


def test_an_example_has_each_tag_once() -> None:
    found = make_record("f", "a", [["x", "y", "x"]], "val")
    assert found == ("f", Example("a", ("x", "y"), (("x", "y"),), "val"))
    lists = (("x", "y"), ("y",))
    # Mean reciprocal positions: y (1/2 + 1) / 2, x (1 + 0) / 2.
    assert make_record("f", "a", [["x", "y", "x"], ["y"]], None).example == Example("a", ("y", "x"), lists, None)


def records() -> Iterator[Record]:
    yield make_record("file a", "a", [["x"], ["y", "z"]], None)
    yield SkipError("b", "nothing", fault=False)
    yield SkipError("c", "broken", "badly")
    yield make_record("file b", "./a", [["w"]], None)
    yield make_record("file d", "d", [[" v"]], None)
    yield make_record("file e", "e", [["z", "x"]], "test")


def test_counts(tmp_path: Path) -> None:
    errors: list[str] = []
    out = tmp_path / "m.jsonl"
    counts = write_records(records, out, skip_faults=True, on_fault=lambda error: errors.append(str(error)))
    assert (counts.read, counts.written, counts.tags, counts.faults) == (6, 2, 3, 3)
    assert counts.skipped == {"nothing": 1, "broken": 1, "image there twice": 1, "not fit for a manifest": 1}
    assert errors[0] == "c: broken: badly"
    assert errors[1:] == [
        "file b: image './a' is already in the manifest",
        "file d: tags[0]: expected text without white space around it or control characters in it, got ' v'",
    ]
    assert [e.image for e in read_manifest(out).examples] == ["a", "e"]
    with pytest.raises(SkipError, match="c: broken: badly"):
        write_records(records, out)
    with pytest.raises(SkipError, match="c: broken: badly"):
        write_records(records, out, min_count=2)
    assert len(read_manifest(out)) == 2


def test_min_count_counts_images(tmp_path: Path) -> None:
    out = tmp_path / "m.jsonl"
    counts = write_records(records, out, skip_faults=True, min_count=2)
    # Only x and z are tags of two images. y goes; the images with only w and only " v" have no tag left.
    assert [(e.image, e.tags, e.lists) for e in read_manifest(out).examples] == [
        ("a", ("x", "z"), (("x",), ("z",))),
        ("e", ("z", "x"), (("z", "x"),)),
    ]
    assert (counts.tags, counts.skipped["no tag that 2 images have"], counts.faults) == (2, 2, 1)
    with pytest.raises(
        InputError, match="none of the 6 images is left to write; left out: 4 no tag that 3 images have, 1 "
    ):
        write_records(records, out, skip_faults=True, min_count=3)


def test_the_manifests_folder_must_exist(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    path = write("p.csv", "image,tags\na.jpg,dog\n")
    out = tmp_path / "new" / "m.jsonl"
    result = prepare("csv", path, "--images", tmp_path / "new" / "images", "--no-check-images", "--out", out)
    assert result.exit_code == 2
    assert result.stderr == f"tagrank: {out}: its folder does not exist\n"


def test_only_the_first_faults_are_shown(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    rows = "".join(f"{number}.jpg,dog\n" for number in range(30))
    write("7.jpg")
    result = prepare("csv", write("p.csv", "image,tags\n" + rows), "--on-error", "skip", "--out", tmp_path / "m.jsonl")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == f"tagrank: {tmp_path / '0.jpg'}: image missing"
    assert len(lines) == 21
    assert lines[-1] == "tagrank: and 9 more"
    assert "left out: 29, image missing" in result.stdout


def test_scenes_come_back_through_csv(prepare: Prepare, tmp_path: Path) -> None:
    """The lists of drawn scenes, written as CSV and prepared, give the original manifest."""
    expected = read_manifest(write_scenes(tmp_path, 20, seed=3)).examples
    with (tmp_path / "scenes.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["image", "part", "tags"])
        rows.writerows([e.image, e.split or "", ", ".join(tags)] for e in expected for tags in e.lists)
    options = ("--delimiter", "tab", "--split-column", "part", "--out", tmp_path / "again.jsonl")
    assert prepare("csv", tmp_path / "scenes.csv", *options).exit_code == 0
    again = read_manifest(tmp_path / "again.jsonl").examples
    assert [(e.image, e.lists, e.split) for e in again] == [(e.image, e.lists, e.split) for e in expected]


def test_ctrl_c_leaves_all_files_unchanged(write: Write, tmp_path: Path) -> None:
    path = write("p.csv", "image,tags\n" + "".join(f"{number}.jpg,dog\n" for number in range(300_000)))
    out = write("m.jsonl", "the old one")
    arguments = ["csv", str(path), "--no-check-images", "--overwrite", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tagrank", "prepare", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".m.jsonl.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, "", "tagrank: interrupted\n")
    assert out.read_text() == "the old one"
    assert sorted(os.listdir(tmp_path)) == ["m.jsonl", "p.csv"]


def test_paths_out_of_the_folder(prepare: Prepare, write: Write, tmp_path: Path) -> None:
    outside = write("elsewhere/a.jpg")
    write("photos/b.jpg")
    table = write("photos/tags.csv", f"image,tags\n{outside},dog\n../elsewhere/a.jpg,dog\nb.jpg,cat\n")
    out = tmp_path / "m.jsonl"
    result = prepare("csv", table, "--out", out, "--on-error", "skip")
    assert "left out: 2, image outside of its folder\n" in result.stdout
    assert f"{outside}: image outside of its folder: expected a path below {table.parent}\n" in result.stderr
    assert [e.image for e in read_manifest(out).examples] == ["photos/b.jpg"]


def test_overwrite_replaces_only_manifests(prepare: Prepare, write: Write) -> None:
    write("a.jpg")
    table = write("tags.csv", "image,tags\na.jpg,dog\n")
    result = prepare("csv", table, "--out", table, "--overwrite")
    assert result.exit_code == 2
    assert "replaces only files named .jsonl" in result.stderr
    assert table.read_text() == "image,tags\na.jpg,dog\n"


def test_an_error_of_the_reader_is_raised_if_nothing_was_written_yet(tmp_path: Path) -> None:
    def broken() -> Iterator[Record]:
        yield SkipError("b", "nothing", fault=False)
        raise InputError("the file ends in the middle")

    with pytest.raises(InputError, match="the file ends in the middle"):
        write_records(broken, tmp_path / "m.jsonl", skip_faults=True)


@pytest.mark.parametrize("delimiter", ['"', "\n", "", ";;"])
def test_bad_delimiters(prepare: Prepare, write: Write, tmp_path: Path, delimiter: str) -> None:
    table = write("tags.csv", "image,tags\na.jpg,dog\n")
    result = prepare("csv", table, "--delimiter", delimiter, "--out", tmp_path / "m.jsonl")
    assert result.exit_code == 2
    assert "--delimiter: expected 'tab' or one character" in result.stderr
