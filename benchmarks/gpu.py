"""Check and measure the GPU kernels on this machine, into one result file: ``make gpu``. Needs no network.

In turn: the GPU tests, in some processes at once; compute-sanitizer on small problems, where it is there; the benchmark
of the recurrence against its peers. A test that hangs ends at its timeout, is reported as that, and the others go on.
The result says how each went, so that ``tagrank.kernels.verified`` can rest on it.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, write
from tagrank import lstm_recurrence
from tagrank.recurrence import triton
from tagrank.recurrence.eager import lstm_loop

TESTS = (
    "tests/recurrence/test_gpu.py",
    "tests/recurrence/test_op.py",
    "tests/kernels/test_cell.py",
    "tests/test_nn.py",
)
PROCESSES = 6
VARIANTS = ("resident", "grouped", "step")
#: Seconds for each part at most, so that all of it takes less than nine minutes. A test has one of its own.
TEST_SECONDS, SANITIZER_SECONDS, BENCHMARK_SECONDS = 240, 70, 180

Outcomes = dict[str, str]
_LINE = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_STARTED = re.compile(r"^(tests/\S+::.+?)\s*(\++ Timeout \++)?$")


def run_tests(seconds: float) -> tuple[Outcomes, str]:
    """The outcome of each test, and the output of those processes in which one failed."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *TESTS]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    names = [line for line in listed.stdout.splitlines() if "::" in line]
    if not names:
        return {"collection": "failed"}, listed.stdout + listed.stderr
    end = time.monotonic() + seconds
    outcomes: Outcomes = {}
    output = []
    with ThreadPoolExecutor(PROCESSES) as pool:
        for some, text in pool.map(lambda i: _run_some(names[i::PROCESSES], end), range(PROCESSES)):
            outcomes |= some
            output += [text] if {"failed", "error", "hung", "crashed"} & set(some.values()) else []
    return outcomes, "\n".join(output)


def _run_some(names: Sequence[str], end: float) -> tuple[Outcomes, str]:
    """Run tests in a process, and after one that ends the process, the rest in another."""
    outcomes: Outcomes = {}
    output = ""
    while left := [name for name in names if name not in outcomes]:
        seconds = end - time.monotonic()
        if seconds < 5:
            return outcomes | dict.fromkeys(left, "not reached"), output
        options = ["-v", "--tb=short", "--timeout=60", "--timeout-method=thread", "-p", "no:cacheprovider"]
        text, finished = _run([sys.executable, "-m", "pytest", *options, *left], seconds)
        output += text
        before = len(outcomes)
        outcomes |= parse(text, finished)
        if len(outcomes) == before:
            return outcomes | dict.fromkeys(left, "crashed"), output
    return outcomes, output


def parse(text: str, finished: bool) -> Outcomes:
    """From ``pytest -v``: each test's outcome; one that started and has none took the process with it.

    Args:
        text: what pytest printed.
        finished: whether it ended by itself.
    """
    outcomes: Outcomes = {}
    started = None
    for line in text.splitlines():
        if match := _LINE.match(line):
            outcomes[match[1]] = match[2].lower()
            started = None
        elif match := _STARTED.match(line):
            started = match[1]
    if started is not None and started not in outcomes:
        outcomes[started] = "hung" if not finished or "Timeout" in text else "crashed"
    return outcomes


def _run(command: Sequence[str], seconds: float, **variables: str) -> tuple[str, bool]:
    """Output, and whether the command ended within that time; else it is killed."""
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables, start_new_session=True
        )
        try:
            process.wait(max(seconds, 1))
            finished = True
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            finished = False
        file.seek(0)
        return file.read(), finished


def run_sanitizer(seconds: float) -> dict[str, str]:
    """For each of compute-sanitizer's tools and each variant: ``passed``, ``hung``, or the end of what it said."""
    path = shutil.which("compute-sanitizer")
    if path is None:
        return {"compute-sanitizer": "not installed"}

    def run(tool: str, variant: str) -> str:
        command = [path, "--tool", tool, sys.executable, "-m", "benchmarks.gpu", "--small", variant]
        # PyTorch's own allocator would hand out memory beyond an array without the tool seeing it.
        text, finished = _run(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        clean = "ERROR SUMMARY: 0 errors" in text or "RACECHECK SUMMARY: 0 hazards" in text
        return "passed" if clean and f"{variant}: right" in text else text[-2000:] if finished else "hung"

    cases = list(itertools.product(("memcheck", "racecheck"), VARIANTS))
    with ThreadPoolExecutor(len(cases)) as pool:
        said = list(pool.map(lambda case: run(*case), cases))
    return {" ".join(case): what for case, what in zip(cases, said, strict=True)}


def run_small(name: Any) -> None:
    """What compute-sanitizer watches: both passes of a variant, on rows and units that fill no tile."""
    for hidden, steps in ((48, 1), (112, 3)):
        generator = torch.Generator().manual_seed(0)
        shapes = (19, 4 * hidden), (4 * hidden, hidden), (19, hidden), (19, hidden)
        inputs = [torch.randn(s, generator=generator).mul(0.1).half().cuda().requires_grad_() for s in shapes]
        exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        with triton.forced(forward=name, backward=name):
            output, _ = lstm_recurrence(*inputs, steps=steps, backend="triton")
            got = [output, *torch.autograd.grad(output.sum(), inputs)]
        output, _ = lstm_loop(*exact, steps)
        for a, b in zip(got, [output, *torch.autograd.grad(output.sum(), exact)], strict=True):
            assert (a.double() - b).norm() <= 5e-3 * b.norm()
    print(f"{name}: right")


def run_benchmark(seconds: float) -> dict[str, Any]:
    """The rows of ``benchmarks.recurrence`` in bfloat16, as many as there was time for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        sizes = ["-H", "128", "256", "512", "1024", "-B", "1", "16", "64", "256", "-T", "5", "10", "20"]
        options = ["--device", "cuda", "--dtype", "bfloat16", "--no-compile", "--seconds", "0.05", *sizes]
        command = [sys.executable, "-m", "benchmarks.recurrence", *options, "--json", str(path)]
        text, finished = _run(command, seconds)
        result: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {"rows": []}
    result["finished"] = finished
    if not result["rows"]:
        result["output"] = text[-4000:]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="result file (default: benchmarks/results/gpu-<capability>.json)")
    parser.add_argument("--small", choices=VARIANTS, help="run small problems of this variant alone, for a checker")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    if arguments.small:
        run_small(arguments.small)
        return 0
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    path = arguments.json or Path(f"benchmarks/results/gpu-{capability}.json")
    result = describe() | {"tests": {}, "sanitizer": {}, "benchmark": {}}

    result["tests"], output = run_tests(TEST_SECONDS)
    print(output, dict(Counter(result["tests"].values())), sep="\n", flush=True)
    # Written after each part: whatever comes later, this is known.
    write(path, result)
    result["sanitizer"] = run_sanitizer(SANITIZER_SECONDS)
    print(*(f"{name}: {said}" for name, said in result["sanitizer"].items()), sep="\n", flush=True)
    write(path, result)
    result["benchmark"] = run_benchmark(BENCHMARK_SECONDS)
    print(*result["benchmark"].get("summary", ["no row was measured"]), sep="\n")
    write(path, result)
    wrong = sorted({*result["tests"].values()} - {"passed", "skipped", "xfail"})
    print(f"{path}: {'tests ' + ', '.join(wrong) if wrong else 'all tests passed'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
