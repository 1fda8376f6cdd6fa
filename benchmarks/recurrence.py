"""Time tagrank's backends against their peers, in inference and in training.

The peers are

- nn.LSTM on the repeated context;
- a loop over nn.LSTMCell;
- a loop with a constant input, which computes the context's share of the gates once: eager, and for few steps under
  torch.compile;
- on GPUs, FlashRNN if it is installed.

On GPUs all but FlashRNN and the nn.LSTMCell loop also run in CUDA graphs. In float32, nn.LSTM and backend="auto" also
run in TF32, which is cuDNN's default.

Each result is first compared with float64. Ours has no speed-up if it is wrong, and a wrong peer does not count. A
contestant that raises an error is left out, and the result file has the error. The contestants of a case run in turn,
round after round. Times are medians over the rounds, with quartiles. Each time is compared with a floor: the operations
and bytes that cannot be left out, divided by the rates of the machine, which the same run measures.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.contestants import Case, Contestant, Mode, contestants, error, oracle
from benchmarks.machine import Rates, describe, measure_rates, write
from benchmarks.timing import Times, inference, milliseconds, training, turns

BATCHES, HIDDEN = (1, 16, 64, 256), (256, 512, 1024)
STEPS = {"cpu": (10, 20), "cuda": (5, 20, 100, 1000)}
MODES: tuple[Mode, ...] = ("inference", "training")
#: The sizes B, H and T over which the speed-up over nn.LSTM is summed up in one figure.
GRID = ((1, 16, 64, 256), (128, 256, 512, 1024), (5, 20, 100))

Row = dict[str, Any]
Run = Callable[[], Sequence[torch.Tensor]]


class Measured(NamedTuple):
    """What :func:`measure` returns.

    Attributes:
        rows: for each mode and contestant, its times and how they compare.
        failures: for each mode and contestant that raised an error, the case, ``mode``, ``name``, ``kind`` and
            ``raised``, the error.
    """

    rows: list[Row]
    failures: list[Row]


def measure(
    case: Case,
    rates: Rates,
    seconds: float,
    compiled: bool = True,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
) -> Measured:
    """Compare the contestants of a case.

    A row has the case, the contestant, its relative error (``None`` for a floor), whether that is within its tolerance
    (``right``), its times in milliseconds, and

    - ``speedup``: the time of the fastest right peer divided by the contestant's. A contestant in a CUDA graph is
      compared with peers in CUDA graphs and another with peers that are in none, and one that is not in TF32 with
      peers that are not. ``None`` for a peer, a floor, a wrong result, and if there is no such peer.
    - ``over_nn_lstm``: the same against nn.LSTM alone, never in a CUDA graph, and in TF32 if the contestant is.
    - ``of_floor``: the floor divided by the contestant's time. It is 1 if nothing could be faster.
    - ``of_model``, for our kernels on an H100: the same for the floor that ``tagrank.kernels.roofline`` gives these
      kernels with their division of the work.

    Args:
        case: the problem size.
        rates: the rates of the machine.
        seconds: how long each mode is timed.
        compiled: whether the loop under ``torch.compile`` takes part.
        only: the names of the contestants that take part; all if it is ``None``.
        without: the names of contestants that do not take part.
    """
    lstm, context = case.make()
    output, gradients = oracle(case, lstm, context)
    everyone = [one for one in contestants(case, lstm, compiled, only) if one.name not in without]
    measured = Measured([], [])
    for mode in MODES:
        competing = [one for one in everyone if not (one.kind == "floor" and mode == "training")]
        raised: dict[str, str] = {}
        runs: dict[str, Callable[[], float | None]] = {}
        errors: dict[str, float] = {}
        for one in competing:
            try:
                run = prepare(one, context, mode)
                with one.within():
                    result = run()
            except Exception as problem:
                raised[one.name] = _in_words(problem)
                continue
            if one.kind != "floor":
                errors[one.name] = error(result, [output] if mode == "inference" else gradients)
            runs[one.name] = _timed(one, run, case.device, raised)
        times = _times(runs, seconds, raised)
        competing = [one for one in competing if one.name in times]
        right = [one for one in competing if one.name in errors and errors[one.name] <= one.tolerance(case.dtype)]
        floor = rates.floor_ms(case.flops(mode), case.bytes_moved(mode))
        for one in competing:
            fair = [peer for peer in right if peer.kind == "peer" and not (peer.tf32 and not one.tf32)]
            peers = [peer for peer in fair if peer.graphed == one.graphed]
            plain = [peer for peer in fair if _is_nn_lstm(peer) and peer.tf32 == one.tf32]
            compared = one.kind == "ours" and one in right
            against = [min((times[p.name].median for p in ps), default=None) for ps in (peers, plain)]
            row = _row(case, one, mode, times[one.name], errors.get(one.name), floor)
            ratios = [peer / times[one.name].median if compared and peer else None for peer in against]
            speedup, over_nn_lstm = (ratio and significant(ratio) for ratio in ratios)
            measured.rows.append(row | {"speedup": speedup, "over_nn_lstm": over_nn_lstm})
        kinds = {one.name: one.kind for one in everyone}
        measured.failures.extend(
            {**_sizes(case), "mode": mode, "name": name, "kind": kinds[name], "raised": text}
            for name, text in raised.items()
        )
    return measured


def _is_nn_lstm(one: Contestant) -> bool:
    return one.name.startswith("nn.LSTM (") and not one.graphed


def _in_words(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"[:2000]


def _timed(one: Contestant, run: Run, device: str, raised: dict[str, str]) -> Callable[[], float | None]:
    """A function that runs a contestant once and returns the milliseconds.

    If the contestant raises an error, that goes to ``raised``. From then on it is not run, and the result is ``None``.
    """

    def once() -> float | None:
        if one.name in raised:
            return None
        try:
            with one.within():
                return milliseconds(run, device)
        except Exception as problem:
            raised[one.name] = _in_words(problem)
            return None

    return once


def _times(runs: dict[str, Callable[[], float | None]], seconds: float, raised: Collection[str]) -> dict[str, Times]:
    """The times of the functions, which run in turn, without those that raised an error."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, once in turns(runs, seconds):
        time = once()
        if time is not None:
            times[name].append(time)
    return {name: Times.of(of_name) for name, of_name in times.items() if name not in raised}


def _sizes(case: Case) -> Row:
    dtype = str(case.dtype).removeprefix("torch.")
    return {"B": case.batch, "H": case.hidden, "T": case.steps, "dtype": dtype}


def _row(case: Case, one: Contestant, mode: Mode, time: Times, relative_error: float | None, floor: float) -> Row:
    """A contestant's row without its speed-ups. ``floor`` is in milliseconds."""
    model = one.model_ms.get(mode)
    modelled = {"model_ms": significant(model), "of_model": significant(model / time.median)} if model else {}
    return {
        **_sizes(case),
        "mode": mode,
        "name": one.name,
        "kind": one.kind,
        "error": relative_error,
        "right": None if relative_error is None else relative_error <= one.tolerance(case.dtype),
        **time.columns(),
        "floor_ms": significant(floor),
        "of_floor": significant(floor / time.median),
        **modelled,
    }


def significant(value: float) -> float:
    """``value`` with three significant digits, so that no positive value becomes 0."""
    return float(f"{value:.3g}")


def prepare(contestant: Contestant, context: torch.Tensor, mode: Mode) -> Run:
    """What is timed: a forward pass without gradients, or one with the gradients of the context and all parameters.

    The caller runs it in ``contestant.within()``.
    """
    if mode == "inference":
        run = inference(lambda: contestant.forward(context))
    else:
        leaf = context.clone().requires_grad_()
        run = training(lambda: contestant.forward(leaf), [leaf, *contestant.module.parameters()])

    if not contestant.graphed:
        return run
    with contestant.within():
        return _captured(run)


def _captured(run: Run) -> Run:
    """``run``, captured in a CUDA graph and replayed. Each replay overwrites the results of the one before.

    Each graph is captured on a stream of its own. PyTorch's products in a graph use a workspace that belongs to the
    stream, and the end of one graph frees it for all graphs that were captured there
    (https://github.com/pytorch/pytorch/issues/193402).
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = run()

    def replay() -> Sequence[torch.Tensor]:
        graph.replay()
        return results

    return replay


def summary(rows: list[Row]) -> list[str]:
    """Lines that say how fast each of our contestants is in each dtype and mode, and a line for each wrong result.

    The speed-ups and the share of the machine's limit are geometric means over the cases.
    """
    lines = []
    for dtype, mode, name in _ours(rows):
        ours = [row for row in rows if (row["dtype"], row["mode"], row["name"]) == (dtype, mode, name)]
        where = f"{name}, {mode}, {dtype}"
        if compared := [row for row in ours if row["speedup"] is not None]:
            of_floor = statistics.geometric_mean(row["of_floor"] for row in compared)
            lines.append(
                f"{where}: {_mean_and_worst(compared, 'speedup', 'the fastest peer')}, "
                f"{of_floor:.2%} of the machine's limit, {len(compared)} cases"
            )
        if compared := [row for row in ours if row["over_nn_lstm"] is not None]:
            lines.append(f"{where}: {_mean_and_worst(compared, 'over_nn_lstm', 'nn.LSTM')}, {len(compared)} cases")
        inside = [row for row in compared if all(row[axis] in values for axis, values in zip("BHT", GRID, strict=True))]
        if inside and len({(row["B"], row["H"], row["T"]) for row in inside}) == math.prod(map(len, GRID)):
            lines.append(f"{where}: {_mean_and_worst(inside, 'over_nn_lstm', 'nn.LSTM')}, the whole grid")
    wrong = [row for row in rows if row["right"] is False]
    lines += [f"WRONG: {r['name']} {r['mode']} B={r['B']} H={r['H']} T={r['T']}: error {r['error']:.1e}" for r in wrong]
    return lines


def _ours(rows: list[Row]) -> list[tuple[str, str, str]]:
    """The dtype, mode and name of our contestants."""
    dtypes = dict.fromkeys(row["dtype"] for row in rows)
    names = sorted({row["name"] for row in rows if row["kind"] == "ours"})
    return list(itertools.product(dtypes, MODES, names))


def _mean_and_worst(rows: list[Row], ratio: str, than: str) -> str:
    mean = statistics.geometric_mean(row[ratio] for row in rows)
    worst = min(rows, key=lambda row: float(row[ratio]))
    sizes = ", ".join(f"{axis} = {worst[axis]}" for axis in "BHT")
    return f"{mean:.2f}x {than}, worst {worst[ratio]:.2f}x ({sizes})"


def failures_in_words(failures: list[Row]) -> list[str]:
    """A line for each contestant that raised errors: how often, and the first line of the first of them."""
    by_name: dict[str, list[Row]] = {}
    for failure in failures:
        by_name.setdefault(failure["name"], []).append(failure)
    return [
        f"LEFT OUT: {name}, {len(some)} times, first at B={some[0]['B']} H={some[0]['H']} T={some[0]['T']} "
        f"{some[0]['mode']}: {some[0]['raised'].splitlines()[0]}"
        for name, some in by_name.items()
    ]


def _line(row: Row) -> str:
    speedups = [f"{row[ratio]:.2f}x" if row[ratio] is not None else "" for ratio in ("speedup", "over_nn_lstm")]
    verdict = "" if row["error"] is None else f"{row['error']:.1e}{'' if row['right'] else '  WRONG'}"
    return (
        f"{row['B']:4} {row['H']:5} {row['T']:4} {row['mode']:9} {row['name']:32} {row['ms']:9.3f} "
        f"{row['of_floor']:7.1%} {speedups[0]:>8} {speedups[1]:>8}  {verdict}"
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
    parser.add_argument(
        "-T", type=int, nargs="+", help="numbers of time steps (default: 10 20, with --device cuda 5 20 100 1000)"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds for each case and mode (default: 2)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes the most time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="the contestants to run, by name (default: all)")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="contestants to leave out, by name")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    parser.add_argument("--plot", type=Path, help="draw time against B, H and T into this file (.png, .svg, .pdf)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    args.T = args.T or STEPS[args.device]
    if min(*args.B, *args.H, *args.T) < 1:
        parser.error("-B, -H, -T: expected positive numbers")
    # float32 must mean float32 for all contestants but those in TF32. cuDNN's default is TF32.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, args.dtype)

    rows: list[Row] = []
    failures: list[Row] = []
    rates = measure_rates(args.device, dtype)
    described = describe(rates)
    print(f"rates: {rates.gflops:.0f} GFLOP/s, {rates.gbytes:.0f} GB/s of main memory")
    columns = f"{'B':>4} {'H':>5} {'T':>4} {'mode':9} {'contestant':32} {'ms':>9} {'limit':>7}"
    print(f"{columns} {'speedup':>8} {'/nn.LSTM':>8}  error")
    for hidden, batch, steps in itertools.product(args.H, args.B, args.T):
        case = Case(batch, hidden, steps, dtype, args.device)
        # A peer that cannot be built fails in every case, and may take minutes to.
        without = {*args.without, *(failure["name"] for failure in failures if failure["kind"] == "peer")}
        measured = measure(case, rates, args.seconds, not args.no_compile, args.only, without)
        rows += measured.rows
        failures += measured.failures
        # After each case, so that an interruption loses only one; and before the lines, which tell a reader of more.
        if args.json:
            write(args.json, described | {"summary": summary(rows), "rows": rows, "failures": failures})
        print(*map(_line, measured.rows), *failures_in_words(measured.failures), sep="\n", flush=True)
    print(*summary(rows), *failures_in_words(failures), sep="\n")
    if args.plot:
        from benchmarks.plots import plot

        plot(rows, args.plot)


if __name__ == "__main__":
    main()
