"""Lists the kernels that ran, so that a test (or a curious user) can tell a fused path from its fallback."""

from collections.abc import Iterator
from contextlib import contextmanager

_logs: list[list[str]] = []


def record(kernel: str) -> None:
    """Note that ``kernel`` (``"backend.pass.variant"``) was launched. Costs nothing outside :func:`trace`."""
    for log in _logs:
        log.append(kernel)


@contextmanager
def trace() -> Iterator[list[str]]:
    """Collect the names of the kernels that run inside the block, in launch order.

    Example:
        >>> with trace() as kernels:
        ...     lstm_recurrence(gates_x, weight_hh, h0, c0, steps=5)
        >>> kernels
        ['native.forward']
    """
    log: list[str] = []
    _logs.append(log)
    try:
        yield log
    finally:
        # By identity: two nested logs may be equal.
        _logs[:] = [other for other in _logs if other is not log]
