"""The benchmarks of a million images, on fewer: a feature store that is killed and resumed, and tagrank prepare."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def store(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.store", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_and_resumed(tmp_path: Path) -> None:
    sizes = ("--rows", 30_000, "-D", 8, "--rows-per-shard", 500)
    done = store(*sizes, "--folder", tmp_path, "--json", tmp_path / "store.json")
    assert done.returncode == 0, done.stderr
    survived, resumed, sample, everything = json.loads((tmp_path / "store.json").read_text())["rows"]
    assert 29 * 500 <= survived["there"] < 30_000
    assert survived["there"] % 500 == 0
    assert survived["there"] + resumed["rows"] == everything["there"] == everything["rows"] == 30_000
    assert sample["rows"] == 10_000
    assert all(result["right"] for result in (survived, sample, everything))
    assert f"{resumed['peak_mb']:.0f} MB" in done.stdout
    assert os.listdir(tmp_path) == ["store.json"], "the store is removed"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_wrong_vector_is_noticed(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store, folder = load("store"), tmp_path / "store"
    store.fill(folder, 1000, 4, 100)
    assert store.check(folder, 1000, 4, 0)["right"]
    assert store.check(folder, 1000, 4, 50)["right"]
    assert not store.check(folder, 999, 4, 0)["right"]
    right = store.vectors
    monkeypatch.setattr(store, "vectors", lambda rows, dimension: right(rows, dimension) + (rows[:, None] == 777))
    assert not store.check(folder, 1000, 4, 0)["right"]


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_prepare_does_not_keep_what_it_reads(tmp_path: Path) -> None:
    sizes = ("--images", "100", "10000", "--folder", str(tmp_path), "--json", str(tmp_path / "prepare.json"))
    command = [sys.executable, "-m", "benchmarks.prepare", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    prepared, read = json.loads((tmp_path / "prepare.json").read_text())["rows"][2:]
    assert (prepared["name"], prepared["images"]) == ("prepare openimages", 10_000)
    # An image has eight rows of 100 bytes in the file. As Python strings they would take about 5 KB.
    assert prepared["bytes_an_image"] < 1000
    assert 100 < read["bytes_an_image"] < 2000
    assert os.listdir(tmp_path) == ["prepare.json"], "the set is removed"
