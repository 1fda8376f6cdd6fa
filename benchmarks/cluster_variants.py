"""Which variant of the cluster kernels is fastest: ``python -m benchmarks.cluster_variants``, meant for a minute.

For each B, H, pass and variant of benchmarks/cluster_variants.h, in bfloat16: the results of CHECKED steps against a
loop in float64, and whether those of T = 1000 repeat bit for bit; then the time of a step, the slope of CUDA graphs
over T = 100 and 1000, and the fixed cost, which is what T = 10 takes more. The forward pass runs in inference (nothing
is saved) and training (what backward needs is saved). Beside a time stands what the model predicts
(:mod:`benchmarks.chain`), so that a run can prove it wrong.

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

from benchmarks.cluster_problems import PROBLEMS, Call, Problem, Results
from benchmarks.machine import describe, write

ROOT = Path(__file__).parents[1]
SOURCES = (*sorted((ROOT / "csrc" / "cuda").glob("*.h")), *sorted((ROOT / "benchmarks").glob("cluster_variants.[hc]*")))
LIBRARY = ROOT / "build" / "cluster_variants.so"
PREDICTED = ROOT / "benchmarks" / "results" / "cluster-chain.json"
NVCC = ("-std=c++17", "-O3", "-gencode", "arch=compute_90,code=sm_90", "-split-compile=0", "-Werror", "all-warnings")
#: The first ones are measured first, if time is short.
BATCHES, SIZES, STEPS = (16, 1, 64, 256), (128, 256, 512, 768), (10, 100, 1000)
CHECKED = 20
#: Of the norm of a row. One message that is left out in one step changes a row by more; rounding by less than half.
TOLERANCE = 2e-2
REPLAYS = 5
#: A worker that says nothing for so many seconds hangs.
PATIENCE = 15.0
#: Seconds that it has to start: to import torch, and to load the library.
START = 60.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Kernel:
    """An entry of the library.

    Attributes:
        index: its number there.
        pass_: "forward" or "backward".
        name: of the variant.
        hidden: the H that it serves.
        rows: batch rows of a cluster.
        blocks: of a cluster.
        threads: of a block.
        shared: bytes of shared memory of a block.
        packets: messages to other multiprocessors that a send of a warp makes.
    """

    index: int
    pass_: str
    name: str
    hidden: int
    rows: int
    blocks: int
    threads: int
    shared: int
    packets: int

    @property
    def variant(self) -> str:
        """What it is called where both passes are meant."""
        return f"{self.pass_}:{self.name}"


class Library:
    """The variants, as kernels of a GPU or on the host."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        for function in (self.library.variants_pass, self.library.variants_name, self.library.variants_error):
            function.restype = ctypes.c_char_p
        self.library.variants_launch.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

    def kernels(self) -> list[Kernel]:
        found = []
        for index in range(self.library.variants_count()):
            sizes = (ctypes.c_int * 6)()
            self.library.variants_sizes(index, sizes)
            names = (self.library.variants_pass(index).decode(), self.library.variants_name(index).decode())
            found.append(Kernel(index, *names, *sizes))
        return found

    def active(self, kernel: Kernel) -> int:
        """How many clusters run at once."""
        clusters = ctypes.c_int(0)
        self._check(self.library.variants_active(kernel.index, ctypes.byref(clusters)))
        return clusters.value

    def launch(self, kernel: Kernel, call: Call, stream: int) -> None:
        self._check(self.library.variants_launch(kernel.index, ctypes.addressof(call), stream))

    def choose(self, variant: str, hidden: int, batch: int) -> Kernel | None:
        """The kernel with the fewest rows whose clusters all run at once, else the most rows: as launch.cu."""
        chosen = None
        for kernel in self.kernels():
            if (kernel.variant, kernel.hidden) != (variant, hidden):
                continue
            try:
                at_once = self.active(kernel)
            except RuntimeError as error:
                print(f"{kernel}: does not run here: {error}", file=sys.stderr, flush=True)
                continue
            if at_once == 0:
                continue
            chosen = kernel
            if -(-batch // kernel.rows) <= at_once:
                break
        return chosen

    def _check(self, error: int) -> None:
        if error:
            raise RuntimeError(self.library.variants_error(error).decode())


class Worker:
    """Checks and measures cases, and says so line by line."""

    def __init__(self, library: Library, device: str, steps: Sequence[int]) -> None:
        self.library, self.device, self.steps = library, device, tuple(steps)

    def rows(
        self, variants: Sequence[str], batches: Sequence[int], sizes: Sequence[int], done: set[str]
    ) -> Iterator[Row]:
        """Each case that is not done, twice: with ``"state": "starting"``, and with what was found."""
        for batch in batches:
            for hidden in sizes:
                for pass_, problem in PROBLEMS.items():
                    names = [variant for variant in variants if variant.startswith(f"{pass_}:")]
                    kernels = [self.library.choose(name, hidden, batch) for name in names]
                    cases = [
                        ({**identity(kernel), "B": batch, "H": hidden, "mode": mode, "rows": kernel.rows}, kernel)
                        for mode in problem.modes
                        for kernel in kernels
                        if kernel is not None
                    ]
                    cases = [case for case in cases if key(case[0]) not in done]
                    if not cases:
                        continue
                    checked = problem(batch, hidden, CHECKED, self.device)
                    expected, timed = checked.reference(), problem(batch, hidden, max(self.steps), self.device)
                    for where, kernel in cases:
                        yield {**where, "state": "starting"}
                        found = self.case(kernel, checked, expected, timed, where["mode"])
                        yield {**where, **found, "state": "done"}

    def case(self, kernel: Kernel, checked: Problem, expected: Results, timed: Problem, mode: str) -> dict[str, Any]:
        error = checked.check(lambda call: self._run(kernel, call), expected, mode)
        if not error < TOLERANCE:
            return {"error": error, "right": False}
        if not timed.repeats(lambda call: self._run(kernel, call), mode):
            return {"error": error, "right": False, "repeats": False}
        us = {steps: self.seconds(kernel, timed.call(steps, mode)) * 1e6 for steps in self.steps}
        few, some, most = self.steps
        slope = (us[most] - us[some]) / (most - some)
        return {"error": error, "right": True, "us_a_step": slope, "us_fixed": us[few] - few * slope, "us": us}

    def _run(self, kernel: Kernel, call: Call) -> None:
        self.library.launch(kernel, call, torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, kernel: Kernel, call: Call) -> float:
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
    from benchmarks.chain import backward_chain, chain
    from benchmarks.sass import disassemble, resources

    codes, used = disassemble(path), resources(path)
    rows = []
    for kernel in library.kernels():
        name = mangled(kernel, codes)
        registers, stack = used[name]
        code, warps = codes[name], kernel.threads // 32
        for mode in PROBLEMS[kernel.pass_].modes:
            if kernel.pass_ == "backward":
                found = backward_chain(code, warps, kernel.packets, kernel.rows // 8)
            else:
                boxes = BOXES.get(kernel.name, kernel.blocks if kernel.name == "parts" else 1)
                found = chain(code, warps, kernel.packets, boxes, training=mode == "training")
            row: Row = {**identity(kernel), "H": kernel.hidden, "rows": kernel.rows, "mode": mode}
            row |= {"registers": registers, "stack": stack, "shared": kernel.shared, "clocks": round(found.clocks)}
            rows.append(row | {"us_a_step": round(found.microseconds, 3), "links": found.links})
            text = f"{kernel.variant:22} H={kernel.hidden:<4} rows {kernel.rows:<3} {mode:10} {registers} registers"
            print(f"{text}, {stack} spilled, {found.microseconds:6.3f} us", flush=True)
    return rows


#: The arguments of the templates Variant and BackwardVariant, as a mangled name has them.
MANGLED = {
    "forward": {
        "present": "Lb0ELi1ELb0ELb0ELb0E",
        "full": "Lb1ELi1ELb0ELb0ELb0E",
        "matrices": "Lb1ELi1ELb1ELb0ELb0E",
        "short": "Lb1ELi1ELb1ELb1ELb0E",
        "halves": "Lb1ELi2ELb1ELb0ELb0E",
        "parts": "Lb1ELi0ELb1ELb0ELb0E",
        "short-halves": "Lb1ELi2ELb1ELb1ELb0E",
        "quads": "Lb1ELi1ELb1ELb0ELb1E",
        "quad-halves": "Lb1ELi2ELb1ELb0ELb1E",
        "quad-quarters": "Lb1ELi4ELb1ELb0ELb1E",
        "fat": "Lb1ELi1ELb1ELb0ELb0E",
    },
    "backward": {
        "present": "Lb0ELi0ELb0E",
        "full": "Lb1ELi0ELb0E",
        "stripes": "Lb1ELi1ELb0E",
        "half": "Lb1ELi0ELb1E",
        "half-stripes": "Lb1ELi1ELb1E",
        "half-pairs": "Lb1ELi2ELb1E",
    },
}
#: The mailboxes of each buffer, if there are several; ``parts`` has one for each block.
BOXES = {"halves": 2, "short-halves": 2, "quad-halves": 2, "quad-quarters": 4}
TEMPLATES = {"forward": "7VariantI", "backward": "15BackwardVariantI"}


def mangled(kernel: Kernel, codes: Iterable[str]) -> str:
    """The name of a kernel in the machine code."""
    units = kernel.hidden // kernel.blocks
    variant = TEMPLATES[kernel.pass_] + MANGLED[kernel.pass_][kernel.name]
    parts = (f"5SizesILi{kernel.hidden}ELi{kernel.rows // 8}ELi{units}EE", variant)
    found = [name for name in codes if all(part in name for part in parts)]
    if len(found) != 1:
        raise ValueError(f"{kernel}: expected one kernel in the machine code, got {len(found)}")
    return found[0]


def identity(kernel: Kernel) -> Row:
    return {"pass": kernel.pass_, "variant": kernel.name}


def tables(rows: Sequence[Row]) -> str:
    """Two tables of docs/cluster.md for each pass, of 8 rows: the present kernel's links, a step of each variant.

    The forward pass is in inference.
    """
    found = []
    for pass_, problem in PROBLEMS.items():
        where = (8, problem.modes[0], pass_)
        known = {(row["variant"], row["H"]): row for row in rows if (row["rows"], row["mode"], row["pass"]) == where}
        found += [_links(known), _steps(known)]
    return "\n\n".join(found)


def _links(known: dict[tuple[str, int], Row]) -> str:
    present = [known["present", hidden] for hidden in SIZES if ("present", hidden) in known]
    lines = ["| link | " + " | ".join(f"H = {row['H']}" for row in present) + " |", f"|---|{'---|' * len(present)}"]
    for link in present[0]["links"]:
        lines.append(f"| {link} | {' | '.join(str(row['links'][link]) for row in present)} |")
    return "\n".join([*lines, f"| **together** | {' | '.join(str(row['clocks']) for row in present)} |"])


def _steps(known: dict[tuple[str, int], Row]) -> str:
    lines = [f"| variant | {' | '.join(f'H = {hidden}' for hidden in SIZES)} |", f"|---|{'---|' * len(SIZES)}"]
    for name in dict.fromkeys(name for name, _ in known):
        found = [known.get((name, hidden)) for hidden in SIZES]
        lines.append(f"| `{name}` | " + " | ".join(f"{row['us_a_step']:.2f}" if row else "" for row in found) + " |")
    return "\n".join(lines)


def predictions() -> tuple[dict[tuple[str, str, int, int, str], Row], bool]:
    """The rows of the file, and whether they are about these sources."""
    if not PREDICTED.exists():
        return {}, False
    known = json.loads(PREDICTED.read_bytes())
    rows = {expectation(row): row for row in known["rows"]}
    return rows, known["sources"] == fingerprint()


def expectation(row: Row) -> tuple[str, str, int, int, str]:
    """The key of the prediction for a row."""
    return row["pass"], row["variant"], row["H"], row["rows"], row["mode"]


def line(row: Row) -> str:
    text = f"{row['pass']:8} {row['variant']:12} B={row['B']:<4} H={row['H']:<4} {row['mode']:10}"
    text += f" rows {row.get('rows') or '?':<3}"
    if row["state"] != "done":
        return f"{text} {row['state']}"
    verdict = "right" if row["right"] else "WRONG" if row.get("repeats", True) else "does not repeat"
    text += f" error {row['error']:.1e} {verdict}"
    if row["right"]:
        text += f"  {row['us_a_step']:6.3f} us a step, fixed {row['us_fixed']:5.1f}"
    if row.get("predicted") is not None:
        text += f"  (predicted {row['predicted']:.3f})"
    return text


def orders(rows: Sequence[Row]) -> Iterator[str]:
    """For each case the variants from the fastest on, as measured and as predicted."""
    cases: dict[tuple[str, int, int, str], list[Row]] = {}
    for row in rows:
        if row.get("right"):
            cases.setdefault((row["pass"], row["H"], row["B"], row["mode"]), []).append(row)
    for (pass_, hidden, batch, mode), found in sorted(cases.items()):
        measured = sorted(found, key=lambda row: row["us_a_step"])
        text = f"{pass_:8} H={hidden:<4} B={batch:<4} {mode:10} {', '.join(row['variant'] for row in measured)}"
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
        left.remove(f"{current['pass']}:{current['variant']}")
    return "failed: no variant is left"


def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith("{"):
            lines.put(text)
    lines.put(None)


def key(row: Row) -> str:
    return "{pass}:{variant}:{B}:{H}:{mode}".format(**row)


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
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="these, as full or backward:full")
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
    variants = list(dict.fromkeys(kernel.variant for kernel in library.kernels()))
    names = {*variants, *(variant.partition(":")[2] for variant in variants)}
    if unknown := {*(arguments.only or ()), *(arguments.worker or ())} - names:
        parser.error(f"--only: expected some of {', '.join(variants)}; got {', '.join(sorted(unknown))}")
    if only := {*(arguments.only or ())}:
        variants = [variant for variant in variants if {variant, variant.partition(":")[2]} & only]
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
            mode = PROBLEMS[kernel.pass_].modes[0]
            row = known.get((kernel.pass_, kernel.name, kernel.hidden, kernel.rows, mode))
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
        expected = known.get(expectation(row))
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
    result["ended"] = {"variants": supervise(command, variants, arguments.seconds, add)}
    print(*orders(result["rows"]), f"it {result['ended']['variants']}", sep="\n")
    if arguments.json:
        write(arguments.json, result)
    return int(result["ended"]["variants"].startswith("failed") or not all(row["right"] for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
