"""``python -m benchmarks.gpu`` without a GPU: whatever goes wrong in a part, the result file has it and the rest."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tagrank import env

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
WARNED = """tests/a.py::test_one[x-1] PASSED                                   [ 50%]
tests/a.py::test_two FAILED                                        [100%]

=================================== FAILURES ===================================
=============================== warnings summary ===============================
tests/a.py::test_one[x-1]
tests/a.py::test_two
  /torch/some.py:3: UserWarning: torch._prims_common.check: will be removed
-- Docs: https://docs.pytest.org/en/stable/how-to/capture-warnings.html
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
        (WARNED, "crashed", {"tests/a.py::test_one[x-1]": "passed", "tests/a.py::test_two": "failed"}),
        (CRASHED, "crashed", {"tests/a.py::test_two": "crashed"}),
        ("tests/a.py::test_two ", "hung", {"tests/a.py::test_two": "hung"}),
    ],
    ids=["finished", "timeout", "warnings", "crash", "killed"],
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


@pytest.mark.exhaustive
def test_each_test_is_reported_as_what_it_is(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real thing on fakes that pass, fail, hang and crash; the checker fails, and nothing else is lost."""

    def broken(seconds: float, so_far: Callable[[Any], None]) -> None:
        so_far({"memcheck step": "passed"})
        raise OSError("no driver")

    (tmp_path / "tests" / "test_some.py").write_text(FAKES)
    monkeypatch.setattr(gpu, "SILENT_SECONDS", 5)
    monkeypatch.setattr(gpu, "run_sanitizer", broken)
    monkeypatch.setattr(gpu, "run_benchmark", lambda part, seconds, so_far: {"seconds": seconds})
    monkeypatch.setattr(gpu, "run_overhead", lambda seconds, so_far: {"seconds": seconds})
    monkeypatch.setattr(gpu, "run_annotate", lambda seconds, so_far: {"seconds": seconds})
    monkeypatch.setattr(gpu, "run_variants", lambda seconds, so_far: {"seconds": seconds})
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
    assert result["sanitizer"]["memcheck step"] == "passed"
    assert {name: result[name]["seconds"] for name in ("benchmark", "overhead")} == {"benchmark": 170, "overhead": 35}
    assert 0 < result["long"]["seconds"] <= 40
    assert "compiled" not in result
    assert result["machine"]["environment"]
    assert set(result["commits"]) == set(gpu.PARTS)


def test_the_rows_of_the_variants_are_kept(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a wrong one, or a run that failed, is not well."""
    commands = []

    def measured(command: list[str], seconds: float, add: Callable[[dict[str, Any]], None]) -> str:
        commands.append((command, seconds))
        add({"rows": [{"variant": "a", "right": False}]})
        return "failed with 1: no library"

    monkeypatch.setattr(gpu, "_measured", measured)
    known: list[dict[str, Any]] = []
    part = gpu.run_variants(60.0, known.append)
    assert commands == [(["benchmarks.cluster_variants", "--seconds", "54"], 60.0)]
    assert part["rows"] == [{"variant": "a", "right": False}]
    assert len(known) == 1
    assert list(gpu.unsuccessful("variants", part)) == ["variants variants", "wrong in variants"]


def test_some_of_the_tests(gpu: Any, tmp_path: Path) -> None:
    (tmp_path / "tests" / "test_some.py").write_text(FAKES)
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"tests": {"counts": {"failed": 3}}, "commits": {"tests": "before", "long": "old"}}))
    assert gpu.check_and_measure(path, ["tests"], 60, "before or after") == 0
    result = json.loads(path.read_text())
    assert result["tests"]["outcomes"] == {f"tests/test_some.py::test_{name}": "passed" for name in ("before", "after")}
    assert result["tests"]["selected"] == "before or after"
    assert result["commits"]["long"] == "old"
    assert result["commits"]["tests"] != "before"


@pytest.mark.exhaustive
def test_what_was_not_reached_is_reported(gpu: Any, tmp_path: Path) -> None:
    text = "import time\ndef test_slow(): time.sleep(60)\ndef test_after(): pass\n"
    (tmp_path / "tests" / "test_some.py").write_text(text)
    known: list[dict[str, str]] = []
    found, _ = gpu.run_tests(9, known.append)
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
    known: list[dict[str, str]] = []
    found = gpu.run_sanitizer(2, known.append)
    assert known[-1] == found
    assert [len(some) for some in known] == [1 + i for i in range(len(found))]
    assert found["racecheck resident"] == "passed"
    assert found["memcheck resident"].startswith("failed with 3: ERROR SUMMARY: 0 errors")
    assert found["memcheck grouped"].startswith("not finished in 2 s")
    assert "ERROR SUMMARY: 7 errors" in found["memcheck step"]
    assert set(gpu.unsuccessful("sanitizer", found)) == set(found) - {"racecheck resident"}
    assert not [*gpu.unsuccessful("sanitizer", {"compute-sanitizer": "not installed"})]


def test_outcomes_are_known_while_tests_run(gpu: Any, tmp_path: Path) -> None:
    text = "import time\ndef test_quick(): pass\ndef test_slow(): time.sleep(2)\n"
    (tmp_path / "tests" / "test_some.py").write_text(text)
    known: list[dict[str, str]] = []
    gpu.run_tests(60, known.append)
    assert known[0] == {"tests/test_some.py::test_quick": "passed"}
    assert known[-1] == {"tests/test_some.py::test_quick": "passed", "tests/test_some.py::test_slow": "passed"}


#: A stand-in for ``benchmarks.recurrence`` that writes two cases and ends as its dtype says.
RECURRENCE = """
import json, sys, time

options = sys.argv
dtype, path = options[options.index("--dtype") + 1], options[options.index("--json") + 1]
rows = []
for batch in (1, 16):
    rows.append({"dtype": dtype, "B": batch, "H": 8, "T": 2, "mode": "training", "name": "ours", "kind": "ours",
                 "right": dtype != "float32", "error": 1, "of_floor": 1, "speedup": 2, "over_nn_lstm": 3})
    open(path, "w").write(json.dumps({"rows": rows, "failures": [], "rates": {"gflops": 1}}))
    print("a case", flush=True)
    time.sleep(0.3)
if dtype == "float16":
    time.sleep(60)
sys.exit(3 if dtype == "bfloat16" else 0)
"""


@pytest.mark.exhaustive
def test_rows_are_written_as_they_come(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a process that fails, one whose time is over, and one that finishes with a wrong result."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "recurrence.py").write_text(RECURRENCE)
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"tests": {"counts": {"passed": 3}}}))
    sizes: list[int] = []
    put = gpu.Results.put

    def record(self: Any, name: str, part: Any) -> None:
        put(self, name, part)
        sizes.extend([len(json.loads(path.read_text())[name]["rows"])] if name == "benchmark" else [])

    monkeypatch.setattr(gpu.Results, "put", record)
    assert gpu.check_and_measure(path, ["benchmark"], 9) == 1
    assert sizes == sorted(sizes)
    assert {1, 2, 3, 4, 5, 6} == set(sizes)
    result = json.loads(path.read_text())
    assert result["tests"] == {"counts": {"passed": 3}}
    part = result["benchmark"]
    assert [(row["dtype"], row["B"]) for row in part["rows"]] == [
        (dtype, batch) for dtype in ("bfloat16", "float16", "float32") for batch in (1, 16)
    ]
    assert {dtype: how.split(":")[0] for dtype, how in part["ended"].items()} == {
        "bfloat16": "failed with 3",
        "float16": "not finished in its time",
        "float32": "finished",
    }
    assert part["rates"]["float16"] == {"gflops": 1}
    assert set(gpu.unsuccessful("benchmark", part)) == {"benchmark bfloat16", "wrong in benchmark"}
    failures = [{"kind": kind} for kind in ("peer", "ours")]
    assert [*gpu.unsuccessful("long", {"failures": failures[:1]})] == []
    assert [*gpu.unsuccessful("long", {"failures": failures})] == ["error in long"]


@pytest.mark.parametrize("part", ["benchmark", "kernels", "products", "long", "compiled"])
def test_what_a_part_runs_is_what_the_benchmark_takes(
    gpu: Any, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Every option, and every name of a contestant."""
    recurrence, peers = load("recurrence"), load("contestants")
    monkeypatch.setattr(recurrence, "measure_rates", lambda *args: recurrence.Rates(1, 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    lstm = torch.nn.LSTM(8, 8)
    known = {"tagrank auto", "tagrank auto, TF32", "torch.compile", "nn.LSTM (cuDNN)", "nn.LSTM (cuDNN, TF32)"}
    assert peers._in_tf32(peers.Contestant("nn.LSTM (cuDNN)", "peer", lstm, lstm)).name in known
    assert peers._in_tf32(peers.Contestant("tagrank auto", "ours", lstm, lstm)).name in known
    known |= {f"tagrank {name}{precision}" for name in env()["backends"] for precision in ("", ", TF32")}
    known |= {f"tagrank triton product{precision}" for precision in ("", ", TF32")}
    cases: list[tuple[Any, ...]] = []

    def measure(case: Any, rates: Any, seconds: float, compiled: bool, only: Any, without: Any) -> Any:
        cases.append((case.dtype, case.batch, case.hidden, case.steps))
        assert {name.removesuffix(", CUDA graph") for name in only or ()} <= known
        return recurrence.Measured([], [])

    monkeypatch.setattr(recurrence, "measure", measure)
    for options in gpu._runs(part):
        monkeypatch.setattr(sys, "argv", ["recurrence", "--device", "cuda", *options])
        recurrence.main()
    counts = {"benchmark": 3 * 48, "kernels": 4 + 12, "products": 2 * 8, "long": 4, "compiled": 4}
    assert len(cases) == len(set(cases)) == counts[part]


def test_a_variant_in_tf32_is_still_that_variant(load: Callable[[str], Any]) -> None:
    peers, lstm = load("contestants"), torch.nn.LSTM(8, 8)
    inside: list[bool] = []

    @contextmanager
    def only() -> Iterator[None]:
        inside.append(True)
        yield
        inside.clear()

    run = peers._in_tf32(peers.Contestant("tagrank triton grouped", "ours", lstm, lstm, within=only))
    with run.within():
        assert inside
        assert torch.backends.cudnn.allow_tf32
    assert not inside


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would run everything")
def test_needs_a_gpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PyTorch sees no GPU here" in done.stderr
