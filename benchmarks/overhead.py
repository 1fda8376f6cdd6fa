"""Count what a call costs besides arithmetic: nn.LSTM, ContextLSTM, nn.LSTMCell and ContextLSTMCell on small problems.

For each module, size and mode:

- operators: the operators that PyTorch's dispatcher ran, those called by other operators included;
- Python calls, and calls of built-in functions, in the thread that calls the module. On a GPU, backward runs in another
  thread and is not among them;
- kernels: what ran on the GPU, copies included;
- microseconds of a call: the median, with quartiles. All modules of a size run in turn, round after round, each
  IN_A_ROW calls at a time, as in a loop that does nothing else;
- the same of a call on its own, after something else has filled the caches of the core, as in a model whose other
  layers do (cold). Between the calls of other modules a call would be something in between, which depends on them;
- ratio: the median divided by that of nn.LSTM, or of nn.LSTMCell for the cell. Below 1 ours is faster. There is none if
  a result differs from float64.

Inference runs inside one ``torch.no_grad()``.
A layer reads a context and runs T steps. A cell runs one step from given states; ContextLSTMCell has the context's
share of the gates, which it computes once per sequence. On CPUs one thread runs, because waking another one costs more
than such a problem.
"""

import argparse
import copy
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler import profile as autograd_profile
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestants import TOLERANCE, Mode, cell_parameters, error
from benchmarks.machine import describe, write
from benchmarks.timing import interleave
from tagrank import ContextLSTM
from tagrank.nn import ContextGates
from tagrank.recurrence.dtypes import dtype_name

#: B, H and T. With T = 1 the cells take part too.
SIZES = ((1, 64, 1), (16, 128, 1), (1, 64, 20), (16, 256, 20))
MODES: tuple[Mode, ...] = ("inference", "training")
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
#: What each of ours is compared with.
PEERS = {"ContextLSTM": "nn.LSTM", "ContextLSTMCell": "nn.LSTMCell"}
IN_A_ROW = 20
#: Bytes that are written before a cold call, more than the second-level cache of a core has.
SWEPT = 1 << 24

Row = dict[str, Any]
Run = Callable[[], Sequence[Tensor]]
_OPERATOR = re.compile(r"(?!autograd::)\w+::\w+")


@dataclass(frozen=True)
class Subject:
    """A module and its call.

    Attributes:
        module: has the parameters.
        inputs: what the module reads. In training they have gradients too.
        bind: from the module and the inputs, a function that calls the module and returns the hidden states.
    """

    module: nn.Module
    inputs: Sequence[Tensor]
    bind: Callable[..., Callable[[], Tensor]]

    def run(self, mode: Mode) -> Run:
        """A pass: forward, or forward and the gradients of all inputs and parameters.

        The caller turns gradients off for inference.
        """
        leaves = [tensor.detach().requires_grad_(mode == "training") for tensor in self.inputs]
        call = self.bind(self.module, *leaves)
        if mode == "inference":
            return lambda: [call()]
        wanted, ones = [*leaves, *self.module.parameters()], torch.ones_like(call())
        return lambda: torch.autograd.grad(call(), wanted, ones, allow_unused=True)

    def results(self) -> list[Tensor | None]:
        """The hidden states, and the gradient of their sum with respect to each parameter."""
        output = self.bind(self.module, *self.inputs)()
        return [output.detach(), *torch.autograd.grad(output.sum(), [*self.module.parameters()], allow_unused=True)]

    def exact(self) -> "Subject":
        """The same in float64."""
        return Subject(copy.deepcopy(self.module).double(), [tensor.double() for tensor in self.inputs], self.bind)


def subjects(batch: int, hidden: int, steps: int, device: str) -> dict[str, Subject]:
    """The modules by name, with the same parameters. The context has as many features as the state."""
    torch.manual_seed(0)
    kind: dict[str, Any] = {"device": device, "dtype": DTYPES[device]}
    theirs, ours = nn.LSTM(hidden, hidden, **kind), ContextLSTM(hidden, hidden, **kind)
    ours.load_state_dict(theirs.state_dict())
    context, h, c = torch.randn(3, batch, hidden).to(**kind).unbind()
    found = {
        "nn.LSTM": Subject(theirs, [context], lambda module, x: lambda: module(x.expand(steps, -1, -1))[0]),
        "ContextLSTM": Subject(ours, [context], lambda module, x: lambda: module(x, steps)[0]),
    }
    if steps == 1:
        cell = nn.LSTMCell(hidden, hidden, **kind)
        cell.load_state_dict(cell_parameters(theirs))
        with torch.no_grad():
            gates = ours.cell().context_gates(context).gates
        found["nn.LSTMCell"] = Subject(cell, [context, h, c], _bind_cell)
        found["ContextLSTMCell"] = Subject(ours.cell(), [gates, h, c], _bind_context_cell)
    return found


def _bind_cell(module: nn.Module, context: Tensor, *states: Tensor) -> Callable[[], Tensor]:
    return lambda: module(context, states)[0]


def _bind_context_cell(module: nn.Module, gates: Tensor, *states: Tensor) -> Callable[[], Tensor]:
    context_gates = ContextGates(gates, None)
    return lambda: module(context_gates, None, states)[0]


def deviation(subject: Subject, peer: Subject) -> float:
    """The largest relative error of the subject's results, compared with its peer in float64.

    Gradients that one of them does not have are left out: with T = 1 there is none of ``weight_hh`` from zero states,
    and ContextLSTMCell reads the biases as part of the gates.
    """
    pairs = zip(subject.results(), peer.exact().results(), strict=True)
    both = [(got, want) for got, want in pairs if got is not None and want is not None and want.any()]
    return error(*zip(*both, strict=True))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Garbage is not collected inside the block, because its finalizers would be counted."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def count_calls(run: Callable[[], Any]) -> dict[str, int]:
    """The calls of Python and of built-in functions in one pass, without the call of ``run`` itself."""
    counts = {"call": -1, "c_call": 0}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event in counts:
            counts[event] += 1

    with _without_collection():
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            run()
        finally:
            sys.setprofile(before)
    return {"python_calls": counts["call"], "builtin_calls": counts["c_call"] - 1}  # the last one is setprofile


def count_operators(run: Callable[[], Any]) -> int:
    """The operators of one pass, on all threads."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr when it starts and stops
    with _without_collection(), autograd_profile(use_kineto=False) as profiled:
        run()
    return sum(bool(_OPERATOR.fullmatch(event.name)) for event in profiled.function_events or [])


def count_kernels(run: Callable[[], Any]) -> int:
    """What one pass runs on the GPU: kernels, copies and fills."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profiled.events() or [])


def count(run: Callable[[], Any], device: str) -> dict[str, int | None]:
    """All counts of one pass; ``kernels`` is ``None`` on a CPU."""
    kernels = count_kernels(run) if device == "cuda" else None
    return {"operators": count_operators(run), **count_calls(run), "kernels": kernels}


def in_a_row(run: Run) -> Callable[[], None]:
    """IN_A_ROW calls of ``run``."""

    def calls() -> None:
        for _ in range(IN_A_ROW):
            run()

    return calls


def measure(batch: int, hidden: int, steps: int, device: str, seconds: float) -> list[Row]:
    """A row for each module and mode. Each mode is timed for ``seconds`` in a row, and for as long cold."""
    rows: list[Row] = []
    dtype = DTYPES[device]
    everyone = subjects(batch, hidden, steps, device)
    errors = {name: deviation(subject, everyone[PEERS.get(name, name)]) for name, subject in everyone.items()}
    case = {"device": device, "dtype": dtype_name(dtype), "B": batch, "H": hidden, "T": steps}
    swept = torch.zeros(SWEPT // 4)
    for mode in MODES:
        runs = {name: subject.run(mode) for name, subject in everyone.items()}
        with torch.set_grad_enabled(mode == "training"):
            for run in [*runs.values()] * 3:  # what is made at first calls
                run()
            counts = {name: count(run, device) for name, run in runs.items()}
            warm = interleave({name: in_a_row(run) for name, run in runs.items()}, device, seconds)
            cold = interleave(runs, device, seconds, before=lambda: swept.add_(1.0))
        for name in runs:
            peer = PEERS.get(name)
            right = all(errors[one] <= TOLERANCE[dtype] for one in (name, peer) if one)
            row: Row = {**case, "mode": mode, "module": name, "error": errors[name], **counts[name]}
            for prefix, times, calls in (("", warm, IN_A_ROW), ("cold_", cold, 1)):
                time = times[name]
                low, median, high = (round(ms * 1e3 / calls, 1) for ms in (time.low, time.median, time.high))
                row |= {f"{prefix}us": median, f"{prefix}us_quartiles": [low, high], f"{prefix}rounds": time.rounds}
                ratio = round(time.median / times[peer].median, 3) if peer and right else None
                row[f"{prefix}ratio"] = ratio
            rows.append(row)
    return rows


def _line(row: Row) -> str:
    ratio, cold = (
        f"{row[key]:.2f}" if row[key] is not None else "WRONG" if row["module"] in PEERS else ""
        for key in ("ratio", "cold_ratio")
    )
    kernels = "" if row["kernels"] is None else row["kernels"]
    sizes = f"{row['device']:4} {row['B']:4} {row['H']:5} {row['T']:3} {row['mode']:9} {row['module']:15}"
    calls = f"{row['operators']:9} {row['python_calls']:12} {row['builtin_calls']:14} {kernels:>7}"
    return f"{sizes} {calls} {row['us']:9.1f} {ratio:>6} {row['cold_us']:9.1f} {cold:>6}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), nargs="+", default=there, help="default: all that is there"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="for each size and mode, in a row and as long cold (default: 1)"
    )
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    if "cuda" in args.device and "cuda" not in there:
        parser.error("--device cuda: PyTorch sees no GPU here")
    torch.set_num_threads(1)
    rows: list[Row] = []
    described = describe()
    columns = f"{'':4} {'B':>4} {'H':>5} {'T':>3} {'mode':9} {'module':15} {'operators':>9}"
    times = f"{'us':>9} {'ratio':>6} {'cold us':>9} {'ratio':>6}"
    print(f"{columns} {'python calls':>12} {'built-in calls':>14} {'kernels':>7} {times}")
    for device in args.device:
        for size in SIZES:
            measured = measure(*size, device, args.seconds)
            rows += measured
            if args.json:  # before the lines, which tell a reader that there is more in the file
                write(args.json, described | {"rows": rows})
            print(*map(_line, measured), sep="\n", flush=True)


if __name__ == "__main__":
    main()
