"""``--device``, and the memory that a command keeps."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tagrank.cli import app
from tagrank.cli.app import chosen_device
from tagrank.errors import InputError
from tagrank.features import devices
from tagrank.model_files import CONFIG, VOCABULARY, WEIGHTS


@pytest.mark.parametrize(
    "command",
    [
        ("features", "{folder}", "--out", "{folder}/out", "--backbone", "efficientnet_lite0"),
        ("annotate", "{folder}", "{folder}"),
        ("index", "{folder}", "{folder}", "--out", "{folder}/out"),
        ("evaluate", "{folder}", "{folder}/photos.jsonl"),
        ("report", "{folder}", "{folder}/photos.jsonl", "--out", "{folder}/out.html"),
        ("train", "{folder}/photos.jsonl", "--out", "{folder}/out", "--backbone", "small_cnn"),
    ],
    ids=lambda command: command[0],
)
def test_a_device_that_is_not_there(command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, before a model or weights are loaded."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in (CONFIG, VOCABULARY, WEIGHTS):  # a model, as far as one looks before it is read
        (tmp_path / name).write_text("{}")
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "photos.jsonl").write_text(json.dumps({"image": "a.png", "tags": ["dog"]}) + "\n")
    given = [part.format(folder=tmp_path) for part in command]
    result = CliRunner().invoke(app, [*given, "--device", "cuda:1"])
    assert result.exit_code == 2, result.output
    assert result.stderr == "tagrank: device: cuda:1: PyTorch sees no NVIDIA GPU here\n"
    assert not (tmp_path / "out").exists()


def test_auto_says_that_it_takes_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    there = torch.device("cpu")
    monkeypatch.setattr(devices, "find_device", lambda name: there if name == "auto" else torch.device(name))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert chosen_device("auto") == "cpu"
    assert capsys.readouterr() == ("", "")
    there = torch.device("cuda")
    assert chosen_device("auto") == "cuda"
    assert capsys.readouterr() == ("", "tagrank: computing on cuda (NVIDIA H100)\n")
    # Who names the device knows it.
    assert chosen_device("cuda") == "cuda"
    assert capsys.readouterr() == ("", "")


def test_unknown_device() -> None:
    with pytest.raises(InputError, match="device: expected auto, cpu, cuda, cuda:N or mps, got 'tpu'"):
        chosen_device("tpu")


FAULTS = """
import resource, sys
from tagrank.allocator import keep_memory
keep_memory()
import torch

def run():
    for _ in range(20):
        torch.ones(10_000_000)  # 40 MB: beyond the largest threshold that glibc chooses by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(-run() + run())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
@pytest.mark.parametrize(
    ("variables", "kept"),
    [({}, True), pytest.param({"MALLOC_MMAP_THRESHOLD_": "131072"}, False, marks=pytest.mark.exhaustive)],
)
def test_memory_is_kept_unless_variables_say_otherwise(variables: dict[str, str], kept: bool) -> None:
    clean: dict[str, Any] = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=clean | variables, capture_output=True, text=True, check=True, timeout=100)
    # Each array has 9,766 pages of 4 KB, which the second round has already or needs again.
    assert (int(done.stdout) < 5000) is kept
