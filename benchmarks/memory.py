"""Peak memory of a training step: ours, recomputed or not, against nn.LSTM and the eager loop. Linux, CPU.

Each runs in a process of its own: the peak of its resident memory during two steps over what it held before them, when
its libraries, parameters and threads were already there.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from benchmarks.machine import describe, memory, write
from tagrank import ContextLSTM

NAMES = ("nn.LSTM (oneDNN)", "eager loop", "tagrank native", "tagrank native, recompute")


def step(name: str, module: nn.LSTM | ContextLSTM, context: torch.Tensor, steps: int) -> None:
    """Forward, and the gradients of all parameters and the context."""
    input = (context.expand(steps, -1, -1),) if isinstance(module, nn.LSTM) else (context, steps)
    output = module(*input)[0]
    torch.autograd.grad(output.sum(), [context, *module.parameters()])


def peak(name: str, batch: int, hidden: int, steps: int) -> float:
    """Megabytes above what this process holds now."""
    if name.startswith("nn.LSTM"):
        module: nn.LSTM | ContextLSTM = nn.LSTM(hidden, hidden)
    else:
        backend = "eager" if name == "eager loop" else "native"
        module = ContextLSTM(hidden, hidden, backend=backend, recompute=name.endswith("recompute"))
    step(name, module, torch.randn(2, hidden, requires_grad=True), 2)
    context = torch.randn(batch, hidden, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    for _ in range(2):
        step(name, module, context, steps)
    return memory("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-B", type=int, default=256, help="batch size")
    parser.add_argument("-H", type=int, default=512, help="hidden size, and size of the context")
    parser.add_argument("-T", type=int, default=20, help="number of steps")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    parser.add_argument("--of", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.of:
        print(peak(args.of, args.B, args.H, args.T))
        return
    rows = []
    for name in NAMES:
        sizes = ["-B", str(args.B), "-H", str(args.H), "-T", str(args.T)]
        command = [sys.executable, "-m", "benchmarks.memory", "--of", name, *sizes]
        megabytes = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append({"name": name, "B": args.B, "H": args.H, "T": args.T, "megabytes": round(megabytes, 1)})
        print(f"{name:26} {megabytes:6.0f} MB  {megabytes / rows[0]['megabytes']:4.0%} of nn.LSTM's", flush=True)
    if args.json:
        write(args.json, describe() | {"rows": rows})


if __name__ == "__main__":
    main()
