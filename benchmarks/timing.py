"""How the benchmarks time.

Contestants run in turn, round after round, so that a machine that slows down slows all of them. Each has the median and
the quartiles of its times over the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

Seconds = dict[str, float]
"""The time of each stage of a call."""


@dataclass(frozen=True)
class Times:
    """The time of one contestant over all rounds.

    Attributes:
        low: the lower quartile, in milliseconds.
        median: the median, in milliseconds.
        high: the upper quartile, in milliseconds.
        rounds: how often it was timed.
    """

    low: float
    median: float
    high: float
    rounds: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Times":
        """Median and quartiles of at least two times."""
        low, median, high = statistics.quantiles(milliseconds, n=4)
        return cls(low, median, high, len(milliseconds))

    def columns(self) -> dict[str, Any]:
        """The columns of a result file."""
        quartiles = [round(self.low, 4), round(self.high, 4)]
        return {"ms": round(self.median, 4), "ms_quartiles": quartiles, "rounds": self.rounds}


def options(name: str, doc: str | None, seconds: float) -> argparse.Namespace:
    """The options of a benchmark that times by :func:`interleave` or, if wished, by :func:`processor_times`.

    Args:
        name: of the module.
        doc: its docstring.
        seconds: for each comparison, unless the command line says otherwise.

    Returns:
        ``seconds``, ``processor_time``, ``json``, and ``clock``, which is "processor" or "wall".
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"seconds for each comparison (default: {seconds:g})"
    )
    parser.add_argument("--processor-time", action="store_true", help="time on the processor, of one thread")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    args.clock = "processor" if args.processor_time else "wall"
    if args.processor_time:
        torch.set_num_threads(1)
    return args


def inference(forward: Callable[[], Tensor]) -> Callable[[], Sequence[Tensor]]:
    """A forward pass without gradients. It returns the one result."""

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return [forward()]

    return run


def training(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
    """A forward and a backward pass. It returns the gradients of the result's sum with respect to ``leaves``."""
    return lambda: torch.autograd.grad(forward().sum(), leaves)


def turns(runs: Mapping[str, Callable[[], T]], seconds: float) -> Iterator[tuple[str, Callable[[], T]]]:
    """The names and functions of ``runs``, round after round; the caller calls and times them.

    There are at least 5 rounds, and further ones until ``seconds`` are over. Before the first round each function is
    called once.
    """
    for run in runs.values():
        run()
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 5 or time.perf_counter() < end:
        yield from runs.items()
        rounds += 1


def interleave(
    runs: Mapping[str, Callable[[], Any]], device: str, seconds: float, before: Callable[[], Any] = lambda: None
) -> dict[str, Times]:
    """Time each function of ``runs``, in the order and as often as :func:`turns` says.

    Before each, ``before`` is called, whose time does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in turns(runs, seconds):
        before()
        times[name].append(milliseconds(run, device))
    return {name: Times.of(of_name) for name, of_name in times.items()}


def processor_times(runs: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Times]:
    """As :func:`interleave`, in processor time, which other programs on the machine change less."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in turns(runs, seconds):
        start = time.process_time()
        run()
        times[name].append((time.process_time() - start) * 1e3)
    return {name: Times.of(of_name) for name, of_name in times.items()}


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """The time of one call, including the work that it leaves to a GPU."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return (time.perf_counter() - start) * 1e3


class Laps:
    """Seconds of each stage: those since the last mark are added to the stage that ends."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def time_rounds(
    part: str, runs: Mapping[str, Callable[[], Seconds]], seconds: float, counts: int | Mapping[str, int] = 1
) -> list[dict[str, Any]]:
    """Call these in turn, after a round to warm up; a row for each stage, one for all.

    Args:
        part: what is timed; it is in each row.
        runs: functions that return the time of each of their stages, by the names of the contestants.
        seconds: as for :func:`turns`.
        counts: how many things a call deals with, of all contestants or of each. Times are for one of them.
    """
    taken: dict[str, list[Seconds]] = {name: [] for name in runs}
    for name, run in turns(runs, seconds):
        start = time.perf_counter()
        taken[name].append(run() | {"all": time.perf_counter() - start})
    rows: list[dict[str, Any]] = []
    for name, rounds in taken.items():
        count = counts if isinstance(counts, int) else counts[name]
        whole = statistics.median(stages["all"] for stages in rounds)
        for stage in rounds[0]:
            times = Times.of([stages[stage] * 1e3 / count for stages in rounds])
            row = {"part": part, "name": name, "stage": stage, **times.columns()}
            row |= {"share": round(times.median * count / 1e3 / whole, 4)}
            rows.append(row | {"per_second": round(count / whole, 2) if stage == "all" else None})
    return rows
