"""What tests ask of processes that they have started, and of those that these started."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], Any], seconds: float) -> None:
    """Wait until something is true, for so many seconds at most."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
