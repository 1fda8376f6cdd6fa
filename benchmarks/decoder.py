"""Time a decoder that reads an input at each step beside its context: a whole sequence, and step by step.

The first is teacher forcing, ``ContextLSTM`` against ``nn.LSTM`` on ``cat([x_t, context])``; the second is generation,
``ContextLSTMCell`` against ``nn.LSTMCell`` on the same; the concatenation is part of what the peers do. Each result is
compared with float64 first; the two run in turn, and medians are compared.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.contestants import TOLERANCE, error
from benchmarks.machine import describe, write
from benchmarks.timing import interleave
from tagrank import ContextLSTM, ContextLSTMCell

STEPS = 20
MODES = ("inference", "training")
KINDS = {"sequence": ("nn.LSTM", "ContextLSTM"), "steps": ("nn.LSTMCell", "ContextLSTMCell")}


class Case(NamedTuple):
    """Batch ``B``, hidden size ``H``, input size ``I``, context size ``C``."""

    B: int
    H: int
    I: int  # noqa: E741
    C: int


# An embedding as large as the state, and an image feature as large (projected) or as a ResNet-50 gives it.
CASES = [Case(B, H, H, C) for B in (1, 16, 64) for H in (256, 512) for C in (H, 2048)]


def whole(lstm: nn.LSTM) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda context, input: lstm(torch.cat([input, context.expand(len(input), -1, -1)], dim=-1))[0]


def ours_whole(lstm: ContextLSTM) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda context, input: lstm(context, input=input)[0]


def stepwise(cell: nn.LSTMCell) -> Callable[[Tensor, Tensor], Tensor]:
    def run(context: Tensor, input: Tensor) -> Tensor:
        state, states = None, []
        for x in input:
            state = cell(torch.cat([x, context], dim=-1), state)
            states.append(state[0])
        return torch.stack(states)

    return run


def ours_stepwise(cell: ContextLSTMCell) -> Callable[[Tensor, Tensor], Tensor]:
    def run(context: Tensor, input: Tensor) -> Tensor:
        gates, state, states = cell.context_gates(context), None, []
        for x in input:
            state = cell(gates, x, state)
            states.append(state[0])
        return torch.stack(states)

    return run


def contestants(case: Case, kind: str, lstm: nn.LSTM) -> list[tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]]:
    """The peer and ours, with the parameters of ``lstm``."""
    if kind == "sequence":
        layer = ContextLSTM(case.C, case.H, input_size=case.I)
        layer.load_state_dict(lstm.state_dict())
        return [(lstm, whole(lstm)), (layer, ours_whole(layer))]
    weights = {name.removesuffix("_l0"): p for name, p in lstm.state_dict().items()}
    theirs, cell = nn.LSTMCell(case.I + case.C, case.H), ContextLSTMCell(case.C, case.H, input_size=case.I)
    theirs.load_state_dict(weights)
    cell.load_state_dict(weights)
    return [(theirs, stepwise(theirs)), (cell, ours_stepwise(cell))]


def measure(case: Case, kind: str, seconds: float) -> list[dict[str, Any]]:
    """A row for each mode."""
    torch.manual_seed(0)
    lstm = nn.LSTM(case.I + case.C, case.H)
    leaves = [torch.randn(case.B, case.C), torch.randn(STEPS, case.B, case.I)]
    for leaf in leaves:
        leaf.requires_grad_()
    exact = nn.LSTM(case.I + case.C, case.H).double()
    exact.load_state_dict(lstm.state_dict())
    output = whole(exact)(*(leaf.double() for leaf in leaves))
    gradients = torch.autograd.grad(output.sum(), [*leaves, *exact.parameters()])
    wanted = {"inference": [output.detach()], "training": list(gradients)}

    rows = []
    for mode in MODES:
        runs: dict[str, Callable[[], Sequence[Tensor]]] = {}
        for name, (module, forward) in zip(KINDS[kind], contestants(case, kind, lstm), strict=True):

            def run(module: nn.Module = module, forward: Any = forward, mode: str = mode) -> Sequence[Tensor]:
                if mode == "inference":
                    with torch.no_grad():
                        return [forward(*leaves)]
                return torch.autograd.grad(forward(*leaves).sum(), [*leaves, *module.parameters()])

            runs[name] = run
        errors = {name: error(run(), wanted[mode]) for name, run in runs.items()}
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


def line(row: dict[str, Any]) -> str:
    name = KINDS[row["kind"]][1]
    times = " ".join(f"{n} {t['ms']:.2f} ms" for n, t in row["times"].items())
    size = " ".join(f"{name}={row[name]:<{width}}" for name, width in (("B", 3), ("H", 4), ("I", 4), ("C", 5)))
    return f"{size} {name:16} {row['mode']:9} {times}: {row['speedup'] or 'wrong'}"


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median and worst speed-up for each kind and mode."""
    found = []
    for kind in KINDS:
        for mode in MODES:
            speedups = [r["speedup"] for r in rows if (r["kind"], r["mode"]) == (kind, mode) and r["speedup"]]
            ours, peer = KINDS[kind][1], KINDS[kind][0]
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
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison")
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
