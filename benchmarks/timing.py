"""How things are timed here: in turn, so that a machine that slows down slows all of them, and with their spread."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Times:
    """Milliseconds of one thing over the rounds."""

    low: float
    median: float
    high: float
    rounds: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Times":
        """Median and quartiles."""
        low, median, high = statistics.quantiles(milliseconds, n=4)
        return cls(low, median, high, len(milliseconds))

    def columns(self) -> dict[str, Any]:
        """As the columns of a result file."""
        quartiles = [round(self.low, 4), round(self.high, 4)]
        return {"ms": round(self.median, 4), "ms_quartiles": quartiles, "rounds": self.rounds}


def turns(runs: Mapping[str, Callable[[], T]], seconds: float) -> Iterator[tuple[str, Callable[[], T]]]:
    """Each of ``runs`` in turn, for the caller to call: at least 5 rounds, then until ``seconds`` are over.

    Each was called once before, which does not count.
    """
    for run in runs.values():
        run()
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 5 or time.perf_counter() < end:
        yield from runs.items()
        rounds += 1


def interleave(runs: Mapping[str, Callable[[], Any]], device: str, seconds: float) -> dict[str, Times]:
    """Time each of ``runs`` in turn, as :func:`turns` says."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in turns(runs, seconds):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times[name].append((time.perf_counter() - start) * 1e3)
    return {name: Times.of(milliseconds) for name, milliseconds in times.items()}
