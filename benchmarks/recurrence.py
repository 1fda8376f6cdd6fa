"""Time our backends against their peers, in inference and in training.

The peers are nn.LSTM on the repeated context, an nn.LSTMCell loop, and the loop with a constant input, eager and under
torch.compile; on GPUs also FlashRNN where it is installed, and the loop and our kernels in CUDA graphs. Nobody's time
counts before the result was compared with float64. The contestants of a case run in turn, round after round; medians
and quartiles are over the rounds. Each time is set against a floor: the operations and bytes that cannot be left out,
over the rates of the machine, measured in the same run.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import TOLERANCE, Case, Contestant, Mode, contestants, error, oracle
from benchmarks.machine import Rates, describe, measure_rates, write
from benchmarks.timing import interleave

BATCHES, HIDDEN, STEPS = (1, 16, 64, 256), (256, 512, 1024), (10, 20)
MODES: tuple[Mode, ...] = ("inference", "training")

Row = dict[str, Any]
Run = Callable[[], Sequence[torch.Tensor]]


def measure(case: Case, rates: Rates, seconds: float, compiled: bool = True) -> list[Row]:
    """A row for each contestant and mode: times in milliseconds, whether it was right, and how far from the floor.

    ``speedup`` is the time of the fastest right peer over that of a contestant of ours that is right, else ``None``;
    ``of_floor`` the floor over the time, 1 where nothing could be faster. On an H100 ``of_model`` is the same for the
    floor of our kernels as they are, by ``tagrank.kernels.roofline``.
    """
    lstm, context = case.make()
    want, want_gradients = oracle(case, lstm, context)
    everyone = contestants(case, lstm, compiled)
    rows: list[Row] = []
    for mode in MODES:
        runs, errors = {}, {}
        for contestant in everyone:
            if contestant.kind == "floor" and mode == "training":
                continue
            run = prepare(contestant, context, mode)
            if contestant.kind != "floor":
                errors[contestant.name] = error(run(), [want] if mode == "inference" else want_gradients)
            runs[contestant.name] = run
        times = interleave(runs, case.device, seconds)
        floor = rates.floor_ms(case.flops(mode), case.bytes_moved(mode))
        models = {c.name: c.model_ms[mode] for c in everyone if mode in c.model_ms}
        kinds = {contestant.name: contestant.kind for contestant in everyone}
        right = {name: e <= TOLERANCE[case.dtype] for name, e in errors.items()}
        fastest = min((times[n].median for n in right if kinds[n] == "peer" and right[n]), default=None)
        for name, time in times.items():
            model = models.get(name)
            modelled = {} if model is None else {"model_ms": round(model, 4), "of_model": round(model / time.median, 3)}
            won = kinds[name] == "ours" and right[name] and fastest is not None
            rows.append(
                {
                    "B": case.batch,
                    "H": case.hidden,
                    "T": case.steps,
                    "dtype": str(case.dtype).removeprefix("torch."),
                    "mode": mode,
                    "name": name,
                    "kind": kinds[name],
                    "error": errors.get(name),
                    "right": right.get(name),
                    **time.columns(),
                    "floor_ms": round(floor, 4),
                    "of_floor": round(floor / time.median, 3),
                    **modelled,
                    "speedup": round(fastest / time.median, 3) if won and fastest is not None else None,
                }
            )
    return rows


def prepare(contestant: Contestant, context: torch.Tensor, mode: Mode) -> Run:
    """What is timed: a forward pass without gradients, or one with those of all parameters and the context."""
    if mode == "inference":

        def run() -> Sequence[torch.Tensor]:
            with torch.no_grad(), contestant.within():
                return [contestant.forward(context)]

    else:
        leaf = context.clone().requires_grad_()
        leaves = [leaf, *contestant.module.parameters()]

        def run() -> Sequence[torch.Tensor]:
            with contestant.within():
                return torch.autograd.grad(contestant.forward(leaf).sum(), leaves)

    return _captured(run) if contestant.graphed else run


def _captured(run: Run) -> Run:
    """The same run as the replay of a CUDA graph; its results are overwritten by the next one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> Sequence[torch.Tensor]:
        graph.replay()
        return results

    return replay


def summary(rows: list[Row]) -> list[str]:
    """For each of ours and each mode the geometric mean and worst case over the fastest peer; and what was wrong."""
    lines = []
    for mode in MODES:
        for name in sorted({row["name"] for row in rows if row["kind"] == "ours"}):
            ours = [row for row in rows if row["name"] == name and row["mode"] == mode and row["speedup"]]
            if ours:
                mean = statistics.geometric_mean(row["speedup"] for row in ours)
                floor = statistics.geometric_mean(row["of_floor"] for row in ours)
                worst = min(row["speedup"] for row in ours)
                lines.append(
                    f"{name}, {mode}: {mean:.2f}x the fastest peer, worst {worst:.2f}x, "
                    f"{floor:.0%} of the machine's limit, {len(ours)} cases"
                )
    wrong = [row for row in rows if row["right"] is False]
    lines += [f"WRONG: {r['name']} {r['mode']} B={r['B']} H={r['H']} T={r['T']}: error {r['error']:.1e}" for r in wrong]
    return lines


def _line(row: Row) -> str:
    speedup = f"{row['speedup']:.2f}x" if row["speedup"] else ""
    verdict = "" if row["error"] is None else f"{row['error']:.1e}{'' if row['right'] else '  WRONG'}"
    return (
        f"{row['B']:4} {row['H']:5} {row['T']:3} {row['mode']:9} {row['name']:28} {row['ms']:9.3f} "
        f"{row['of_floor']:6.0%} {speedup:>8}  {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("-B", type=int, nargs="+", default=BATCHES, help="batch sizes")
    parser.add_argument("-H", type=int, nargs="+", default=HIDDEN, help="hidden sizes, and sizes of the context")
    parser.add_argument("-T", type=int, nargs="+", default=STEPS, help="numbers of steps")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case and mode (default: 2)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes the most time")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    parser.add_argument("--plot", type=Path, help="draw time against B, H and T into this file (.png, .svg, .pdf)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if min(*args.B, *args.H, *args.T) < 1:
        parser.error("-B, -H, -T: expected positive numbers")
    # float32 means float32, for everyone: cuDNN would take TF32 by default, and fail the check.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, args.dtype)

    rows: list[Row] = []
    rates = measure_rates(args.device, dtype)
    described = describe(rates)
    print(f"rates: {rates.gflops:.0f} GFLOP/s, {rates.gbytes:.0f} GB/s of main memory")
    print(f"{'B':>4} {'H':>5} {'T':>3} {'mode':9} {'contestant':28} {'ms':>9} {'limit':>6} {'speedup':>8}  error")
    for hidden in args.H:
        for batch in args.B:
            for steps in args.T:
                case = Case(batch, hidden, steps, dtype, args.device)
                measured = measure(case, rates, args.seconds, not args.no_compile)
                print(*map(_line, measured), sep="\n", flush=True)
                rows += measured
                if args.json:  # after each case, so that what was measured is kept whatever comes
                    write(args.json, described | {"summary": summary(rows), "rows": rows})
    print(*summary(rows), sep="\n")
    if args.plot:
        from benchmarks.plots import plot

        plot(rows, args.plot)


if __name__ == "__main__":
    main()
