"""How the benchmarks time.

Contestants run in turn, round after round, so that a machine that slows down slows all of them. Each has the median and
the quartiles of its times over the rounds.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


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


def interleave(runs: Mapping[str, Callable[[], Any]], device: str, seconds: float) -> dict[str, Times]:
    """Time each function of ``runs``, in the order and as often as :func:`turns` says."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in turns(runs, seconds):
        times[name].append(milliseconds(run, device))
    return {name: Times.of(of_name) for name, of_name in times.items()}


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """The time of one call, including the work that it leaves to a GPU."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return (time.perf_counter() - start) * 1e3
