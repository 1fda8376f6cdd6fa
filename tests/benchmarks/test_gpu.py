"""``python -m benchmarks.gpu``: what it reads from pytest, and that it needs a GPU."""

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
CRASHED = "tests/a.py::test_two \nFatal Python error: Segmentation fault\n"


def parse(text: str, finished: bool) -> dict[str, str]:
    code = PRELUDE + f"from benchmarks.gpu import parse\nprint(json.dumps(parse({text!r}, {finished})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("text", "finished", "outcomes"),
    [
        (
            FINISHED,
            True,
            {
                "tests/a.py::test_one[x-1]": "passed",
                "tests/a.py::test_two": "failed",
                "tests/a.py::test_three": "skipped",
            },
        ),
        (HUNG, True, {"tests/a.py::test_one[x-1]": "passed", "tests/a.py::test_two[a b]": "hung"}),
        (CRASHED, True, {"tests/a.py::test_two": "crashed"}),
        (CRASHED.splitlines()[0], False, {"tests/a.py::test_two": "hung"}),
    ],
    ids=["finished", "timeout", "crash", "killed"],
)
def test_outcomes(text: str, finished: bool, outcomes: dict[str, str]) -> None:
    assert parse(text, finished) == outcomes


def test_a_test_that_hangs_is_reported_and_the_rest_runs(tmp_path: Path) -> None:
    """The real thing, with tests that do not need a GPU."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_some.py").write_text(
        "import time, pytest\n"
        "def test_before(): pass\n"
        "@pytest.mark.timeout(1)\n"
        "def test_endless(): time.sleep(60)\n"
        "def test_after(): assert False\n"
    )
    code = (
        PRELUDE + "import benchmarks.gpu as gpu\ngpu.TESTS, gpu.PROCESSES = ('tests/test_some.py',), 1\n"
        "print(json.dumps(gpu.run_tests(60)[0]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    found = {name.split("::")[1]: outcome for name, outcome in json.loads(done.stdout).items()}
    assert found == {"test_before": "passed", "test_endless": "hung", "test_after": "failed"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run all of it")
def test_needs_a_gpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PyTorch sees no GPU here" in done.stderr
