"""``python -m benchmarks.gpu`` without a GPU: whatever goes wrong in a part, the result file has it and the rest."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

FINISHED = """tests/a.py::test_one[x-1] PASSED                                   [ 33%]
tests/a.py::test_two FAILED                                        [ 66%]
tests/a.py::test_three SKIPPED (no)                                [100%]
"""
HUNG = """tests/a.py::test_one[x-1] PASSED                                   [ 33%]
tests/a.py::test_two[a b] ++++++++++++++ Timeout ++++++++++++++
~~~~~~~~~~~~~~~~~~~~~ Stack of MainThread (139) ~~~~~~~~~~~~~~~~~~~~~
"""
CRASHED = "tests/a.py::test_two Fatal Python error: Segmentation fault\n"
NAMES = ["tests/a.py::" + name for name in ("test_one[x-1]", "test_two", "test_two[a b]", "test_three")]


@pytest.mark.parametrize(
    ("text", "died", "outcomes"),
    [
        (
            FINISHED,
            "crashed",
            {
                "tests/a.py::test_one[x-1]": "passed",
                "tests/a.py::test_two": "failed",
                "tests/a.py::test_three": "skipped",
            },
        ),
        (HUNG, "crashed", {"tests/a.py::test_one[x-1]": "passed", "tests/a.py::test_two[a b]": "hung"}),
        (CRASHED, "crashed", {"tests/a.py::test_two": "crashed"}),
        ("tests/a.py::test_two ", "hung", {"tests/a.py::test_two": "hung"}),
    ],
    ids=["finished", "timeout", "crash", "killed"],
)
def test_outcomes(load: Callable[[str], Any], text: str, died: str, outcomes: dict[str, str]) -> None:
    assert load("gpu").parse(text, NAMES, died) == outcomes


@pytest.fixture
def gpu(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, which runs tests of this test's folder, in one process at a time."""
    gpu = load("gpu")
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "TESTS", ("tests/test_some.py",))
    monkeypatch.setattr(gpu, "PROCESSES", 1)
    # Without plugins pytest starts in a fraction of the seconds after which a silent process is killed.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return gpu


FAKES = """
import ctypes, os, time

spoiled = False

def test_before(): pass
def test_wrong():
    global spoiled
    spoiled = True
    assert False
def test_not_spoiled(): assert not spoiled
def test_endless(): time.sleep(600)
def test_segfault(): ctypes.string_at(0)
def test_exits(): os._exit(0)
def test_after(): pass
"""


def test_each_test_is_reported_as_what_it_is(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real thing on fakes that pass, fail, hang and crash; the checker fails, and nothing else is lost."""

    def broken(seconds: float) -> None:
        raise OSError("no driver")

    (tmp_path / "tests" / "test_some.py").write_text(FAKES)
    monkeypatch.setattr(gpu, "SILENT_SECONDS", 5)
    monkeypatch.setattr(gpu, "run_sanitizer", broken)
    monkeypatch.setattr(gpu, "run_benchmark", lambda seconds: {"seconds": seconds})
    assert gpu.check_and_measure(tmp_path / "result.json") == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert {name.split("::")[1]: outcome for name, outcome in result["tests"]["outcomes"].items()} == {
        "test_before": "passed",
        "test_wrong": "failed",
        "test_not_spoiled": "passed",
        "test_endless": "hung",
        "test_segfault": "crashed",
        "test_exits": "crashed",
        "test_after": "passed",
    }
    assert "in test_wrong" in result["tests"]["output"]
    assert "OSError: no driver" in result["sanitizer"]["error"]
    assert 200 < result["benchmark"]["seconds"] < 500
    assert result["machine"]["environment"]


def test_what_was_not_reached_is_reported(gpu: Any, tmp_path: Path) -> None:
    text = "import time\ndef test_slow(): time.sleep(60)\ndef test_after(): pass\n"
    (tmp_path / "tests" / "test_some.py").write_text(text)
    found, _ = gpu.run_tests(9)
    assert found == {"tests/test_some.py::test_slow": "not finished", "tests/test_some.py::test_after": "not reached"}


def test_a_checker_that_is_not_there_or_fails(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for compute-sanitizer: clean, failing, and silent for too long."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "  *racecheck*resident) echo 'RACECHECK SUMMARY: 0 hazards'; echo 'resident: right';;\n"
        "  *memcheck*resident) echo 'ERROR SUMMARY: 0 errors'; exit 3;;\n"
        "  *grouped) sleep 60;;\n"
        "  *) echo 'ERROR SUMMARY: 7 errors'; echo 'step: right';;\n"
        "esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    found = gpu.run_sanitizer(2)
    assert found["racecheck resident"] == "passed"
    assert found["memcheck resident"].startswith("failed with 3: ERROR SUMMARY: 0 errors")
    assert found["memcheck grouped"].startswith("not finished in 2 s")
    assert "ERROR SUMMARY: 7 errors" in found["memcheck step"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would run everything")
def test_needs_a_gpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PyTorch sees no GPU here" in done.stderr
