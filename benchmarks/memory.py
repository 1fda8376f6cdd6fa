"""Measure the peak memory of a training step: nn.LSTM, the eager loop, and ContextLSTM with and without recompute.

Linux and CPU only. Each contestant runs in a process of its own. What counts is the peak of resident memory during two
training steps, minus the resident memory before them, when libraries, parameters and threads are already there.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import describe, memory, write
from tagrank import ContextLSTM

NAMES = ("nn.LSTM (oneDNN)", "eager loop", "tagrank native", "tagrank native, recompute")


def step(module: nn.LSTM | ContextLSTM, context: torch.Tensor, steps: int) -> None:
    """A training step: forward, and the gradients of the context and all parameters."""
    input = (context.expand(steps, -1, -1),) if isinstance(module, nn.LSTM) else (context, steps)
    output = module(*input)[0]
    torch.autograd.grad(output.sum(), [context, *module.parameters()])


def peak(name: str, batch: int, hidden: int, steps: int) -> float:
    """The peak memory of two training steps of contestant ``name``, in megabytes above what the process held before."""
    if name.startswith("nn.LSTM"):
        module: nn.LSTM | ContextLSTM = nn.LSTM(hidden, hidden)
    else:
        backend = "eager" if name == "eager loop" else "native"
        module = ContextLSTM(hidden, hidden, backend=backend, recompute=name.endswith("recompute"))
    step(module, torch.randn(2, hidden, requires_grad=True), 2)
    context = torch.randn(batch, hidden, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = memory("VmRSS")
    for _ in range(2):
        step(module, context, steps)
    return memory("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-B", type=int, default=256, help="batch size (default: 256)")
    parser.add_argument("-H", type=int, default=512, help="hidden size and context size (default: 512)")
    parser.add_argument("-T", type=int, default=20, help="number of time steps (default: 20)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    parser.add_argument("--of", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.of:
        print(peak(args.of, args.B, args.H, args.T))
        return
    rows: list[dict[str, Any]] = []
    first = 0.0
    for name in NAMES:
        sizes = ["-B", str(args.B), "-H", str(args.H), "-T", str(args.T)]
        command = [sys.executable, "-m", "benchmarks.memory", "--of", name, *sizes]
        megabytes = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append({"name": name, "B": args.B, "H": args.H, "T": args.T, "megabytes": round(megabytes, 1)})
        first = first or megabytes
        share = f"{megabytes / first:4.0%} of nn.LSTM's" if first else ""
        print(f"{name:26} {megabytes:6.0f} MB  {share}".rstrip(), flush=True)
    if args.json:
        write(args.json, describe() | {"rows": rows})


if __name__ == "__main__":
    main()
