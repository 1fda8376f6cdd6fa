"""Which variant of the cluster kernels is fastest: ``python -m benchmarks.cluster_variants``, meant for a minute.

For each B, H and variant of benchmarks/cluster_variants.h, in bfloat16, in inference (nothing is saved) and training
(the forward pass saves what backward needs): the results of CHECKED steps against a loop in float64; then the time of a
step, the slope of CUDA graphs over T = 100 and 1000, and the fixed cost, which is what T = 10 takes more. Beside it
stands what the model predicts (:mod:`benchmarks.chain`), so that a run can prove it wrong.

Kernels run in a process of their own. If one fails or hangs, a new process goes on without that variant.

Without a GPU, ``--build`` compiles the kernels, ``--predict`` writes benchmarks/results/cluster-chain.json, and
``--dry-run`` does all but to launch a kernel: it builds and loads the library, and prints what would run. With
``--device cpu --library`` and a library of tests/recurrence/variants_host.cpp everything runs on the host.
"""

import argparse
import ctypes
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe, write
from tagrank.recurrence.backends.eager import lstm_loop

ROOT = Path(__file__).parents[1]
SOURCES = (*sorted((ROOT / "csrc" / "cuda").glob("*.h")), *(ROOT / "benchmarks").glob("cluster_variants.[hc]*"))
LIBRARY = ROOT / "build" / "cluster_variants.so"
PREDICTED = ROOT / "benchmarks" / "results" / "cluster-chain.json"
NVCC = ("-std=c++17", "-O3", "-gencode", "arch=compute_90,code=sm_90", "-split-compile=0", "-Werror", "all-warnings")
#: The first ones are measured first, if time is short.
BATCHES, SIZES, STEPS = (16, 1, 64, 256), (128, 256, 512, 768), (10, 100, 1000)
MODES = ("inference", "training")
CHECKED = 20
#: Of the norm of the reference, as in tests/recurrence/test_cluster.py.
TOLERANCE = 1.5e-2
REPLAYS = 5
#: A worker that says nothing for so many seconds hangs.
PATIENCE = 15.0
#: Seconds that it has to start: to import torch, and to load the library.
START = 60.0

Row = dict[str, Any]


class ForwardCall(ctypes.Structure):
    """``ForwardCall`` in csrc/cuda/recurrence.h."""

    _fields_ = [
        ("batch", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("hidden", ctypes.c_int),
        ("constant", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in ("gates_x", "weight_hh", "h0", "c0", "addend")),
        ("addend_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("output", "h_n", "c_n", "gates", "cells")),
    ]


@dataclass(frozen=True)
class Kernel:
    """An entry of the library.

    Attributes:
        index: its number there.
        name: of the variant.
        hidden: the H that it serves.
        rows: batch rows of a cluster.
        blocks: of a cluster.
        threads: of a block.
        shared: bytes of shared memory of a block.
        packets: messages to other multiprocessors that a send of a warp makes.
    """

    index: int
    name: str
    hidden: int
    rows: int
    blocks: int
    threads: int
    shared: int
    packets: int


class Library:
    """The variants, as kernels of a GPU or on the host."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.variants_name.restype = self.library.variants_error.restype = ctypes.c_char_p
        self.library.variants_launch.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

    def kernels(self) -> list[Kernel]:
        found = []
        for index in range(self.library.variants_count()):
            sizes = (ctypes.c_int * 6)()
            self.library.variants_sizes(index, sizes)
            found.append(Kernel(index, self.library.variants_name(index).decode(), *sizes))
        return found

    def active(self, kernel: Kernel) -> int:
        """How many clusters run at once."""
        clusters = ctypes.c_int(0)
        self._check(self.library.variants_active(kernel.index, ctypes.byref(clusters)))
        return clusters.value

    def launch(self, kernel: Kernel, call: ForwardCall, stream: int) -> None:
        self._check(self.library.variants_launch(kernel.index, ctypes.addressof(call), stream))

    def choose(self, name: str, hidden: int, batch: int) -> Kernel | None:
        """The kernel with the fewest rows whose clusters all run at once, else the most rows: as launch.cu."""
        chosen = None
        for kernel in self.kernels():
            if (kernel.name, kernel.hidden) != (name, hidden) or not (at_once := self.active(kernel)):
                continue
            chosen = kernel
            if -(-batch // kernel.rows) <= at_once:
                break
        return chosen

    def _check(self, error: int) -> None:
        if error:
            raise RuntimeError(self.library.variants_error(error).decode())


class Problem:
    """The arrays of B rows, H hidden units and at most T steps. What a kernel writes is NaN before."""

    def __init__(self, batch: int, hidden: int, steps: int, device: str) -> None:
        generator = torch.Generator(device).manual_seed(batch * hidden + steps)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=scale, generator=generator)

        def nan(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.full(shape, torch.nan, dtype=dtype, device=device)

        self.batch, self.hidden, self.steps = batch, hidden, steps
        self.gates_x, self.addend = normal(steps, batch, 4 * hidden), normal(batch, 4 * hidden)
        self.weight_hh = normal(4 * hidden, hidden, scale=1.5 / hidden**0.5)
        self.h0, self.c0 = normal(batch, hidden, scale=0.5), normal(batch, hidden)
        self.results = {
            "output": nan(steps, batch, hidden),
            "h_n": nan(batch, hidden),
            "c_n": nan(batch, hidden),
            "gates": nan(steps, batch, 4 * hidden),
            "cells": nan(steps, batch, hidden, dtype=torch.float32),
        }

    def call(self, steps: int, mode: str) -> ForwardCall:
        inputs = (self.gates_x, self.weight_hh, self.h0, self.c0, self.addend)
        results = [tensor.data_ptr() for tensor in self.results.values()]
        saved = results[3:] if mode == "training" else [None, None]
        pointers = (*(tensor.data_ptr() for tensor in inputs), 4 * self.hidden, *results[:3], *saved)
        return ForwardCall(self.batch, steps, self.hidden, False, *pointers)

    def reference(self) -> dict[str, Tensor]:
        """The results in float64, but for what is saved."""
        inputs = (self.gates_x + self.addend.double(), self.weight_hh, self.h0, self.c0)
        output, c_n = lstm_loop(*(tensor.double() for tensor in inputs), self.steps)
        return {"output": output, "h_n": output[-1], "c_n": c_n}

    def check(self, run: Callable[[ForwardCall], None], expected: dict[str, Tensor], mode: str) -> float:
        """The largest error of a result of ``run``, relative to the norm of the reference.

        What is saved gives the output: it is checked, too.
        """
        for tensor in self.results.values():
            tensor.fill_(torch.nan)
        run(self.call(self.steps, mode))
        found = {name: self.results[name].double() for name in expected}
        if mode == "training":
            o = self.results["gates"][..., 3 * self.hidden :].double()
            found["saved"], expected = (
                o * self.results["cells"].double().tanh(),
                expected | {"saved": expected["output"]},
            )
        errors = [((found[name] - right).norm() / right.norm()).item() for name, right in expected.items()]
        return max(errors) if all(error == error for error in errors) else float("inf")


class Worker:
    """Checks and measures cases, and says so line by line."""

    def __init__(self, library: Library, device: str, steps: Sequence[int]) -> None:
        self.library, self.device, self.steps = library, device, tuple(steps)

    def rows(self, names: Sequence[str], batches: Sequence[int], sizes: Sequence[int], done: set[str]) -> Iterator[Row]:
        """Each case that is not done, twice: with ``"state": "starting"``, and with what was found."""
        for batch in batches:
            for hidden in sizes:
                kernels = [(name, self.library.choose(name, hidden, batch)) for name in names]
                cases = [
                    ({"variant": name, "B": batch, "H": hidden, "mode": mode, "rows": kernel.rows}, kernel)
                    for mode in MODES
                    for name, kernel in kernels
                    if kernel is not None
                ]
                cases = [case for case in cases if key(case[0]) not in done]
                if not cases:
                    continue
                checked = Problem(batch, hidden, CHECKED, self.device)
                expected, timed = checked.reference(), Problem(batch, hidden, max(self.steps), self.device)
                for where, kernel in cases:
                    yield {**where, "state": "starting"}
                    found = self.case(kernel, checked, expected, timed, where["mode"])
                    yield {**where, **found, "state": "done"}

    def case(
        self, kernel: Kernel, checked: Problem, expected: dict[str, Tensor], timed: Problem, mode: str
    ) -> dict[str, Any]:
        error = checked.check(lambda call: self._run(kernel, call), expected, mode)
        if not error < TOLERANCE:
            return {"error": error, "right": False}
        us = {steps: self.seconds(kernel, timed.call(steps, mode)) * 1e6 for steps in self.steps}
        few, some, most = self.steps
        slope = (us[most] - us[some]) / (most - some)
        return {"error": error, "right": True, "us_a_step": slope, "us_fixed": us[few] - few * slope, "us": us}

    def _run(self, kernel: Kernel, call: ForwardCall) -> None:
        self.library.launch(kernel, call, torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, kernel: Kernel, call: ForwardCall) -> float:
        """The median time of a launch: of those in a CUDA graph, or on the host."""
        if self.device != "cuda":
            start = time.perf_counter()
            self._run(kernel, call)
            return time.perf_counter() - start
        launches = max(1, 200 // call.steps)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(launches):
                self.library.launch(kernel, call, torch.cuda.current_stream().cuda_stream)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 2)]
        for event in events:
            event.record()
            graph.replay()
        torch.cuda.synchronize()
        # The first replay warms up. That after the last event is not timed.
        times = [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)][1:]
        return median(times) / launches


def build() -> Path:
    """Compile the kernels if the library is older than its sources, in a minute on many cores."""
    if LIBRARY.exists() and LIBRARY.stat().st_mtime > max(source.stat().st_mtime for source in SOURCES):
        return LIBRARY
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("benchmarks.cluster_variants: expected nvcc in CUDA_HOME/bin or on the PATH; there is none")
    LIBRARY.parent.mkdir(exist_ok=True)
    options = [*NVCC, "-shared", "-Xcompiler=-fPIC", f"-I{ROOT}/csrc/cuda", "-o", str(LIBRARY)]
    subprocess.run([nvcc, *options, str(ROOT / "benchmarks" / "cluster_variants.cu")], check=True)
    return LIBRARY


def fingerprint() -> str:
    """Of the sources, so that nobody holds a prediction against other kernels."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def predict(library: Library, path: Path) -> list[Row]:
    """What the model says of each kernel, from its machine code. Minutes on two cores."""
    from benchmarks.chain import chain
    from benchmarks.sass import disassemble, resources

    codes, used = disassemble(path), resources(path)
    rows = []
    for kernel in library.kernels():
        name = mangled(kernel, codes)
        registers, stack = used[name]
        for mode in MODES:
            boxes = {"halves": 2, "short-halves": 2, "parts": kernel.blocks}.get(kernel.name, 1)
            found = chain(codes[name], kernel.threads // 32, kernel.packets, boxes, training=mode == "training")
            row: Row = {"variant": kernel.name, "H": kernel.hidden, "rows": kernel.rows, "mode": mode}
            row |= {"registers": registers, "stack": stack, "shared": kernel.shared, "clocks": round(found.clocks)}
            rows.append(row | {"us_a_step": round(found.microseconds, 3), "links": found.links})
            text = f"{kernel.name:12} H={kernel.hidden:<4} rows {kernel.rows:<3} {mode:10} {registers} registers"
            print(f"{text}, {stack} spilled, {found.microseconds:6.3f} us", flush=True)
    return rows


#: The arguments of the template Variant, as a mangled name has them.
MANGLED = {
    "present": "Lb0ELi1ELb0ELb0E",
    "full": "Lb1ELi1ELb0ELb0E",
    "matrices": "Lb1ELi1ELb1ELb0E",
    "short": "Lb1ELi1ELb1ELb1E",
    "halves": "Lb1ELi2ELb1ELb0E",
    "parts": "Lb1ELi0ELb1ELb0E",
    "short-halves": "Lb1ELi2ELb1ELb1E",
    "fat": "Lb1ELi1ELb1ELb0E",
}


def mangled(kernel: Kernel, codes: Iterable[str]) -> str:
    """The name of a kernel in the machine code."""
    units = kernel.hidden // kernel.blocks
    parts = (f"5SizesILi{kernel.hidden}ELi{kernel.rows // 8}ELi{units}EE", f"7VariantI{MANGLED[kernel.name]}")
    found = [name for name in codes if all(part in name for part in parts)]
    if len(found) != 1:
        raise ValueError(f"{kernel}: expected one kernel in the machine code, got {len(found)}")
    return found[0]


def tables(rows: Sequence[Row]) -> str:
    """Two tables of docs/cluster.md, of 8 rows in inference: the present kernel's links, a step of each variant."""
    known = {(row["variant"], row["H"]): row for row in rows if (row["rows"], row["mode"]) == (8, "inference")}
    present = [known["present", hidden] for hidden in SIZES if ("present", hidden) in known]
    lines = ["| link | " + " | ".join(f"H = {row['H']}" for row in present) + " |", f"|---|{'---|' * len(present)}"]
    for link in present[0]["links"]:
        lines.append(f"| {link} | {' | '.join(str(row['links'][link]) for row in present)} |")
    lines.append(f"| **together** | {' | '.join(str(row['clocks']) for row in present)} |")
    lines += ["", f"| variant | {' | '.join(f'H = {hidden}' for hidden in SIZES)} |", f"|---|{'---|' * len(SIZES)}"]
    for name in dict.fromkeys(name for name, _ in known):
        found = [known.get((name, hidden)) for hidden in SIZES]
        lines.append(f"| `{name}` | " + " | ".join(f"{row['us_a_step']:.2f}" if row else "" for row in found) + " |")
    return "\n".join(lines)


def predictions() -> tuple[dict[tuple[str, int, int, str], Row], bool]:
    """The rows of the file, and whether they are about these sources."""
    if not PREDICTED.exists():
        return {}, False
    known = json.loads(PREDICTED.read_bytes())
    rows = {(row["variant"], row["H"], row["rows"], row["mode"]): row for row in known["rows"]}
    return rows, known["sources"] == fingerprint()


def line(row: Row) -> str:
    text = f"{row['variant']:12} B={row['B']:<4} H={row['H']:<4} {row['mode']:10} rows {row.get('rows') or '?':<3}"
    if row["state"] != "done":
        return f"{text} {row['state']}"
    text += f" error {row['error']:.1e} {'right' if row['right'] else 'WRONG'}"
    if row["right"]:
        text += f"  {row['us_a_step']:6.3f} us a step, fixed {row['us_fixed']:5.1f}"
    if row.get("predicted") is not None:
        text += f"  (predicted {row['predicted']:.3f})"
    return text


def orders(rows: Sequence[Row]) -> Iterator[str]:
    """For each case the variants from the fastest on, as measured and as predicted."""
    cases: dict[tuple[int, int, str], list[Row]] = {}
    for row in rows:
        if row.get("right"):
            cases.setdefault((row["H"], row["B"], row["mode"]), []).append(row)
    for (hidden, batch, mode), found in sorted(cases.items()):
        measured = sorted(found, key=lambda row: row["us_a_step"])
        text = f"H={hidden:<4} B={batch:<4} {mode:10} {', '.join(row['variant'] for row in measured)}"
        known = [row for row in found if row.get("predicted") is not None]
        expected = sorted(known, key=lambda row: row["predicted"])
        yield f"{text}; predicted: {', '.join(row['variant'] for row in expected) or 'nothing'}"


def supervise(command: Sequence[str], names: Sequence[str], seconds: float, add: Callable[[Row], None]) -> str:
    """Run workers until every case is done, or the time is over. Returns how it ended.

    A worker is ``command`` with the variants that are left and the cases that are done.
    """
    left, done = list(names), set[str]()
    end = time.monotonic() + seconds
    while left:
        lines: queue.Queue[str | None] = queue.Queue()
        process = subprocess.Popen(
            [*command, "--worker", *left, "--done", "", *done], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        current: Row | None = None
        silent = START
        try:
            while True:
                try:
                    text = lines.get(timeout=max(0.01, min(silent, end - time.monotonic())))
                except queue.Empty:
                    process.kill()
                    if time.monotonic() >= end:
                        return "not finished in its time"
                    reason = f"said nothing for {silent:.0f} s"
                    break
                if text is None:
                    if process.wait() == 0:
                        return "finished"
                    reason = f"ended with {process.returncode}"
                    break
                silent = PATIENCE
                row = json.loads(text)
                current = row
                if row["state"] == "done":
                    done.add(key(row))
                    add(row)
        finally:
            process.kill()
            process.wait()
        if current is None or current["state"] == "done":
            return f"failed: a process {reason} between two cases"
        add({**current, "state": reason, "right": False})
        left.remove(current["variant"])
    return "failed: no variant is left"


def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith("{"):
            lines.put(text)
    lines.put(None)


def key(row: Row) -> str:
    return "{variant}:{B}:{H}:{mode}".format(**row)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster_variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--build", action="store_true", help="compile the kernels, and do nothing else")
    parser.add_argument("--predict", action="store_true", help=f"only write {PREDICTED.relative_to(ROOT)}")
    parser.add_argument("--dry-run", action="store_true", help="build, load, and say what would run")
    parser.add_argument("--library", type=Path, help="run these kernels (default: build them)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a library for the host")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="these variants")
    parser.add_argument("-B", type=int, nargs="+", default=BATCHES, dest="batches", help=f"rows (default: {BATCHES})")
    parser.add_argument("-H", type=int, nargs="+", default=SIZES, dest="sizes", help=f"hidden units (default: {SIZES})")
    parser.add_argument("-T", type=int, nargs=3, default=STEPS, dest="steps", help=f"steps (default: {STEPS})")
    parser.add_argument("--seconds", type=float, default=55.0, help="stop after this time (default: 55)")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--done", nargs="+", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        print(build())
        return 0
    path = (arguments.library or build()).resolve()
    library = Library(path)
    names = list(dict.fromkeys(kernel.name for kernel in library.kernels()))
    if unknown := {*(arguments.only or ()), *(arguments.worker or ())} - {*names}:
        parser.error(f"--only: expected some of {', '.join(names)}; got {', '.join(sorted(unknown))}")
    if arguments.predict:
        rows = predict(library, path)
        write(PREDICTED, {"sources": fingerprint(), "clock_mhz": 1980, "rows": rows})
        print(tables(rows))
        return 0
    if arguments.device == "cuda" and not arguments.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --dry-run does what needs none")
    known, current = predictions()
    if not current:
        print(f"{PREDICTED.name} is about other sources: --predict writes it again")
    if arguments.dry_run:
        for kernel in library.kernels():
            row = known.get((kernel.name, kernel.hidden, kernel.rows, "inference"))
            print(kernel, f"predicted {row['us_a_step']} us a step" if row else "")
        return 0
    if arguments.worker:
        worker = Worker(library, arguments.device, arguments.steps)
        done = {*arguments.done}
        for row in worker.rows(arguments.worker, arguments.batches, arguments.sizes, done):
            print(json.dumps(row), flush=True)
        return 0
    result = {**describe(), "sources": fingerprint(), "rows": [], "ended": {}}

    def add(row: Row) -> None:
        expected = known.get((row["variant"], row["H"], row["rows"], row["mode"]))
        row["predicted"] = expected and expected["us_a_step"]
        result["rows"].append(row)
        print(line(row), flush=True)
        if arguments.json:
            write(arguments.json, result)

    command = [
        sys.executable,
        "-m",
        "benchmarks.cluster_variants",
        "--library",
        str(path),
        "--device",
        arguments.device,
    ]
    for option, numbers in (("-B", arguments.batches), ("-H", arguments.sizes), ("-T", arguments.steps)):
        command += [option, *map(str, numbers)]
    result["ended"] = {"variants": supervise(command, arguments.only or names, arguments.seconds, add)}
    print(*orders(result["rows"]), f"it {result['ended']['variants']}", sep="\n")
    if arguments.json:
        write(arguments.json, result)
    return int(result["ended"]["variants"].startswith("failed") or not all(row["right"] for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
