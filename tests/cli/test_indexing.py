"""The command line: an index is brought up to date, moved, and interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.cli import app
from tagrank.data.vocabulary import Vocabulary
from tagrank.features.backbones import load_backbone
from tagrank.retrieval import open_index
from tagrank.retrieval.index_file import read_contents

WRITTEN = Path(__file__).parents[1] / "compatibility" / "written"
COUNT = 12


def tagrank(*args: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = load_backbone("small_cnn", "none")
    ranker = TagRanker(backbone.feature_size, 3, max_length=3, embedding_size=8, hidden_size=8)
    folder = tmp_path_factory.mktemp("model") / "model"
    spec = backbone.spec | {"weights": "trained with the ranker"}
    Annotator(ranker, Vocabulary(["dog", "ball", "man"]), spec, backbone=backbone).save(folder)
    return folder


def paint(path: Path, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (40, 40, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photographs."""
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    for number in range(COUNT):
        paint(tmp_path / "photos" / ("trip" if number % 2 else "") / f"{number:02d}.png", number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(index: Path | str, *options: Any) -> list[str]:
    result = tagrank("search", index, "dog", "--top-k", 99, "--format", "jsonl", *options)
    return [json.loads(line)["image"] for line in result.stdout.splitlines()]


def predictions(index: Path) -> dict[str, list[float]]:
    """By the names of photographs."""
    opened = open_index(index)
    scores = [opened.scores([tag]).tolist() for tag in opened.tags]
    return dict(zip(opened.names(), map(list, zip(*scores, strict=True)), strict=True))


def test_an_update_gives_the_index_of_a_new_start(model: Path, home: Path) -> None:
    arguments = ("index", model, "photos", "--out", "index")
    first = tagrank(*arguments)
    assert first.stdout == f"index: {COUNT} photographs added, 0 were there, 0 failed; {COUNT} in all\n"
    assert list(predictions(home / "index")) == sorted(found("index"), key=lambda name: name.split("/"))
    inode = (home / "index" / "index.json").stat().st_ino
    again = tagrank(*arguments)
    assert again.stdout == f"index: 0 photographs added, {COUNT} were there, 0 failed; {COUNT} in all\n"
    assert (home / "index" / "index.json").stat().st_ino == inode
    Path("photos/00.png").unlink()
    paint(Path("photos/02.png"), 99)
    paint(Path("photos/015.png"), 98)
    os.utime("photos/04.png")
    Path("photos/trip/03.png").rename("photos/zoo.png")
    line = tagrank(*arguments).stdout
    assert line == (
        f"index: 3 photographs added, {COUNT - 3} were there, 0 failed; {COUNT} in all; 3 left, gone or changed; "
        "1 were computed before\n"
    )
    tagrank("index", model, "photos", "--out", "fresh")
    assert list(predictions(home / "index")) == list(predictions(home / "fresh"))
    for name, scores in predictions(home / "fresh").items():
        # A feature depends on the batch, a little.
        assert predictions(home / "index")[name] == pytest.approx(scores, rel=2e-3)
    contents = read_contents(home / "index")
    assert {path.name for path in (home / "index").iterdir()} == {
        "index.json",
        *(f"photos-{n:05d}.safetensors" for n in contents.numbers),
    }


def test_photographs_are_found_from_anywhere(model: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagrank("index", model, "photos", "--out", "index")
    here = found("index")
    assert set(here) == {f"photos/{path.relative_to(home / 'photos')}" for path in (home / "photos").rglob("*.png")}
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert found("../index") == [str(home / name) for name in here]
    like = tagrank("search", "../index", "--like", "../photos/00.png", "--format", "jsonl", "--top-k", 99).stdout
    images = [json.loads(line)["image"] for line in like.splitlines()]
    assert len(images) == COUNT - 1
    assert all(Path(image).is_file() for image in images)
    again = tagrank("index", model, "../photos", "--out", "../index").stdout
    assert again == f"../index: 0 photographs added, {COUNT} were there, 0 failed; {COUNT} in all\n"


def test_moved_photographs(model: Path, home: Path) -> None:
    """Search says where they are now; index notes it, and computes nothing."""
    tagrank("index", model, "photos", "--out", "index", "--root", "photos")
    names = found("index", "--root", "photos")
    assert set(names) == {f"photos/{path.relative_to(home / 'photos')}" for path in (home / "photos").rglob("*.png")}
    Path("photos").rename("moved")
    assert not Path(found("index")[0]).exists()
    assert found("index", "--root", "moved") == [name.replace("photos", "moved", 1) for name in names]
    like = tagrank("search", "index", "--like", "moved/00.png", "--root", "moved", "--format", "jsonl").stdout
    assert len(like.splitlines()) == COUNT - 1
    line = tagrank("index", model, "moved", "--out", "index", "--root", "moved").stdout
    assert line == f"index: 0 photographs added, {COUNT} were there, 0 failed; {COUNT} in all\n"
    assert found("index") == [str(home / name.replace("photos", "moved", 1)) for name in names]
    assert "none: no such file or directory" in tagrank("search", "index", "dog", "--root", "none", code=2).stderr
    error = tagrank("index", model, "--features", WRITTEN / "features", "--root", "moved", "--out", "i", code=2).stderr
    assert error == "tagrank: --root goes with photographs, not with --features\n"


def test_two_that_are_alike_are_moved(model: Path, home: Path) -> None:
    for name in ("a.png", "b.png"):
        (home / "alike").mkdir(exist_ok=True)
        paint(home / "alike" / name, 99)
    tagrank("index", model, "alike", "--out", "index")
    (home / "alike").rename(home / "elsewhere")
    line = tagrank("index", model, "elsewhere", "--out", "index").stdout
    assert line.startswith("index: 2 photographs added, 0 were there, 0 failed; 2 in all; 2 left")
    assert sorted(found("index")) == ["elsewhere/a.png", "elsewhere/b.png"]


def test_moved_without_a_word(model: Path, home: Path) -> None:
    """Their content tells, and the old names leave."""
    tagrank("index", model, home / "photos", "--out", "index")
    Path("photos").rename("moved")
    line = tagrank("index", model, home / "moved", "--out", "index").stdout
    assert line == (
        f"index: {COUNT} photographs added, 0 were there, 0 failed; {COUNT} in all; {COUNT} left, gone or changed; "
        f"{COUNT} were computed before\n"
    )
    assert all(Path(name).is_file() for name in found("index"))


def test_an_interrupted_update_goes_on(model: Path, home: Path) -> None:
    """Ctrl-C keeps what was computed; meanwhile, and after it, the index is the old one."""
    tagrank("index", model, "photos", "--out", "index")
    before = predictions(home / "index")
    many = home / "photos" / "many"
    many.mkdir()
    for number in range(1200):
        shutil.copy(home / "photos" / "00.png", many / f"{number:04d}.png")
        with (many / f"{number:04d}.png").open("ab") as file:  # another content, and size
            file.write(f"{number}".encode())
    command = [sys.executable, "-m", "tagrank", "index", model, "photos", "--out", "index"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (home / "index" / "update" / "index.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert predictions(home / "index") == before
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "tagrank: interrupted")
    assert predictions(home / "index") == before
    waiting = len(open_index(home / "index" / "update"))
    assert waiting >= 256
    line = tagrank("index", model, "photos", "--out", "index").stdout
    assert line.startswith(f"index: 1200 photographs added, {COUNT} were there, 0 failed; {COUNT + 1200} in all; ")
    assert line.endswith(f"; {waiting} were computed before\n")
    assert not (home / "index" / "update").exists()
    assert len(predictions(home / "index")) == COUNT + 1200


def test_an_index_of_an_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a feature store: it is searched as before, a store adds to it, and its names are no paths here."""
    written = shutil.copytree(WRITTEN, tmp_path / "written")
    monkeypatch.chdir(tmp_path)
    before = tagrank("search", written / "index", "dog", "--top-k", 99, "--format", "jsonl").stdout
    assert len(before.splitlines()) == 24
    content = {path.name: path.read_bytes() for path in (written / "index").iterdir()}
    line = tagrank("index", written / "ensemble", "--features", written / "features", "--out", written / "index").stdout
    assert line == f"{written / 'index'}: 0 photographs added, 24 were there, 0 failed; 24 in all\n"
    after = tagrank("search", written / "index", "dog", "--top-k", 99, "--format", "jsonl").stdout
    assert after == before
    assert {path.name for path in (written / "index").iterdir()} >= {"index.json"}
    assert content.keys() == {f"photos-{n:05d}.safetensors" for n in range(3)} | {"index.json"}
