"""How things are timed here: in turn, so that a machine that slows down slows all of them, and with their spread."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


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


def interleave(runs: Mapping[str, Callable[[], Any]], device: str, seconds: float) -> dict[str, Times]:
    """Time each of ``runs`` in turn: once before it counts, at least 5 rounds, then until ``seconds`` are over."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in runs}
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
    return {name: Times.of(milliseconds) for name, milliseconds in times.items()}
