"""Time a decoder that reads an input in each time step, in addition to its context.

A whole sequence, as in teacher forcing: ContextLSTM against nn.LSTM on cat([x_t, context]).
Step by step, as in generation: ContextLSTMCell against nn.LSTMCell on cat([x_t, context]).

The time of the concatenation counts for the peers. Each result is compared with float64 first. The two contestants run
in turn, and the speed-up is the ratio of their median times.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.contestants import TOLERANCE, cell_parameters, error
from benchmarks.machine import describe, write
from benchmarks.timing import inference, interleave, training
from tagrank import ContextLSTM, ContextLSTMCell

STEPS = 20
MODES = ("inference", "training")
#: For each kind of decoding, the peer and ours.
KINDS = {"sequence": ("nn.LSTM", "ContextLSTM"), "steps": ("nn.LSTMCell", "ContextLSTMCell")}

#: From the context [B, C] and the input [T, B, I] to the hidden states [T, B, H].
Forward = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """A problem size: batch size ``B``, hidden size ``H``, input size ``I``, context size ``C``."""

    B: int
    H: int
    I: int  # noqa: E741
    C: int


# The input is an embedding as large as the hidden state. The context is an image feature, either projected to that size
# or with the 2048 numbers that a ResNet-50 gives.
CASES = [Case(B, H, H, C) for B in (1, 16, 64) for H in (256, 512) for C in (H, 2048)]


def whole(lstm: nn.LSTM) -> Forward:
    return lambda context, input: lstm(torch.cat([input, context.expand(len(input), -1, -1)], dim=-1))[0]


def ours_whole(lstm: ContextLSTM) -> Forward:
    return lambda context, input: lstm(context, input=input)[0]


def stepwise(cell: nn.LSTMCell) -> Forward:
    def run(context: Tensor, input: Tensor) -> Tensor:
        state, states = None, []
        for x in input:
            state = cell(torch.cat([x, context], dim=-1), state)
            states.append(state[0])
        return torch.stack(states)

    return run


def ours_stepwise(cell: ContextLSTMCell) -> Forward:
    def run(context: Tensor, input: Tensor) -> Tensor:
        gates, state, states = cell.context_gates(context), None, []
        for x in input:
            state = cell(gates, x, state)
            states.append(state[0])
        return torch.stack(states)

    return run


def contestants(case: Case, kind: str, lstm: nn.LSTM) -> list[tuple[nn.Module, Forward]]:
    """The peer and ours, in the order of ``KINDS``, with the parameters of ``lstm``."""
    if kind == "sequence":
        layer = ContextLSTM(case.C, case.H, input_size=case.I)
        layer.load_state_dict(lstm.state_dict())
        return [(lstm, whole(lstm)), (layer, ours_whole(layer))]
    theirs, ours = nn.LSTMCell(case.I + case.C, case.H), ContextLSTMCell(case.C, case.H, input_size=case.I)
    theirs.load_state_dict(cell_parameters(lstm))
    ours.load_state_dict(cell_parameters(lstm))
    return [(theirs, stepwise(theirs)), (ours, ours_stepwise(ours))]


def measure(case: Case, kind: str, seconds: float) -> list[dict[str, Any]]:
    """A row for each mode. ``speedup`` is the peer's time divided by ours, or ``None`` if a result is wrong."""
    torch.manual_seed(0)
    lstm = nn.LSTM(case.I + case.C, case.H)
    context, input = torch.randn(case.B, case.C), torch.randn(STEPS, case.B, case.I)
    leaves = [context.requires_grad_(), input.requires_grad_()]
    exact = oracle(case, lstm, leaves)
    rows = []
    for mode in MODES:
        runs = {
            name: prepare(module, forward, leaves, mode)
            for name, (module, forward) in zip(KINDS[kind], contestants(case, kind, lstm), strict=True)
        }
        errors = {name: error(run(), exact[mode]) for name, run in runs.items()}
        times = interleave(runs, "cpu", seconds)
        theirs, ours = (times[name].median for name in KINDS[kind])
        right = all(e <= TOLERANCE[torch.float32] for e in errors.values())
        rows.append(
            {
                **case._asdict(),
                "T": STEPS,
                "kind": kind,
                "mode": mode,
                "errors": errors,
                "right": right,
                "times": {name: time.columns() for name, time in times.items()},
                "speedup": round(theirs / ours, 3) if right else None,
            }
        )
    return rows


def oracle(case: Case, lstm: nn.LSTM, leaves: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """For each mode its right result in float64: hidden states, or gradients by ``leaves`` and each parameter."""
    exact = nn.LSTM(case.I + case.C, case.H).double()
    exact.load_state_dict(lstm.state_dict())
    output = whole(exact)(*(leaf.double() for leaf in leaves))
    gradients = torch.autograd.grad(output.sum(), [*leaves, *exact.parameters()])
    return {"inference": [output.detach()], "training": list(gradients)}


def prepare(module: nn.Module, forward: Forward, leaves: Sequence[Tensor], mode: str) -> Callable[[], Sequence[Tensor]]:
    """What is timed: a forward pass without gradients, or one with the gradients of ``leaves`` and all parameters."""
    if mode == "inference":
        return inference(lambda: forward(*leaves))
    return training(lambda: forward(*leaves), [*leaves, *module.parameters()])


def line(row: dict[str, Any]) -> str:
    """A row, as it is printed."""
    ours = KINDS[row["kind"]][1]
    times = " ".join(f"{name} {columns['ms']:.2f} ms" for name, columns in row["times"].items())
    size = " ".join(f"{axis}={row[axis]:<{width}}" for axis, width in (("B", 3), ("H", 4), ("I", 4), ("C", 5)))
    return f"{size} {ours:16} {row['mode']:9} {times}: {row['speedup'] or 'wrong'}"


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The median and the worst speed-up for each kind and mode, over the cases whose results are right."""
    found = []
    for kind in KINDS:
        for mode in MODES:
            speedups = [r["speedup"] for r in rows if (r["kind"], r["mode"]) == (kind, mode) and r["speedup"]]
            peer, ours = KINDS[kind]
            found.append(
                {
                    "name": ours,
                    "peer": peer,
                    "mode": mode,
                    "cases": len(speedups),
                    "median": round(statistics.median(speedups), 3) if speedups else None,
                    "worst": min(speedups, default=None),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds for each comparison (default: 2)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    described = describe()
    rows = []
    for case in CASES:
        for kind in KINDS:
            for row in measure(case, kind, args.seconds):
                rows.append(row)
                print(line(row), flush=True)
    for found in summary(rows):
        print(f"{found['name']}, {found['mode']}: {found['median']}x {found['peer']}, worst {found['worst']}x")
    if args.json:
        write(args.json, described | {"steps": STEPS, "summary": summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
