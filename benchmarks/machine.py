"""What a measurement was made on: the machine, the code, and the rates that bound what any code can reach there."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tagrank import env
from tagrank.data.files import write_atomically
from tagrank.recurrence.backends import native


@dataclass(frozen=True)
class Rates:
    """Measured limits of the machine.

    Attributes:
        gflops: 10^9 operations a second, two for each multiply-add: in a matrix product of PyTorch's that is large
            enough not to be bound by anything else, or in float32 on CPUs out of registers, whichever is more.
        gbytes: reading and writing main memory together, in 10^9 bytes a second.
    """

    gflops: float
    gbytes: float

    def floor_ms(self, flops: float, bytes_moved: float) -> float:
        """The least milliseconds that so many operations and so many bytes of main memory take."""
        return max(flops / self.gflops, bytes_moved / self.gbytes) / 1e6


def measure_rates(device: str, dtype: torch.dtype) -> Rates:
    """Measure both, in about a second."""
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    gflops = 2 * n**3 / _seconds(lambda: a @ b, device) / 1e9
    if device == "cpu" and native.UNAVAILABLE is None and dtype != torch.float64:
        gflops = max(gflops, *(torch.ops.tagrank.multiply_add_rate(0.1) for _ in range(5)))
    large = torch.empty(2**28 if device == "cuda" else 2**26, dtype=torch.float32, device=device).zero_()
    other = torch.zeros_like(large)
    return Rates(gflops, 2 * large.nbytes / _seconds(lambda: other.copy_(large), device) / 1e9)


def describe(rates: Rates | None = None) -> dict[str, Any]:
    """What goes into a result file beside its rows."""
    described = {"environment": env(), "commit": commit()}
    return described if rates is None else described | {"rates": asdict(rates)}


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result file, whole or not at all; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, [json.dumps(result, indent=1).encode(), b"\n"])


def memory(field: str) -> float:
    """Megabytes (2^20 bytes) of this process by a field of Linux's ``/proc/self/status``: ``VmRSS``, ``VmHWM``, ..."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def commit() -> str:
    """The commit of the working tree, marked where it has changes."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _seconds(run: Callable[[], Any], device: str) -> float:
    """The shortest of some runs."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(6):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
