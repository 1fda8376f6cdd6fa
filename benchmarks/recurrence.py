"""Time tagrank's backends against their peers, in inference and in training.

The peers are

- nn.LSTM on the repeated context;
- a loop over nn.LSTMCell;
- a loop with a constant input, which computes the context's share of the gates once: eager and under torch.compile;
- on GPUs, FlashRNN if it is installed.

On GPUs, the eager loop and tagrank's kernels also run in CUDA graphs.

Each result is first compared with float64. Ours has no speed-up if it is wrong, and a wrong peer does not count. The
contestants of a case run in turn, round after round. Times are medians over the rounds, with quartiles. Each time is
compared with a floor: the operations and bytes that cannot be left out, divided by the rates of the machine, which the
same run measures.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import TOLERANCE, Case, Contestant, Mode, contestants, error, oracle
from benchmarks.machine import Rates, describe, measure_rates, write
from benchmarks.timing import Times, inference, interleave, training

BATCHES, HIDDEN, STEPS = (1, 16, 64, 256), (256, 512, 1024), (10, 20)
MODES: tuple[Mode, ...] = ("inference", "training")

Row = dict[str, Any]
Run = Callable[[], Sequence[torch.Tensor]]


def measure(case: Case, rates: Rates, seconds: float, compiled: bool = True) -> list[Row]:
    """A row for each contestant and mode.

    A row has the case, the contestant, its relative error (``None`` for a floor), whether that is within ``TOLERANCE``
    (``right``), its times in milliseconds, and

    - ``speedup``: the time of the fastest right peer divided by the contestant's. ``None`` for a peer, a floor, and a
      wrong result.
    - ``of_floor``: the floor divided by the contestant's time. It is 1 if nothing could be faster.
    - ``of_model``, for our kernels on an H100: the same for the floor that ``tagrank.kernels.roofline`` gives these
      kernels with their division of the work.

    Args:
        case: the problem size.
        rates: the rates of the machine.
        seconds: how long each mode is timed.
        compiled: whether the loop under ``torch.compile`` takes part.
    """
    lstm, context = case.make()
    output, gradients = oracle(case, lstm, context)
    everyone = contestants(case, lstm, compiled)
    rows: list[Row] = []
    for mode in MODES:
        competing = [one for one in everyone if not (one.kind == "floor" and mode == "training")]
        runs = {one.name: prepare(one, context, mode) for one in competing}
        wanted = [output] if mode == "inference" else gradients
        errors = {one.name: error(runs[one.name](), wanted) for one in competing if one.kind != "floor"}
        times = interleave(runs, case.device, seconds)
        right = {name for name, e in errors.items() if e <= TOLERANCE[case.dtype]}
        peers = [times[one.name].median for one in competing if one.kind == "peer" and one.name in right]
        fastest = min(peers, default=None)
        floor = rates.floor_ms(case.flops(mode), case.bytes_moved(mode))
        for one in competing:
            peer = fastest if one.kind == "ours" and one.name in right else None
            rows.append(_row(case, one, mode, times[one.name], errors.get(one.name), floor, peer))
    return rows


def _row(
    case: Case, one: Contestant, mode: Mode, time: Times, relative_error: float | None, floor: float, peer: float | None
) -> Row:
    """A contestant's row. ``floor``, and ``peer``, which it is compared with, are in milliseconds."""
    model = one.model_ms.get(mode)
    modelled = {} if model is None else {"model_ms": round(model, 4), "of_model": round(model / time.median, 3)}
    return {
        "B": case.batch,
        "H": case.hidden,
        "T": case.steps,
        "dtype": str(case.dtype).removeprefix("torch."),
        "mode": mode,
        "name": one.name,
        "kind": one.kind,
        "error": relative_error,
        "right": None if relative_error is None else relative_error <= TOLERANCE[case.dtype],
        **time.columns(),
        "floor_ms": round(floor, 4),
        "of_floor": round(floor / time.median, 3),
        **modelled,
        "speedup": None if peer is None else round(peer / time.median, 3),
    }


def prepare(contestant: Contestant, context: torch.Tensor, mode: Mode) -> Run:
    """What is timed: a forward pass without gradients, or one with the gradients of the context and all parameters."""
    if mode == "inference":
        run = inference(lambda: contestant.forward(context))
    else:
        leaf = context.clone().requires_grad_()
        run = training(lambda: contestant.forward(leaf), [leaf, *contestant.module.parameters()])

    def run_within() -> Sequence[torch.Tensor]:
        with contestant.within():
            return run()

    return _captured(run_within) if contestant.graphed else run_within


def _captured(run: Run) -> Run:
    """``run``, captured in a CUDA graph and replayed. Each replay overwrites the results of the one before."""
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
    """Lines that say, for each of our contestants and each mode, how fast it is; and a line for each wrong result.

    The speed-up over the fastest peer and the share of the machine's limit are geometric means over the cases.
    """
    lines = []
    for mode in MODES:
        for name in sorted({row["name"] for row in rows if row["kind"] == "ours"}):
            ours = [row for row in rows if row["name"] == name and row["mode"] == mode and row["speedup"]]
            if ours:
                mean = statistics.geometric_mean(row["speedup"] for row in ours)
                of_floor = statistics.geometric_mean(row["of_floor"] for row in ours)
                worst = min(row["speedup"] for row in ours)
                lines.append(
                    f"{name}, {mode}: {mean:.2f}x the fastest peer, worst {worst:.2f}x, "
                    f"{of_floor:.0%} of the machine's limit, {len(ours)} cases"
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recurrence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: float32"
    )
    parser.add_argument("-B", type=int, nargs="+", default=BATCHES, help="batch sizes (default: 1 16 64 256)")
    parser.add_argument(
        "-H",
        type=int,
        nargs="+",
        default=HIDDEN,
        help="hidden sizes, which are also the context sizes (default: 256 512 1024)",
    )
    parser.add_argument("-T", type=int, nargs="+", default=STEPS, help="numbers of time steps (default: 10 20)")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds for each case and mode (default: 2)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes the most time")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    parser.add_argument("--plot", type=Path, help="draw time against B, H and T into this file (.png, .svg, .pdf)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if min(*args.B, *args.H, *args.T) < 1:
        parser.error("-B, -H, -T: expected positive numbers")
    # float32 must mean float32 for all contestants. By default cuDNN computes in TF32, which fails the check.
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
                if args.json:  # after each case, so that an interruption loses only one case
                    write(args.json, described | {"summary": summary(rows), "rows": rows})
    print(*summary(rows), sep="\n")
    if args.plot:
        from benchmarks.plots import plot

        plot(rows, args.plot)


if __name__ == "__main__":
    main()
