"""Options that say where a command runs, and the shards of a WebDataset, on the engine local."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from other_processes import is_alive, until
from PIL import Image
from typer.testing import CliRunner, Result

from tagrank import Annotator, TagRanker
from tagrank.cli import app
from tagrank.data.vocabulary import Vocabulary
from tagrank.features.backbones import load_backbone
from tagrank.features.store import open_features


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, photographs, and the same photographs in two shards of a WebDataset."""
    folder = tmp_path_factory.mktemp("engine")
    backbone = load_backbone("small_cnn")
    ranker = TagRanker(backbone.feature_size, 3, max_length=3, embedding_size=4, hidden_size=4)
    Annotator(ranker, Vocabulary(["dog", "ball", "cat"]), backbone.spec, backbone=backbone).save(folder / "model")
    torch.save(backbone.network.state_dict(), folder / "cnn.pth")
    (folder / "photos").mkdir()
    for shard in ("0", "1"):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for i in range(3):
                photo = folder / "photos" / f"{shard}{i}.png"
                Image.effect_noise((70, 60 + i), 80).convert("RGB").save(photo)
                archive.add(photo, photo.name)
                photo.with_suffix(".txt").write_text("a caption")
                archive.add(photo.with_suffix(".txt"), photo.with_suffix(".txt").name)
    return folder


def tagrank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def lists(done: Result) -> list[tuple[str, Any]]:
    records = map(json.loads, done.stdout.splitlines())
    return [(Path(record["image"]).name, record["tags"]) for record in records]


def test_shards_are_annotated_like_files(folder: Path) -> None:
    command = ("annotate", folder / "model", "--format", "jsonl")
    files, shards = tagrank(*command, folder / "photos"), tagrank(*command, folder / "0.tar", folder / "1.tar")
    assert files.exit_code == shards.exit_code == 0
    assert lists(files) == lists(shards)
    assert [json.loads(line)["image"] for line in shards.stdout.splitlines()][4] == f"{folder}/1.tar/11.png"
    rest = tagrank(*command, folder / "0.tar", "--given", "dog", "--format", "csv")
    assert rest.exit_code == 0
    assert rest.stdout.splitlines()[1].startswith(f"{folder}/0.tar/00.png,2,")


def test_the_store_of_shards_is_that_of_files(folder: Path, tmp_path: Path) -> None:
    command = ("features", "--backbone", "small_cnn", "--weights", folder / "cnn.pth", "--out")
    assert tagrank(*command, tmp_path / "files", folder / "photos").exit_code == 0
    done = tagrank(*command, tmp_path / "shards", folder / "0.tar", folder / "1.tar")
    assert done.stdout.endswith("6 images added, 0 were there, 0 failed\n")
    assert open_features(tmp_path / "shards").names == tuple(f"{shard}{i}.png" for shard in "01" for i in range(3))
    for name in ("index.json", "features-00000.safetensors"):
        assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "files" / name).read_bytes()


def test_a_damaged_shard_is_reported_and_the_rest_annotated(folder: Path, tmp_path: Path) -> None:
    content = (folder / "0.tar").read_bytes()
    (tmp_path / "half.tar").write_bytes(content[: len(content) // 2])
    done = tagrank("annotate", folder / "model", tmp_path / "half.tar", folder / "1.tar", "--format", "jsonl")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"tagrank: {tmp_path}/half.tar: ")
    assert len(done.stderr.splitlines()) == 1
    assert {name[0] for name, _ in lists(done)} == {"0", "1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "html"], "--write and --format html are for photographs in files of their own"),
        (["--write", "sidecar"], "--write and --format html are for photographs in files of their own"),
        (["--address", "auto"], "--address goes with --engine ray"),
        (["--engine", "ray", "--compile"], "--compile: expected --engine local"),
    ],
)
def test_options_that_do_not_go_together(folder: Path, options: list[str], message: str) -> None:
    done = tagrank("annotate", folder / "model", folder / "0.tar", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tagrank: {message}")


def test_ray_that_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    for command in (("annotate", folder / "model"), ("features", "--out", folder / "no")):
        done = tagrank(*command, folder / "photos", "--engine", "ray")
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.endswith("pip install 'tagrank[ray]'\n")
        assert len(done.stderr.splitlines()) == 1


def test_a_cluster_that_cannot_be_reached(folder: Path) -> None:
    pytest.importorskip("ray")
    done = tagrank("annotate", folder / "model", folder / "photos", "--engine", "ray", "--address", "ray://a:1")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "address: expected HOST:PORT, auto or local, got 'ray://a:1'" in done.stderr


def descendants(process: int) -> Iterator[int]:
    """The processes that a process and its children started."""
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = list(map(int, file.read_text().split()))
        except OSError:
            continue
        for child in children:
            yield child
            yield from descendants(child)


def is_worker(process: int) -> bool:
    try:
        return b"ray::MapWorker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.exhaustive
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT], ids=["a worker is killed", "Ctrl-C"])
def test_a_cluster_of_its_own(folder: Path, tmp_path: Path, signal_: signal.Signals) -> None:
    """The command as it is started in a shell; its cluster ends with it."""
    pytest.importorskip("ray")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(400):
        (photos / f"{i:04d}.png").symlink_to(folder / "photos" / f"{i % 2}{i % 3}.png")
    command = [sys.executable, "-m", "tagrank", "annotate", str(folder / "model"), str(photos), "--format", "jsonl"]
    command += ["--engine", "ray", "--address", "local", "--device", "cpu"]
    out, errors = tmp_path / "out", tmp_path / "errors"
    with out.open("w") as stdout, errors.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
        until(lambda: out.stat().st_size > 0 or process.poll() is not None, 200)
        started = list(descendants(process.pid))
        workers = list(filter(is_worker, started))
        assert workers, errors.read_text()
        if signal_ is signal.SIGKILL:
            os.kill(workers[0], signal_)
        else:
            os.killpg(process.pid, signal_)  # as a terminal does
        code = process.wait(timeout=200)
    until(lambda: not any(map(is_alive, started)), 200)
    records = [json.loads(line)["image"] for line in out.read_text().splitlines()]
    expected = sorted(map(str, photos.iterdir()))
    if signal_ is signal.SIGKILL:
        assert code == 0, errors.read_text()
        assert records == expected
    else:
        assert code == 130
        assert records == expected[: len(records)]
        assert "tagrank: interrupted" in errors.read_text().splitlines()
        assert "Traceback" not in errors.read_text()
