"""Check and measure the GPU kernels on this machine, and write one result file: make gpu. Needs no network.

The parts, one after another:

- tests: the GPU tests, in several processes at once. A test that hangs is killed and reported as "hung". After a test
  that fails, a new process runs the rest: an error on a GPU may stay with the process, and then spoils all later tests.
- sanitizer: compute-sanitizer on small problems, if it is installed.
- benchmark: what backend="auto" takes against nn.LSTM in bfloat16, float16 and float32, for the B, H and T over which
  benchmarks.recurrence sums up. One process after another, so that none disturbs the times of another.
- overhead: what a call costs besides arithmetic (benchmarks.overhead).
- kernels: all contestants, named kernels and CUDA graphs among them, in a few sizes.
- long: 1000 time steps.
- variants: variants of the cluster kernels that the library does not launch yet (benchmarks.cluster_variants).
- annotate: photographs per second from file to tags (benchmarks.annotate), with backbones that have random weights.

Other parts run only if --only names them:

- products: the product variant against the others and nn.LSTM, for large H.
- compiled: the loop under torch.compile, which takes minutes to compile.
- candidates: annotate, with a backbone under torch.compile, which takes a minute to compile, and with photographs that
  the GPU decodes.

The result file is written again and again while a part runs, so that a kill loses nothing. With --only, the other parts
of a file that is there stay; "commits" says what each part was measured on. With --select, only some of the tests run.
An entry in tagrank.kernels.verified rests on the outcomes of the tests.
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
import sysconfig
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.machine import commit, describe, write
from benchmarks.recurrence import GRID, failures_in_words, summary
from tagrank import lstm_recurrence
from tagrank.recurrence.backends import FUSED
from tagrank.recurrence.backends.eager import lstm_loop

TESTS = (
    "tests/recurrence/test_gpu.py",
    "tests/recurrence/test_op.py",
    "tests/recurrence/test_not_finite.py",
    "tests/kernels/test_arithmetic.py",
    "tests/nn/test_nn.py",
    "tests/nn/test_cuda_graphs.py",
    "tests/nn/test_surface.py",
    "tests/recurrence/test_packed.py",
    "tests/features/test_computing.py",
    "tests/training/test_gpu_training.py",
)
PROCESSES = 14
#: Without --strict-markers: plugins may be missing, and their marks are then unknown. Hung tests are found without one.
PYTEST = ("-o", "addopts=--import-mode=importlib")
#: The kernels of each backend for GPUs by name: the backend, and what makes a context in which it runs no others.
KERNELS = {
    name: (backend, only)
    for backend in FUSED.values()
    if backend.device == "cuda"
    for name, only in backend.variants().items()
}
#: The parts, and the most seconds that each gets. What a part does not need is left for those after it.
PARTS = {
    "tests": 150.0,
    "sanitizer": 60.0,
    "benchmark": 170.0,
    "overhead": 35.0,
    "kernels": 60.0,
    "long": 40.0,
    "variants": 60.0,
    "annotate": 150.0,
}
#: A part that runs only if it is named.
NAMED_ONLY = {"products": 130.0, "compiled": 400.0, "candidates": 300.0}
#: torchvision's, for the part annotate.
BACKBONES = ("resnet50", "efficientnet_b0")
#: The seconds for everything.
ALL_SECONDS = 550
#: A test process that prints nothing for this many seconds hangs.
SILENT_SECONDS = 50
#: How many characters of a process's output go into the result file.
TAIL = 4000
#: A test with one of these outcomes has its process's output in the result file.
UNSUCCESSFUL = {"failed", "error", "hung", "crashed", "not finished"}

Outcomes = dict[str, str]
#: Takes what a part has so far.
SoFar = Callable[[Any], None]
_NAME = re.compile(r"^tests/\S+::")
_OUTCOME = re.compile(r" (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


def run_tests(seconds: float, so_far: Callable[[Outcomes], None], select: str | None = None) -> tuple[Outcomes, str]:
    """The outcome of each test, and the output of the processes in which a test did not succeed.

    Args:
        seconds: the most that they may take.
        so_far: is given the outcomes that are known while the tests run.
        select: an expression that the tests' names must match (pytest -k).
    """
    end = time.monotonic() + seconds
    chosen = [] if select is None else ["-k", select]
    text, code = _run([sys.executable, "-m", "pytest", *PYTEST, "--collect-only", "-q", *chosen, *TESTS], seconds)
    names = [line for line in text.splitlines() if _NAME.match(line)]
    if code != 0 or not names:
        return {"collection": "failed"}, text
    known: Outcomes = {}
    lock = threading.Lock()

    def add(some: Outcomes) -> None:
        with lock:
            if not some.items() <= known.items():
                known.update(some)
                so_far(dict(known))

    outcomes: Outcomes = {}
    output = []
    with ThreadPoolExecutor(PROCESSES) as pool:
        for some, text in pool.map(lambda i: _run_group(names[i::PROCESSES], end, add), range(PROCESSES)):
            outcomes |= some
            output += [text] if UNSUCCESSFUL & set(some.values()) else []
    return outcomes, "\n".join(output)


def _run_group(names: Sequence[str], end: float, add: Callable[[Outcomes], None]) -> tuple[Outcomes, str]:
    """Run tests in one process. After a test that fails or ends the process, run the rest in a new process.

    ``end`` is the time (``time.monotonic``) at which they must be finished. ``add`` is given outcomes as they come.
    """
    outcomes: Outcomes = {}
    output = ""
    while left := [name for name in names if name not in outcomes]:
        seconds = end - time.monotonic()
        if seconds < 5:
            return outcomes | dict.fromkeys(left, "not reached"), output
        options = [*PYTEST, "-v", "-x", "--tb=short", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, *left]

        def watch(text: str, left: Sequence[str] = left) -> None:
            add({name: outcome for name, outcome in parse(text, left, "running").items() if outcome != "running"})

        text, code = _run(command, seconds, SILENT_SECONDS, watch)
        output += text
        before = len(outcomes)
        # Without a status the process was killed, because it was silent or because the time was over.
        died = "crashed" if code is not None else "hung" if time.monotonic() < end else "not finished"
        outcomes |= parse(text, left, died)
        add(outcomes)
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
        # pytest names tests again, in a line of their own, in its summary of the warnings.
        if not named or max(named, key=len) in outcomes:
            continue
        started = max(named, key=len)
        if match := _OUTCOME.match(line[len(started) :]):
            outcomes[started] = match[1].lower()
            started = None
    if started is not None:
        outcomes[started] = "hung" if "Timeout" in text else died
    return outcomes


def _run(
    command: Sequence[str],
    seconds: float,
    silent: float = float("inf"),
    watch: Callable[[str], None] | None = None,
    **variables: str,
) -> tuple[str, int | None]:
    """Run a command.

    Args:
        command: the program and its arguments.
        seconds: it is killed if it takes longer.
        silent: it is killed if it prints nothing for this many seconds.
        watch: is given the output so far, whenever there is more.
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
            if watch is not None and size != before:
                watch(_read(file))
            if now - start > seconds or now - spoke > silent:
                os.killpg(process.pid, signal.SIGKILL)
                # A process that waits in the driver does not end at once. Its output matters more than its end.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                return _read(file), None
        return _read(file), process.returncode


def _read(file: IO[str]) -> str:
    # By position: the process that writes shares the file's offset.
    text = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
    # The result file does not say where this machine has its files.
    for folder in (sysconfig.get_path("purelib"), os.getcwd()):
        text = text.replace(f"{folder}/", "")
    text = text.replace(f"rootdir: {os.getcwd()}", "rootdir: .").replace(sys.executable, "python")
    return text


def run_sanitizer(seconds: float, so_far: SoFar) -> dict[str, str]:
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
    found: dict[str, str] = {}
    with ThreadPoolExecutor(len(cases)) as pool:
        futures = {pool.submit(run, *case): " ".join(case) for case in cases}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            so_far(dict(found))
    return found


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


#: nn.LSTM, and what backend="auto" takes, which is all that the aim compares.
AIM = ("nn.LSTM (cuDNN)", "tagrank auto")
IN_TF32 = ("nn.LSTM (cuDNN, TF32)", "tagrank auto, TF32")
#: In float32 several backends serve a call; the table of backends says which.
BY_NAME = tuple(f"tagrank {name}{precision}" for name in ("cluster", "triton") for precision in ("", ", TF32"))


def _graphs(names: Sequence[str]) -> list[str]:
    return [f"{name}, CUDA graph" for name in names]


def _sizes(batches: Sequence[int], hidden: Sequence[int], steps: Sequence[int]) -> list[str]:
    return [*("-B", *map(str, batches)), *("-H", *map(str, hidden)), *("-T", *map(str, steps))]


def _runs(part: str) -> list[list[str]]:
    """The options of ``benchmarks.recurrence`` for each of the processes of a part."""
    quick, plain = ["--seconds", "0.08"], ["--no-compile"]
    few = _sizes((1, 64), (128, 512), (20,))
    if part == "benchmark":
        only = {"bfloat16": AIM, "float16": AIM, "float32": AIM + IN_TF32}
        return [["--dtype", dtype, *_sizes(*GRID), *quick, *plain, "--only", *names] for dtype, names in only.items()]
    if part == "kernels":
        graphs = _graphs(AIM + IN_TF32 + BY_NAME)
        more = _sizes((1, 16, 64, 256), (128, 256, 512), (20,))
        return [
            # FlashRNN builds kernels for each H, which takes minutes.
            ["--dtype", "bfloat16", *few, *quick, *plain, "--without", "flashrnn"],
            ["--dtype", "float32", *more, *quick, *plain, "--only", *graphs],
        ]
    if part == "products":
        large = _sizes((1, 16, 64, 256), (512, 1024), (40,))
        names = ("tagrank triton product", "tagrank triton product, TF32")
        return [
            ["--dtype", dtype, *large, *quick, *plain, "--only", *_graphs(AIM + IN_TF32 + names)]
            for dtype in ("bfloat16", "float32")
        ]
    if part == "long":
        long = _sizes((1, 64), (256, 1024), (1000,))
        return [["--dtype", "bfloat16", *long, *quick, *plain, "--only", *AIM, *_graphs(AIM)]]
    with_compiled = (*AIM, "torch.compile", *_graphs((*AIM, "torch.compile")))
    return [["--dtype", "bfloat16", *_sizes((16, 64), (256, 512), (20,)), *quick, "--only", *with_compiled]]


def run_benchmark(part: str, seconds: float, so_far: SoFar) -> dict[str, Any]:
    """The rows of ``benchmarks.recurrence``, as far as time allows, and how each of its processes ended.

    The processes run one after another. Each gets an equal share of the time that is left.
    """
    result: dict[str, Any] = {"rows": [], "failures": [], "rates": {}, "ended": {}}
    end = time.monotonic() + seconds
    every = _runs(part)
    for i, options in enumerate(every):
        dtype = options[options.index("--dtype") + 1]
        before = {name: list(result[name]) for name in ("rows", "failures")}

        def add(record: dict[str, Any], dtype: str = dtype, before: dict[str, list[Any]] = before) -> None:
            result.update({name: before[name] + record[name] for name in before})
            result["rates"][dtype] = record["rates"]
            result["summary"] = [*summary(result["rows"]), *failures_in_words(result["failures"])]
            so_far(result)

        share = (end - time.monotonic()) / (len(every) - i)
        result["ended"][dtype] = _measured(["benchmarks.recurrence", "--device", "cuda", *options], share, add)
    return result


def run_overhead(seconds: float, so_far: SoFar) -> dict[str, Any]:
    """The rows of ``benchmarks.overhead``."""
    result: dict[str, Any] = {"rows": []}

    def add(record: dict[str, Any]) -> None:
        result["rows"] = record["rows"]
        so_far(result)

    # The GPU first, which this machine is for.
    command = ["benchmarks.overhead", "--device", "cuda", "cpu", "--seconds", "0.3"]
    result["ended"] = {"overhead": _measured(command, seconds, add)}
    return result


def run_variants(seconds: float, so_far: SoFar) -> dict[str, Any]:
    """The rows of ``benchmarks.cluster_variants``. `make gpu` has built its library before."""
    result: dict[str, Any] = {"rows": []}

    def add(record: dict[str, Any]) -> None:
        result["rows"] = record["rows"]
        so_far(result)

    # Less than all of the time, so that it ends by itself.
    command = ["benchmarks.cluster_variants", "--seconds", f"{0.9 * seconds:.0f}"]
    result["ended"] = {"variants": _measured(command, seconds, add)}
    return result


def run_annotate(seconds: float, so_far: SoFar, options: Sequence[str] = ()) -> dict[str, Any]:
    """The rows of ``benchmarks.annotate`` for each of :data:`BACKBONES`, in a process of its own."""
    result: dict[str, Any] = {"rows": [], "ended": {}, "cosine": {}, "summary": []}
    end = time.monotonic() + seconds
    for i, name in enumerate(BACKBONES):
        before = result["rows"]

        def add(record: dict[str, Any], name: str = name, before: list[Any] = before) -> None:
            result["rows"] = before + [{"backbone": name} | row for row in record["rows"]]
            result["cosine"][name] = record.get("cosine")
            result["summary"] = [_in_a_line(row) for row in result["rows"] if row["part"] == "annotation"]
            so_far(result)

        command = ["benchmarks.annotate", "--device", "cuda", "--backbone", name, "--random", "--seconds", "2"]
        command += options
        result["ended"][name] = _measured(command, (end - time.monotonic()) / (len(BACKBONES) - i), add)
    return result


def _in_a_line(row: dict[str, Any]) -> str:
    what = f"{row['backbone']}, {row['size']}, {row['name']}"
    if row["stage"] == "all":
        return f"{what}: {row['per_second']:.0f} photographs per second"
    return f"{what}: {row['stage']} {row['share']:.0%}"


def _measured(command: Sequence[str], seconds: float, add: Callable[[dict[str, Any]], None]) -> str:
    """Run a module that takes ``--json``, and give ``add`` what it writes, whenever it does. Returns how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.json")
        written = 0

        def look(_: str = "") -> None:
            nonlocal written
            if path.exists() and path.stat().st_mtime_ns != written:
                written = path.stat().st_mtime_ns
                add(json.loads(path.read_bytes()))

        text, code = _run([sys.executable, "-m", *command, "--json", str(path)], seconds, watch=look)
        look()
    if code == 0:
        return "finished"
    return f"{'not finished in its time' if code is None else f'failed with {code}'}: {text[-TAIL:]}"


class Results:
    """What the result file says, written whenever that changes."""

    def __init__(self, path: Path, parts: dict[str, Any]) -> None:
        self.path = path
        self.parts = parts
        self._lock = threading.Lock()

    def put(self, name: str, part: Any) -> None:
        with self._lock:
            self.parts[name] = part
            write(self.path, self.parts)

    def attempt(self, name: str, part: Callable[[SoFar], Any]) -> None:
        """Run a part and put its result, and before that what it passes to the function that it is given.

        If the part fails, the error is put beside what it had, so that nothing is lost.
        """
        had: dict[str, Any] = {}

        def so_far(value: Any) -> None:
            nonlocal had
            had = value
            self.put(name, value)

        try:
            self.put(name, part(so_far))
        except Exception:
            self.put(name, {**had, "error": traceback.format_exc()})


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="result file (default: benchmarks/results/gpu-<capability>.json)")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *NAMED_ONLY], help="run these parts only")
    parser.add_argument("--select", metavar="EXPRESSION", help="run only the tests whose names match it (pytest -k)")
    parser.add_argument(
        "--seconds", type=float, default=ALL_SECONDS, help=f"the most seconds for everything (default: {ALL_SECONDS})"
    )
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
    return check_and_measure(path, arguments.only, arguments.seconds, arguments.select)


def check_and_measure(
    path: Path, only: Sequence[str] | None = None, seconds: float = ALL_SECONDS, select: str | None = None
) -> int:
    """Run the parts, and write the result file as they go. Returns 1 if anything did not succeed, else 0.

    Args:
        path: the result file. If ``only`` is given, parts that it has and that are not run stay.
        only: the names of the parts to run; ``PARTS`` if it is ``None``. One that is run by itself gets all the time.
        seconds: the most for everything.
        select: of the tests, only those whose names match this expression run.
    """
    end = time.monotonic() + seconds
    results = Results(path, json.loads(path.read_bytes()) if only and path.exists() else {})
    chosen = {name: most for name, most in (PARTS | NAMED_ONLY).items() if name in (only or PARTS)}
    results.attempt("machine", lambda so_far: describe())
    for name, most in chosen.items():
        left = end - time.monotonic()
        results.put("commits", results.parts.get("commits", {}) | {name: commit()})
        results.attempt(name, partial(_run_part, name, left if len(chosen) == 1 else min(most, left), select))
    wrong = sorted({*itertools.chain(*(unsuccessful(name, results.parts[name]) for name in chosen))})
    for name in chosen:
        part = results.parts[name]
        print(*part.get("summary", []), sep="\n")
        print(f"{name}: {part.get('counts') or part.get('ended') or ({} if 'error' in part else part)}")
    print(f"{path}: {'not well: ' + ', '.join(wrong) if wrong else 'all well'}")
    return int(bool(wrong))


def _run_part(name: str, seconds: float, select: str | None, so_far: SoFar) -> Any:
    if name == "tests":
        return _tests_result(seconds, select, so_far)
    if name == "sanitizer":
        return run_sanitizer(seconds, so_far)
    if name == "overhead":
        return run_overhead(seconds, so_far)
    if name == "variants":
        return run_variants(seconds, so_far)
    if name == "annotate":
        return run_annotate(seconds, so_far)
    if name == "candidates":
        return run_annotate(seconds, so_far, ("--compile", "--decode-on-device"))
    return run_benchmark(name, seconds, so_far)


def unsuccessful(name: str, part: dict[str, Any]) -> Iterator[str]:
    """What did not succeed in a part: a few words for each kind. A benchmark whose time was over did succeed."""
    if "error" in part:
        yield name
    if name == "tests":
        yield from {*part.get("outcomes", {}).values()} - {"passed", "skipped", "xfail"}
    elif name == "sanitizer":
        yield from (tool for tool, said in part.items() if tool != "error" and said not in ("passed", "not installed"))
    else:
        yield from (f"{name} {run}" for run, how in part.get("ended", {}).items() if how.startswith("failed"))
        yield from (f"wrong in {name}" for row in part.get("rows", []) if row.get("right") is False)
        yield from (f"error in {name}" for failure in part.get("failures", []) if failure["kind"] == "ours")


def _tests_result(seconds: float, select: str | None, so_far: SoFar) -> dict[str, Any]:
    """What the result file says about the tests. The output of unsuccessful ones is also printed."""

    def said(outcomes: Outcomes) -> dict[str, Any]:
        return {"selected": select, "counts": Counter(outcomes.values()), "outcomes": outcomes}

    outcomes, output = run_tests(seconds, lambda known: so_far(said(known)), select)
    print(output, flush=True)
    return said(outcomes) | {"output": output[-5 * TAIL :]}


if __name__ == "__main__":
    sys.exit(main())
