"""Variants of the cluster kernels, in bfloat16: ``python -m benchmarks.cluster_variants``.

For each variant, B and H it checks the results against a loop in float64, and then measures T = 1, 10, 100 and 1000.
The time of a step is the slope between the last two, and the fixed cost what is left of T = 10. A variant that fails or
hangs does not stop the others: the variants run in a process of their own, which is started again without it.

It needs build/cluster_variants.so, which ``--build`` builds with nvcc. Results are written to ``--out`` as they come.
"""

import argparse
import ctypes
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "build" / "cluster_variants.so"
NVCC = [
    "-std=c++17",
    "-O3",
    "-gencode",
    "arch=compute_90,code=sm_90",
    "-split-compile=0",
    "-shared",
    "-Xcompiler=-fPIC",
]
#: So many unsuccessful looks into a mailbox stop the kernel: a variant that is wrong must not run for ever.
SPIN_LIMIT = 65536
BATCHES = (16, 1, 64, 256)
SIZES = (128, 256, 512)
#: Steps, and launches in a CUDA graph.
STEPS = {1: 10, 10: 10, 100: 4, 1000: 1}
CHECKED = 60
#: Of the norm of the reference.
TOLERANCE = 1e-2
#: A worker that says nothing for so many seconds hangs.
PATIENCE = 25.0


class ForwardCall(ctypes.Structure):
    _fields_ = [
        ("batch", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("hidden", ctypes.c_int),
        ("constant", ctypes.c_bool),
    ] + [(name, ctypes.c_void_p) for name in ("gates_x", "weight_hh", "h0", "c0", "output", "c_n", "gates", "cells")]


class BackwardCall(ctypes.Structure):
    _fields_ = (
        ForwardCall._fields_[:4]
        + [(name, ctypes.c_void_p) for name in ("grad_output", "grad_c_n", "weight_hh", "c0", "gates", "gates_x")]
        + [(name, ctypes.c_void_p) for name in ("cells", "d_gates", "d_gates_x", "d_c0")]
    )


def build() -> None:
    LIBRARY.parent.mkdir(exist_ok=True)
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    options = [*NVCC, f"-DTAGRANK_SPIN_LIMIT={SPIN_LIMIT}", f"-I{ROOT}/csrc/cuda", "-o", str(LIBRARY)]
    subprocess.run([nvcc, *options, str(ROOT / "benchmarks" / "cluster_variants.cu")], check=True)


def load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    library.variant_name.restype = library.variant_error.restype = ctypes.c_char_p
    library.variant_is_backward.restype = ctypes.c_bool
    library.variant_launch.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
    return library


class Problem:
    """The arrays of B rows, H hidden units and at most T steps, all but U and h0 poisoned where they are results."""

    def __init__(self, batch: int, hidden: int, steps: int) -> None:
        import torch

        generator = torch.Generator("cuda").manual_seed(batch * hidden + steps)

        def normal(*shape: int, scale: float = 1.0) -> "Tensor":
            numbers = torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float32)
            return (numbers * scale).to(torch.bfloat16)

        def nan(*shape: int, dtype: "torch.dtype" = torch.bfloat16) -> "Tensor":
            return torch.full(shape, torch.nan, dtype=dtype, device="cuda")

        self.batch, self.hidden, self.steps = batch, hidden, steps
        self.gates_x = normal(steps, batch, 4 * hidden)
        self.weight_hh = normal(4 * hidden, hidden, scale=1.5 / hidden**0.5)
        self.h0, self.c0 = normal(batch, hidden, scale=0.5), normal(batch, hidden)
        self.grad_output, self.grad_c_n = normal(steps, batch, hidden), normal(batch, hidden)
        self.output, self.c_n = nan(steps, batch, hidden), nan(batch, hidden)
        self.gates, self.cells = nan(steps, batch, 4 * hidden), nan(steps, batch, hidden, dtype=torch.float32)
        self.d_gates, self.d_c0 = nan(steps, batch, 4 * hidden), nan(batch, hidden)

    def forward(self, steps: int, save: bool) -> ForwardCall:
        tensors = (self.gates_x, self.weight_hh, self.h0, self.c0, self.output, self.c_n)
        saved = (self.gates.data_ptr(), self.cells.data_ptr()) if save else (None, None)
        return ForwardCall(self.batch, steps, self.hidden, False, *(t.data_ptr() for t in tensors), *saved)

    def backward(self, steps: int) -> BackwardCall:
        tensors = (self.grad_output, self.grad_c_n, self.weight_hh, self.c0, self.gates)
        results = (self.cells.data_ptr(), self.d_gates.data_ptr(), None, self.d_c0.data_ptr())
        pointers = (*(t.data_ptr() for t in tensors), None, *results)
        return BackwardCall(self.batch, steps, self.hidden, False, *pointers)

    def poison(self) -> None:
        for tensor in (self.output, self.c_n, self.gates, self.cells, self.d_gates, self.d_c0):
            tensor.fill_(float("nan"))

    def reference(self, steps: int) -> dict[str, "Tensor"]:
        """Both passes in float64."""
        import torch

        gates_x = self.gates_x[:steps].double().requires_grad_()
        weight_hh, h = self.weight_hh.double(), self.h0.double()
        c0 = c = self.c0.double().requires_grad_()
        outputs, gates, cells = [], [], []
        for t in range(steps):
            i, f, g, o = (gates_x[t] + h @ weight_hh.t()).chunk(4, dim=-1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g
            h = o * c.tanh()
            outputs.append(h)
            gates.append(torch.cat([i, f, g, o], dim=-1))
            cells.append(c)
        output = torch.stack(outputs)
        gradients = [self.grad_output[:steps].double(), self.grad_c_n.double()]
        d_gates, d_c0 = torch.autograd.grad([output, c], [gates_x, c0], gradients)
        found = {"output": output, "c_n": c, "gates": torch.stack(gates), "cells": torch.stack(cells)}
        found |= {"d_gates": d_gates, "d_c0": d_c0}
        return {name: tensor.detach() for name, tensor in found.items()}


class Worker:
    """Checks and measures some variants, and prints a line of JSON before and after each."""

    def __init__(self) -> None:
        self.library = load()
        self.rows = ctypes.c_int(0)
        names = [self.library.variant_name(index).decode() for index in range(self.library.variant_count())]
        self.index = {name: index for index, name in enumerate(names)}

    def launch(self, name: str, call: ctypes.Structure) -> None:
        import torch

        stream = torch.cuda.current_stream().cuda_stream
        error = self.library.variant_launch(self.index[name], ctypes.byref(call), stream, ctypes.byref(self.rows))
        if error != 0:
            raise RuntimeError(self.library.variant_error(error).decode())

    def errors(self, name: str, problem: Problem, expected: dict[str, "Tensor"]) -> dict[str, float]:
        import torch

        problem.poison()
        torch.cuda.synchronize()
        if self.library.variant_is_backward(self.index[name]):
            self.launch("forward", problem.forward(problem.steps, save=True))
            self.launch(name, problem.backward(problem.steps))
            checked = ("d_gates", "d_c0")
        else:
            self.launch(name, problem.forward(problem.steps, save=True))
            checked = ("output", "c_n", "gates", "cells")
        torch.cuda.synchronize()
        found = {key: getattr(problem, key).double() for key in checked}
        return {key: ((found[key] - expected[key]).norm() / expected[key].norm()).item() for key in checked}

    def seconds(self, name: str, call: ctypes.Structure, launches: int) -> float:
        """Of one launch in a CUDA graph: the median of several replays."""
        import torch

        self.launch(name, call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(launches):
                self.launch(name, call)
        times = []
        for _ in range(9):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3 / launches)
        return sorted(times[2:])[3]

    def measure(self, name: str, problem: Problem, save: bool) -> dict[str, Any]:
        backward = self.library.variant_is_backward(self.index[name])
        if backward:
            self.launch("forward", problem.forward(problem.steps, save=True))
        times = {}
        for steps, launches in STEPS.items():
            call = problem.backward(steps) if backward else problem.forward(steps, save)
            times[steps] = self.seconds(name, call, launches) * 1e6
        slope = (times[1000] - times[100]) / 900
        return {"us_a_step": slope, "us_fixed": times[10] - 10 * slope, "us": times, "rows": self.rows.value}

    def run(self, names: list[str], batches: list[int], sizes: list[int], quick: bool, done: set[str]) -> None:
        def say(**line: Any) -> None:
            print(json.dumps(line), flush=True)

        say(starting=True)
        import torch

        say(gpu=torch.cuda.get_device_name())
        for hidden in sizes:
            for batch in batches:
                if all(key(name, batch, hidden) in done for name in names):
                    continue
                checked = Problem(batch, hidden, CHECKED)
                expected = checked.reference(CHECKED)
                timed = None if quick else Problem(batch, hidden, max(STEPS))
                for name in names:
                    if key(name, batch, hidden) in done:
                        continue
                    where = {"variant": name, "batch": batch, "hidden": hidden}
                    say(**where, state="starting")
                    if name.startswith("whole") and hidden > 256:
                        say(**where, state="left out")
                        continue
                    if name == "nothing":
                        timed_here = None if timed is None else self.measure(name, timed, save=False)
                        say(**where, state="done", error=0.0, right=True, repeats=True, rows=0, inference=timed_here)
                        continue
                    found = [self.errors(name, checked, expected) for _ in range(2)]
                    worst = max(max(errors.values()) for errors in found)
                    right = all(error < TOLERANCE for errors in found for error in errors.values())
                    line = {**where, "state": "done", "errors": found[0], "error": worst, "right": right}
                    line["repeats"] = found[0] == found[1]
                    line["rows"] = self.rows.value
                    if right and timed is not None:
                        line["inference"] = None
                        if not self.library.variant_is_backward(self.index[name]):
                            line["inference"] = self.measure(name, timed, save=False)
                        line["training"] = self.measure(name, timed, save=True)
                    say(**line)


def key(name: str, batch: int, hidden: int) -> str:
    return f"{name}:{batch}:{hidden}"


def watch(command: list[str], lines: "queue.Queue[str | None]") -> "subprocess.Popen[str]":
    """Starts a worker whose lines come into a queue, and None at its end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return process


def supervise(arguments: argparse.Namespace, names: list[str]) -> list[dict[str, Any]]:
    """Runs workers until each variant was measured or has failed."""
    results: list[dict[str, Any]] = []

    def save() -> None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"gpu": gpu, "results": results}, indent=1))

    gpu, left = None, list(names)
    done = {""}
    deadline = time.monotonic() + arguments.seconds
    while left and time.monotonic() < deadline:
        command = [sys.executable, "-m", "benchmarks.cluster_variants", "--worker", *left, "--done", *done]
        command += ["--sizes", *map(str, arguments.sizes), "--batches", *map(str, arguments.batches)]
        command += ["--quick"] if arguments.quick else []
        lines: queue.Queue[str | None] = queue.Queue()
        process = watch(command, lines)
        current: dict[str, Any] = {}
        reason = None
        while True:
            try:
                text = lines.get(timeout=max(0.1, min(PATIENCE if current else 90.0, deadline - time.monotonic())))
            except queue.Empty:
                reason = "hung, or the time is over"
                process.kill()
                break
            if text is None:
                reason = f"ended with {process.wait()}" if process.wait() else None
                break
            line = json.loads(text)
            gpu = line.get("gpu", gpu)
            if line.get("state") == "starting":
                current = line
            elif "state" in line:
                done.add(key(line["variant"], line["batch"], line["hidden"]))
                if line["state"] == "done":
                    results.append(line)
                    print(row(line), flush=True)
                    save()
        process.wait()
        if reason is None:
            break
        if not current:
            print(f"the worker {reason} before its first variant", flush=True)
            break
        results.append({**current, "state": reason, "right": False})
        print(row(results[-1]), flush=True)
        save()
        left.remove(current["variant"])
    save()
    return results


def row(line: dict[str, Any]) -> str:
    text = f"{line['variant']:24} B={line['batch']:<4} H={line['hidden']:<4}"
    if line["state"] != "done":
        return f"{text} {line['state']}"
    text += f" rows {line['rows']:<3} error {line['error']:.1e} {'right' if line['right'] else 'WRONG'}"
    text += "" if line["repeats"] else " NOT REPEATED"
    for kind in ("inference", "training"):
        if line.get(kind):
            found = line[kind]
            text += f"  {kind} {found['us_a_step']:5.2f} us a step, {found['us_fixed']:5.1f} fixed"
            text += f", {found['us']['1']:5.1f} once"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="store_true", help="build the library first")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "cluster_variants.json")
    parser.add_argument("--only", nargs="+", help="these variants")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--quick", action="store_true", help="check only")
    parser.add_argument("--seconds", type=float, default=150.0, help="stop after this time")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--done", nargs="+", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        done = set(arguments.done)
        Worker().run(arguments.worker, arguments.batches, arguments.sizes, arguments.quick, done)
        sys.stdout.flush()
        os._exit(0)
    if arguments.build:
        build()
    library = load()
    names = [library.variant_name(index).decode() for index in range(library.variant_count())]
    supervise(arguments, arguments.only or names)


if __name__ == "__main__":
    main()
