"""Time ContextLSTM on sequences of different lengths, in both directions, and with a projection, against nn.LSTM.

Both read the same packed batch. For nn.LSTM the context is repeated and concatenated to the input, which counts;
without a context (C = 0) both compute the same products. Each result is compared with float64 first. The two run in
turn, and the speed-up is the ratio of their median times.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks.contestants import TOLERANCE, error
from benchmarks.machine import describe, write
from benchmarks.timing import inference, interleave, options, processor_times, training
from tagrank import ContextLSTM
from tagrank.nn.repeated import first_rows

#: Lengths are uniform from 1 to this.
STEPS = 40
MODES = ("inference", "training")
#: What the layer is, beside its sizes.
KINDS: dict[str, dict[str, Any]] = {
    "one direction": {},
    "both directions": {"bidirectional": True},
    "projection": {"proj_size": 64},
}


class Case(NamedTuple):
    """A problem size: batch size ``B``, hidden size ``H``, input size ``I``, context size ``C``."""

    B: int
    H: int
    I: int  # noqa: E741
    C: int


CASES = [Case(B, H, H, C) for B in (8, 64) for H in (128, 256, 512) for C in (0, H)]


class Batch(NamedTuple):
    """Packed rows ``[N, I]``, the context ``[B, C]``, and how the rows are packed."""

    rows: Tensor
    context: Tensor
    packing: PackedSequence

    def double(self) -> "Batch":
        return self._replace(rows=self.rows.double(), context=self.context.double())


def batch_of(case: Case) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, STEPS + 1, (case.B,), generator=generator)
    padded = torch.randn(STEPS, case.B, case.I, generator=generator)
    packing = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    context = torch.randn(case.B, case.C, generator=generator)
    return Batch(packing.data.requires_grad_(), context.requires_grad_(case.C > 0), packing)


def theirs(lstm: nn.LSTM, batch: Batch, sequence: Tensor) -> Tensor:
    rows = batch.rows
    if batch.context.shape[1] > 0:
        rows = torch.cat([rows, batch.context.index_select(0, sequence)], dim=-1)
    output: Tensor = lstm(PackedSequence(rows, *batch.packing[1:]))[0].data
    return output


def ours(layer: ContextLSTM, batch: Batch) -> Tensor:
    context = batch.context if batch.context.shape[1] > 0 else None
    return layer(context, input=PackedSequence(batch.rows, *batch.packing[1:]))[0].data


def measure(case: Case, kind: str, seconds: float, processor: bool = False) -> list[dict[str, Any]]:
    """A row for each mode. ``speedup`` is nn.LSTM's time divided by ours, or ``None`` if a result is wrong."""
    torch.manual_seed(0)
    layer = ContextLSTM(case.C, case.H, input_size=case.I, **KINDS[kind])
    lstm, batch = layer.to_lstm(), batch_of(case)
    order = batch.packing.sorted_indices
    assert order is not None
    sequence = order[first_rows(batch.packing)]
    leaves = [batch.rows, *([batch.context] if case.C else [])]
    exact = oracle(lstm, batch, sequence)
    runs: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "nn.LSTM": (lstm, lambda: theirs(lstm, batch, sequence)),
        "ContextLSTM": (layer, lambda: ours(layer, batch)),
    }
    rows = []
    for mode in MODES:
        timed = {
            name: inference(run) if mode == "inference" else training(run, [*leaves, *module.parameters()])
            for name, (module, run) in runs.items()
        }
        errors = {name: error(run(), exact[mode]) for name, run in timed.items()}
        times = processor_times(timed, seconds) if processor else interleave(timed, "cpu", seconds)
        right = all(e <= TOLERANCE[torch.float32] for e in errors.values())
        speedup = round(times["nn.LSTM"].median / times["ContextLSTM"].median, 3)
        rows.append(
            {
                **case._asdict(),
                "kind": kind,
                "mode": mode,
                "errors": errors,
                "times": {name: time.columns() for name, time in times.items()},
                "speedup": speedup if right else None,
            }
        )
    return rows


def oracle(lstm: nn.LSTM, batch: Batch, sequence: Tensor) -> dict[str, list[Tensor]]:
    """For each mode its right result in float64: hidden states, or gradients by the inputs and each parameter."""
    options = {"bidirectional": lstm.bidirectional, "proj_size": lstm.proj_size}
    exact = nn.LSTM(lstm.input_size, lstm.hidden_size, **options).double()
    exact.load_state_dict(lstm.state_dict())
    double = batch.double()
    leaves = [double.rows, *([double.context] if double.context.shape[1] else [])]
    output = theirs(exact, double, sequence)
    gradients = torch.autograd.grad(output.sum(), [*leaves, *exact.parameters()])
    return {"inference": [output.detach()], "training": list(gradients)}


def line(row: dict[str, Any]) -> str:
    """A row, as it is printed."""
    times = " ".join(f"{name} {columns['ms']:.2f} ms" for name, columns in row["times"].items())
    size = " ".join(f"{axis}={row[axis]:<{width}}" for axis, width in (("B", 3), ("H", 4), ("I", 4), ("C", 4)))
    return f"{size} {row['kind']:15} {row['mode']:9} {times}: {row['speedup'] or 'wrong'}"


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The median and the worst speed-up for each kind and mode, over the cases whose results are right."""
    found = []
    for kind in KINDS:
        for mode in MODES:
            speedups = [r["speedup"] for r in rows if (r["kind"], r["mode"]) == (kind, mode) and r["speedup"]]
            median = round(statistics.median(speedups), 3) if speedups else None
            worst = min(speedups, default=None)
            found.append({"kind": kind, "mode": mode, "cases": len(speedups), "median": median, "worst": worst})
    return found


def main() -> None:
    args = options("benchmarks.packed", __doc__, 2.0)
    described = describe() | {"clock": args.clock}
    rows = []
    for case in CASES:
        for kind in KINDS:
            for row in measure(case, kind, args.seconds, args.processor_time):
                rows.append(row)
                print(line(row), flush=True)
    for found in summary(rows):
        print(f"{found['kind']}, {found['mode']}: {found['median']}x nn.LSTM, worst {found['worst']}x")
    if args.json:
        write(args.json, described | {"steps": STEPS, "summary": summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
