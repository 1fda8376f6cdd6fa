"""Time our backends against nn.LSTM and an nn.LSTMCell loop, in inference and in training.

Nobody's time counts before the result was compared with float64. The contestants of a case run in turn, round after
round, so that a machine that slows down slows all of them; medians and quartiles are over the rounds.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import TOLERANCE, Case, Contestant, contestants, error, oracle
from tagrank import env

BATCHES, HIDDEN, STEPS = (1, 16, 64, 256), (256, 512, 1024), (10, 20)


def measure(case: Case, seconds: float) -> list[dict[str, Any]]:
    """A row for each contestant and pass: median and quartiles in milliseconds, and whether it was right."""
    lstm, context = case.make()
    want, want_gradients = oracle(case, lstm, context)
    rows = []
    for mode in ("inference", "training"):
        runs: dict[str, tuple[Contestant, Callable[[], Any]]] = {}
        errors = {}
        for contestant in contestants(case, lstm):
            leaf = context.clone().requires_grad_(mode == "training")
            run = _inference(contestant, leaf) if mode == "inference" else _training(contestant, leaf)
            errors[contestant.name] = error(run(), [want] if mode == "inference" else want_gradients)
            runs[contestant.name] = (contestant, run)
        times = _interleave({name: run for name, (_, run) in runs.items()}, case.device, seconds)
        right = {name: e <= TOLERANCE[case.dtype] for name, e in errors.items()}
        peers = [statistics.median(times[n]) for n, (c, _) in runs.items() if not c.ours and right[n]]
        for name, (contestant, _) in runs.items():
            low, median, high = statistics.quantiles(times[name], n=4)
            rows.append(
                {
                    "B": case.batch,
                    "H": case.hidden,
                    "T": case.steps,
                    "dtype": str(case.dtype).removeprefix("torch."),
                    "mode": mode,
                    "name": name,
                    "ours": contestant.ours,
                    "error": errors[name],
                    "right": right[name],
                    "ms": round(median, 4),
                    "ms_quartiles": [round(low, 4), round(high, 4)],
                    "rounds": len(times[name]),
                    "speedup": round(min(peers) / median, 3) if contestant.ours and right[name] and peers else None,
                }
            )
    return rows


def _inference(contestant: Contestant, context: torch.Tensor) -> Callable[[], Sequence[torch.Tensor]]:
    def run() -> Sequence[torch.Tensor]:
        with torch.no_grad():
            return [contestant.forward(context)]

    return run


def _training(contestant: Contestant, context: torch.Tensor) -> Callable[[], Sequence[torch.Tensor]]:
    leaves = [context, *contestant.module.parameters()]

    def run() -> Sequence[torch.Tensor]:
        return torch.autograd.grad(contestant.forward(context).sum(), leaves)

    return run


def _interleave(runs: dict[str, Callable[[], Any]], device: str, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call, the contestants in turn: at least 5 rounds, then until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    for run in runs.values():
        run()
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < 5 or time.perf_counter() < end:
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Geometric mean and worst case of each backend of ours over the fastest right peer of each case."""
    lines = []
    for mode in ("inference", "training"):
        for name in sorted({row["name"] for row in rows if row["ours"]}):
            ratios = [r["speedup"] for r in rows if r["name"] == name and r["mode"] == mode and r["speedup"]]
            if ratios:
                mean = statistics.geometric_mean(ratios)
                lines.append(
                    f"{name}, {mode}: {mean:.2f}x the fastest peer, worst {min(ratios):.2f}x, {len(ratios)} cases"
                )
    wrong = [row for row in rows if not row["right"]]
    lines += [f"WRONG: {r['name']} {r['mode']} B={r['B']} H={r['H']} T={r['T']}: error {r['error']:.1e}" for r in wrong]
    return lines


def _commit() -> str:
    """The commit of the working tree, marked where it has changes."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("-B", type=int, nargs="+", default=BATCHES, help="batch sizes")
    parser.add_argument("-H", type=int, nargs="+", default=HIDDEN, help="hidden sizes, and sizes of the context")
    parser.add_argument("-T", type=int, nargs="+", default=STEPS, help="numbers of steps")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case and pass (default: 2)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    # float32 means float32, for everyone: cuDNN would take TF32 by default, and fail the check.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False

    rows = []
    print(f"{'B':>4} {'H':>5} {'T':>3} {'pass':9} {'contestant':18} {'ms':>9} {'speedup':>8}  error")
    for hidden in args.H:
        for batch in args.B:
            for steps in args.T:
                case = Case(batch, hidden, steps, getattr(torch, args.dtype), args.device)
                for row in measure(case, args.seconds):
                    rows.append(row)
                    speedup = f"{row['speedup']:.2f}x" if row["speedup"] else ""
                    mark = "" if row["right"] else "  WRONG"
                    print(
                        f"{batch:4} {hidden:5} {steps:3} {row['mode']:9} {row['name']:18} {row['ms']:9.3f} {speedup:>8}"
                        f"  {row['error']:.1e}{mark}",
                        flush=True,
                    )
    print(*summary(rows), sep="\n")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"environment": env(), "commit": _commit(), "summary": summary(rows), "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
