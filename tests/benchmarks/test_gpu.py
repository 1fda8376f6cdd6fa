"""``python -m benchmarks.gpu`` without a GPU: whatever goes wrong in a part, the result file has it and the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# Tests never have the repository's root on their path, as `kernels` there is not the package of that name.
PRELUDE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import json\n"
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


def parse(text: str, died: str) -> dict[str, str]:
    code = PRELUDE + f"from benchmarks.gpu import parse\nprint(json.dumps(parse({text!r}, {NAMES!r}, {died!r})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


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
def test_outcomes(text: str, died: str, outcomes: dict[str, str]) -> None:
    assert parse(text, died) == outcomes


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


def test_each_test_is_reported_as_what_it_is(tmp_path: Path) -> None:
    """The real thing on fakes that pass, fail, hang and crash; the checker fails, and nothing else is lost."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_some.py").write_text(FAKES)
    file = tmp_path / "result.json"
    code = (
        PRELUDE + "import benchmarks.gpu as gpu\nfrom pathlib import Path\n"
        "gpu.TESTS, gpu.PROCESSES, gpu.SILENT_SECONDS = ('tests/test_some.py',), 1, 6\n"
        "def broken(seconds): raise OSError('no driver')\n"
        "gpu.run_sanitizer = broken\n"
        "gpu.run_benchmark = lambda seconds: {'seconds': seconds}\n"
        f"print(gpu.check_and_measure(Path({str(file)!r})))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"
    result = json.loads(file.read_text())
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


def test_what_was_not_reached_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_some.py").write_text("import time\ndef test_slow(): time.sleep(60)\ndef test_after(): pass\n")
    code = PRELUDE + (
        "import benchmarks.gpu as gpu\ngpu.TESTS, gpu.PROCESSES = ('tests/test_some.py',), 1\n"
        "print(json.dumps(gpu.run_tests(12)[0]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found == {"tests/test_some.py::test_slow": "not finished", "tests/test_some.py::test_after": "not reached"}


def test_a_checker_that_is_not_there_or_fails(tmp_path: Path) -> None:
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
    code = PRELUDE + "from benchmarks.gpu import run_sanitizer\nprint(json.dumps(run_sanitizer(2)))"
    paths = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=ENVIRONMENT | {"PATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
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
