"""Check and measure the GPU kernels on this machine, and write one result file: make gpu. Needs no network.

The parts, one after another:

- the GPU tests, in several processes at once. A test that hangs is killed and reported as "hung". After a test that
  fails, a new process runs the rest: an error on a GPU may stay with the process, and then spoils all later tests.
- compute-sanitizer on small problems, if it is installed.
- the benchmark of the recurrence against its peers, with a process for each H.

The result file is written after each part. An entry in tagrank.kernels.verified rests on its outcomes.
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
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.machine import describe, write
from benchmarks.recurrence import summary
from tagrank import lstm_recurrence
from tagrank.recurrence.backends import FUSED
from tagrank.recurrence.backends.eager import lstm_loop

TESTS = (
    "tests/recurrence/test_gpu.py",
    "tests/recurrence/test_op.py",
    "tests/kernels/test_arithmetic.py",
    "tests/nn/test_nn.py",
)
PROCESSES = 6
#: Without --strict-markers: plugins may be missing, and their marks are then unknown. Hung tests are found without one.
PYTEST = ("-o", "addopts=--import-mode=importlib")
#: The kernels of each backend for GPUs by name: the backend, and what makes a context in which it runs no others.
KERNELS = {
    name: (backend, only)
    for backend in FUSED.values()
    if backend.device == "cuda"
    for name, only in backend.variants().items()
}
HIDDEN = (128, 256, 512, 1024)
#: The most seconds for the tests, and for compute-sanitizer.
TEST_SECONDS, SANITIZER_SECONDS = 220, 60
#: The seconds for everything. The benchmark gets what the other parts leave.
ALL_SECONDS = 430
#: A test process that prints nothing for this many seconds hangs.
SILENT_SECONDS = 50
#: How many characters of a process's output go into the result file.
TAIL = 4000
#: A test with one of these outcomes has its process's output in the result file.
UNSUCCESSFUL = {"failed", "error", "hung", "crashed", "not finished"}

Outcomes = dict[str, str]
_NAME = re.compile(r"^tests/\S+::")
_OUTCOME = re.compile(r" (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


def run_tests(seconds: float) -> tuple[Outcomes, str]:
    """The outcome of each test, and the output of the processes in which a test did not succeed."""
    end = time.monotonic() + seconds
    text, code = _run([sys.executable, "-m", "pytest", *PYTEST, "--collect-only", "-q", *TESTS], seconds)
    names = [line for line in text.splitlines() if _NAME.match(line)]
    if code != 0 or not names:
        return {"collection": "failed"}, text
    outcomes: Outcomes = {}
    output = []
    with ThreadPoolExecutor(PROCESSES) as pool:
        for some, text in pool.map(lambda i: _run_group(names[i::PROCESSES], end), range(PROCESSES)):
            outcomes |= some
            output += [text] if UNSUCCESSFUL & set(some.values()) else []
    return outcomes, "\n".join(output)


def _run_group(names: Sequence[str], end: float) -> tuple[Outcomes, str]:
    """Run tests in one process. After a test that fails or ends the process, run the rest in a new process.

    ``end`` is the time (``time.monotonic``) at which they must be finished.
    """
    outcomes: Outcomes = {}
    output = ""
    while left := [name for name in names if name not in outcomes]:
        seconds = end - time.monotonic()
        if seconds < 5:
            return outcomes | dict.fromkeys(left, "not reached"), output
        options = [*PYTEST, "-v", "-x", "--tb=short", "-p", "no:cacheprovider"]
        text, code = _run([sys.executable, "-m", "pytest", *options, *left], seconds, SILENT_SECONDS)
        output += text
        before = len(outcomes)
        # Without a status the process was killed, because it was silent or because the time was over.
        died = "crashed" if code is not None else "hung" if time.monotonic() < end else "not finished"
        outcomes |= parse(text, left, died)
        if len(outcomes) == before:  # no test started, so that a new process would not get further either
            return outcomes | dict.fromkeys(left, "crashed"), output
    return outcomes, output


def parse(text: str, names: Sequence[str], died: str) -> Outcomes:
    """The outcome of each test that the output of ``pytest -v`` names.

    A test that started and has no outcome ended the process.

    Args:
        text: what pytest printed.
        names: the names of the tests that it was to run.
        died: the outcome of the test that ended the process, unless pytest reports a timeout: then it is ``"hung"``.
    """
    outcomes: Outcomes = {}
    started = None
    for line in text.splitlines():
        # What a process prints when it dies may follow the test's name in the same line.
        named = [name for name in names if line.startswith(name) and line[len(name) :][:1] in ("", " ")]
        if not named:
            continue
        started = max(named, key=len)
        if match := _OUTCOME.match(line[len(started) :]):
            outcomes[started] = match[1].lower()
            started = None
    if started is not None:
        outcomes[started] = "hung" if "Timeout" in text else died
    return outcomes


def _run(
    command: Sequence[str], seconds: float, silent: float = float("inf"), **variables: str
) -> tuple[str, int | None]:
    """Run a command.

    Args:
        command: the program and its arguments.
        seconds: it is killed if it takes longer.
        silent: it is killed if it prints nothing for this many seconds.
        variables: environment variables to set.

    Returns:
        The output, and the exit status, or ``None`` if it was killed.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables, start_new_session=True
        )
        start = spoke = time.monotonic()
        size = 0
        while process.poll() is None:
            time.sleep(0.1)
            now, before, size = time.monotonic(), size, os.fstat(file.fileno()).st_size
            spoke = now if size != before else spoke
            if now - start > seconds or now - spoke > silent:
                os.killpg(process.pid, signal.SIGKILL)
                # A process that waits in the driver does not end at once. Its output matters more than its end.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                return _read(file), None
        return _read(file), process.returncode


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def run_sanitizer(seconds: float) -> dict[str, str]:
    """For each tool of compute-sanitizer and each of ``KERNELS``: ``passed``, or how it ended and its last output."""
    path = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if path is None:
        return {"compute-sanitizer": "not installed"}

    def run(tool: str, variant: str) -> str:
        command = [path, "--tool", tool, sys.executable, "-m", "benchmarks.gpu", "--small", variant]
        # PyTorch's caching allocator would hide accesses beyond the end of an array from the tool.
        text, code = _run(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        clean = "ERROR SUMMARY: 0 errors" in text or "RACECHECK SUMMARY: 0 hazards" in text
        if code == 0 and clean and f"{variant}: right" in text:
            return "passed"
        how = f"not finished in {seconds:.0f} s" if code is None else f"failed with {code}"
        return f"{how}: {text[-TAIL:]}"

    cases = list(itertools.product(("memcheck", "racecheck"), KERNELS))
    with ThreadPoolExecutor(len(cases)) as pool:
        results = list(pool.map(lambda case: run(*case), cases))
    return {" ".join(case): result for case, result in zip(cases, results, strict=True)}


def run_small(name: str) -> None:
    """Run both passes on the kernels of this name, for compute-sanitizer. Neither rows nor units fill their tiles."""
    backend, only = KERNELS[name]
    for hidden, steps in ((48, 1), (112, 3)):
        generator = torch.Generator().manual_seed(0)
        shapes = (19, 4 * hidden), (4 * hidden, hidden), (19, hidden), (19, hidden)
        inputs = [torch.randn(s, generator=generator).mul(0.1).half().cuda().requires_grad_() for s in shapes]
        exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
        with only():
            output, _ = lstm_recurrence(*inputs, steps=steps, backend=backend.name)
            got = [output, *torch.autograd.grad(output.sum(), inputs)]
        output, _ = lstm_loop(*exact, steps)
        for a, b in zip(got, [output, *torch.autograd.grad(output.sum(), exact)], strict=True):
            assert (a.double() - b).norm() <= 5e-3 * b.norm()
    print(f"{name}: right")


def run_benchmark(seconds: float) -> dict[str, Any]:
    """The rows of ``benchmarks.recurrence`` in bfloat16, as far as time allows, and how the run for each H ended."""
    result: dict[str, Any] = {"rows": [], "ended": {}}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for i, hidden in enumerate(HIDDEN):
            path = Path(folder, f"{hidden}.json")
            sizes = ["-H", str(hidden), "-B", "1", "16", "64", "256", "-T", "5", "10", "20"]
            options = ["--device", "cuda", "--dtype", "bfloat16", "--no-compile", "--seconds", "0.05", *sizes]
            command = [sys.executable, "-m", "benchmarks.recurrence", *options, "--json", str(path)]
            text, code = _run(command, (end - time.monotonic()) / (len(HIDDEN) - i))
            if path.exists():
                part = json.loads(path.read_bytes())
                result["rows"] += part["rows"]
                result["rates"] = part["rates"]
            how = "not finished in its time" if code is None else f"failed with {code}"
            result["ended"][str(hidden)] = "finished" if code == 0 else f"{how}: {text[-TAIL:]}"
    result["summary"] = summary(result["rows"])
    return result


def attempt(result: dict[str, Any], path: Path, name: str, part: Callable[[], Any]) -> None:
    """Run a part, put its result into ``result[name]``, and write the file.

    If the part fails, the error is its result, so that the results of other parts are kept.
    """
    try:
        result[name] = part()
    except Exception:
        result[name] = {"error": traceback.format_exc()}
    write(path, result)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="result file (default: benchmarks/results/gpu-<capability>.json)")
    parser.add_argument(
        "--small", choices=KERNELS, help="only run small problems on these kernels, for compute-sanitizer"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    if arguments.small:
        run_small(arguments.small)
        return 0
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    path = arguments.json or Path(f"benchmarks/results/gpu-{capability}.json")
    return check_and_measure(path)


def check_and_measure(path: Path) -> int:
    """Run all parts, and write the result file after each. Returns 1 if a part or a test did not succeed, else 0."""
    start = time.monotonic()
    result: dict[str, Any] = {}
    attempt(result, path, "machine", describe)
    attempt(result, path, "tests", lambda: _tests_result(TEST_SECONDS))
    attempt(result, path, "sanitizer", lambda: run_sanitizer(SANITIZER_SECONDS))
    attempt(result, path, "benchmark", lambda: run_benchmark(ALL_SECONDS - (time.monotonic() - start)))
    wrong = [name for name, part in result.items() if "error" in part]
    outcomes = result["tests"].get("outcomes", {})
    wrong += sorted({*outcomes.values()} - {"passed", "skipped", "xfail"})
    print(*(f"{name}: {said}" for name, said in result["sanitizer"].items()), sep="\n")
    print(*result["benchmark"].get("summary", []), result["tests"].get("counts"), sep="\n")
    print(f"{path}: {'not well: ' + ', '.join(wrong) if wrong else 'all tests passed'}")
    return int(bool(wrong))


def _tests_result(seconds: float) -> dict[str, Any]:
    """What the result file says about the tests. The output of unsuccessful ones is also printed."""
    outcomes, output = run_tests(seconds)
    print(output, flush=True)
    return {"counts": Counter(outcomes.values()), "outcomes": outcomes, "output": output[-5 * TAIL :]}


if __name__ == "__main__":
    sys.exit(main())
