"""The machine and the code that a measurement was made on, and the machine's rates, which no code can exceed."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import milliseconds
from tagrank import env
from tagrank.data.files import write_atomically
from tagrank.recurrence.backends import FUSED


@dataclass(frozen=True)
class Rates:
    """The measured rates of the machine.

    Attributes:
        gflops: 10^9 arithmetic operations per second; a multiply-add counts as two. Measured in a matrix product of
            PyTorch that is large enough for arithmetic to bound it. On CPUs also measured in multiply-adds of float32
            numbers in registers; the higher rate counts.
        gbytes: 10^9 bytes of main memory per second, read and written.
    """

    gflops: float
    gbytes: float

    def floor_ms(self, flops: float, bytes_moved: float) -> float:
        """The least time, in milliseconds, of ``flops`` operations and ``bytes_moved`` bytes of main memory."""
        return max(flops / self.gflops, bytes_moved / self.gbytes) / 1e6


def measure_rates(device: str, dtype: torch.dtype) -> Rates:
    """Measure the rates, in about a second."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    gflops = 2 * n**3 / _shortest_seconds(lambda: a @ b, device) / 1e9
    if device == "cpu" and FUSED["native"].unavailable() is None and dtype != torch.float64:
        gflops = max(gflops, *(torch.ops.tagrank.multiply_add_rate(0.1) for _ in range(5)))
    large = torch.empty(2**28 if device == "cuda" else 2**26, dtype=torch.float32, device=device).zero_()
    other = torch.zeros_like(large)
    gbytes = 2 * large.nbytes / _shortest_seconds(lambda: other.copy_(large), device) / 1e9
    return Rates(gflops, gbytes)


def describe(rates: Rates | None = None) -> dict[str, Any]:
    """What a result file says besides its rows: ``environment``, ``commit`` and, if given, ``rates``."""
    described = {"environment": env(), "commit": commit()}
    return described if rates is None else described | {"rates": asdict(rates)}


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result file as JSON, completely or not at all. Its folder is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [json.dumps(result, indent=1).encode(), b"\n"])


def memory(field: str) -> float:
    """A field of Linux's ``/proc/self/status``, such as ``VmRSS`` or ``VmHWM``, in megabytes (2^20 bytes)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def commit() -> str:
    """The commit of the working tree, with ``-dirty`` if it has changes; ``"unknown"`` without a repository or git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _shortest_seconds(run: Callable[[], Any], device: str) -> float:
    """The shortest time of six calls."""
    return min(milliseconds(run, device) for _ in range(6)) / 1e3
