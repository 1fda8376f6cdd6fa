"""How the cost grows: the layer against steps T, batch B, hidden size H and context size D, the ranker against V tags.

Along each axis the sizes are timed in turn. Two things are fitted. The *local exponent* between neighbouring sizes is
the slope of log time against log size: 0 where a fixed cost rules, 1 where the cost is proportional, 2 in H, for the
products with ``[4H, H]`` weights. The *line* ``fixed + each * size`` (with H, in H squared) minimises the relative
error; how far it is off shows where the growth bends.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe, write
from benchmarks.timing import interleave
from tagrank import ContextLSTM, TagRanker


@dataclass(frozen=True)
class Sizes:
    """The sizes that do not vary along an axis."""

    T: int = 20
    B: int = 64
    H: int = 256
    D: int = 256
    V: int = 512


AXES: dict[str, tuple[int, ...]] = {
    "T": (1, 2, 5, 10, 20, 40, 80, 160),
    "B": (1, 4, 16, 64, 256, 1024),
    "H": (64, 128, 256, 512, 1024),
    "D": (64, 256, 1024, 4096),
    "V": (128, 512, 2048, 8192, 32768),
}


def runs(axis: str, sizes: Sequence[int], training: bool) -> dict[str, Callable[[], Any]]:
    """For each size along the axis what is timed: the layer, or for V the ranker with its classifier and softmax."""
    made = {}
    for size in sizes:
        case = replace(Sizes(), **{axis: size})
        torch.manual_seed(0)
        context = torch.randn(case.B, case.D)
        module: torch.nn.Module
        if axis == "V":
            module = TagRanker(case.D, case.V, max_length=case.T - 1, embedding_size=case.D, hidden_size=case.H).eval()
            forward = _ranker(module, context)
        else:
            module = ContextLSTM(case.D, case.H)
            forward = _layer(module, context, case.T)
        made[str(size)] = _training(module, forward) if training else _inference(forward)
    return made


def _layer(layer: torch.nn.Module, context: torch.Tensor, steps: int) -> Callable[[], torch.Tensor]:
    return lambda: layer(context, steps)[0]


def _ranker(ranker: torch.nn.Module, feature: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: ranker(feature).log_softmax(dim=-1)


def _inference(forward: Callable[[], torch.Tensor]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return forward()

    return run


def _training(module: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> Callable[[], Any]:
    parameters = list(module.parameters())
    return lambda: torch.autograd.grad(forward().sum(), parameters)


def fit(axis: str, sizes: Sequence[int], times: Sequence[float]) -> dict[str, Any]:
    """The local exponents, and ``fixed`` and ``each`` in milliseconds with the largest relative error of their line."""
    x, y = np.array(sizes, dtype=float), np.array(times)
    exponents = np.diff(np.log(y)) / np.diff(np.log(x))
    terms = np.stack([np.ones_like(x), x**2 if axis == "H" else x], axis=1)
    fixed, each = np.linalg.lstsq(terms / y[:, None], np.ones_like(y), rcond=None)[0]
    off = float(np.abs(terms @ [fixed, each] / y - 1).max())
    return {
        "exponents": [round(float(e), 2) for e in exponents],
        "fixed_ms": round(float(fixed), 5),
        "each_ms": float(f"{each:.4g}"),
        "largest_error": round(off, 3),
    }


def report(row: dict[str, Any]) -> str:
    """A row in three lines."""
    unit = f"{row['axis']}^2" if row["axis"] == "H" else row["axis"]
    return "\n".join(
        (
            f"{row['axis']}, {row['mode']}:",
            "  " + "  ".join(f"{s}: {ms:.3g} ms" for s, ms in zip(row["sizes"], row["ms"], strict=True)),
            f"  exponents {' '.join(f'{e:.2f}' for e in row['exponents'])}; "
            f"line {row['fixed_ms']:.3g} + {row['each_ms']:.3g} {unit} ms, off by {row['largest_error']:.0%} at most",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=tuple(AXES))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each axis and mode (default: 5)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    others = Sizes()
    print(f"where they do not vary: T={others.T}, B={others.B}, H={others.H}, D={others.D}, V={others.V}")
    rows = []
    for axis in args.axes:
        for mode in ("inference", "training"):
            times = interleave(runs(axis, AXES[axis], mode == "training"), "cpu", args.seconds)
            medians = [times[str(size)].median for size in AXES[axis]]
            row = {"axis": axis, "mode": mode, "sizes": AXES[axis], "ms": [round(ms, 4) for ms in medians]}
            rows.append(row | fit(axis, AXES[axis], medians))
            print(report(rows[-1]), flush=True)
    if args.json:
        write(args.json, describe() | {"rows": rows})


if __name__ == "__main__":
    main()
