"""Measure how the time grows with the size of the problem.

The axes are time steps T, batch size B, hidden size H and context size D of the layer, and the number V of tags of the
ranker. On each axis one size varies and the others are fixed; the sizes are timed in turn. Two things are then fitted:

The local exponent between two neighbouring sizes is the slope of log time against log size. It is 0 if a fixed cost
dominates, 1 if the time is proportional to the size, and 2 for H if the products with the [4H, H] weights dominate.

The line "fixed + each * size" (for H: size squared) has the least relative error. A large error means that the growth
bends.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe, write
from benchmarks.timing import inference, interleave, training
from tagrank import ContextLSTM, TagRanker


@dataclass(frozen=True)
class Sizes:
    """A problem size. The defaults are the sizes that are fixed while another one varies.

    Attributes:
        T: time steps.
        B: batch size.
        H: hidden size.
        D: context size.
        V: tags.
    """

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


def runs(axis: str, sizes: Sequence[int], mode: str) -> dict[str, Callable[[], Any]]:
    """What is timed for each size on an axis: a pass of the layer, or, for V, of the ranker and its softmax."""
    made = {}
    for size in sizes:
        case = replace(Sizes(), **{axis: size})
        torch.manual_seed(0)
        context = torch.randn(case.B, case.D)
        module, forward = _ranker(case, context) if axis == "V" else _layer(case, context)
        made[str(size)] = inference(forward) if mode == "inference" else training(forward, list(module.parameters()))
    return made


def _layer(case: Sizes, context: Tensor) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    layer = ContextLSTM(case.D, case.H)
    return layer, lambda: layer(context, case.T)[0]


def _ranker(case: Sizes, feature: Tensor) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    # A ranker makes one step more than max_length, for END.
    ranker = TagRanker(case.D, case.V, max_length=case.T - 1, embedding_size=case.D, hidden_size=case.H).eval()
    return ranker, lambda: ranker(feature).log_softmax(dim=-1)


def fit(axis: str, sizes: Sequence[int], times: Sequence[float]) -> dict[str, Any]:
    """The local exponents and the line of the times (in milliseconds) at these sizes.

    Returns:
        ``exponents``, one less than there are sizes; ``fixed_ms`` and ``each_ms`` of the line; and ``largest_error``,
        the largest relative error of the line.
    """
    x, y = np.array(sizes, dtype=float), np.array(times)
    exponents = np.diff(np.log(y)) / np.diff(np.log(x))
    terms = np.stack([np.ones_like(x), x**2 if axis == "H" else x], axis=1)
    fixed, each = np.linalg.lstsq(terms / y[:, None], np.ones_like(y), rcond=None)[0]
    largest_error = float(np.abs(terms @ [fixed, each] / y - 1).max())
    return {
        "exponents": [round(float(e), 2) for e in exponents],
        "fixed_ms": round(float(fixed), 5),
        "each_ms": float(f"{each:.4g}"),
        "largest_error": round(largest_error, 3),
    }


def report(row: dict[str, Any]) -> str:
    """Three lines that print a row."""
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--axes", nargs="+", choices=tuple(AXES), default=tuple(AXES), help="the sizes to vary (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds for each axis and mode (default: 5)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    others = Sizes()
    print(f"where they do not vary: T={others.T}, B={others.B}, H={others.H}, D={others.D}, V={others.V}")
    rows = []
    for axis in args.axes:
        for mode in ("inference", "training"):
            times = interleave(runs(axis, AXES[axis], mode), "cpu", args.seconds)
            medians = [times[str(size)].median for size in AXES[axis]]
            row = {"axis": axis, "mode": mode, "sizes": AXES[axis], "ms": [round(ms, 4) for ms in medians]}
            rows.append(row | fit(axis, AXES[axis], medians))
            print(report(rows[-1]), flush=True)
    if args.json:
        write(args.json, describe() | {"rows": rows})


if __name__ == "__main__":
    main()
