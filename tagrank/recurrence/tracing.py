"""Who looks at what runs: a list of the kernels that ran, and whether PyTorch records, intercepts or transforms it.

With the list, a test (or a curious user) can tell a fused path from its fallback.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_logs: list[list[str]] = []
#: What nobody can look into. A subclass of Tensor may intercept its operators.
_PLAIN = frozenset({Tensor, nn.Parameter, type(None)})


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


def observed(inputs: Iterable[Tensor | None]) -> bool:
    """Whether somebody looks at the operators that run, so that the recurrence must be an operator.

    Otherwise it is called directly: for short sequences the way through the dispatcher and back would take longer than
    the recurrence itself.
    """
    # torch.jit.is_tracing() takes longer than the second of these.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    if torch._C._len_torch_dispatch_stack() > 0 or transformed() is not None:
        return True
    for tensor in inputs:  # noqa: SIM110 (a generator would take twice as long)
        if type(tensor) not in _PLAIN:
            return True
    return False


def transformed() -> str | None:
    """Why no fused backend can be used, because PyTorch transforms the computation, or ``None`` if it does not.

    A fused operator has a reverse-mode derivative only: forward mode would silently take its tangent for zero, and
    torch.func cannot see through it.
    """
    if torch._C._are_functorch_transforms_active():
        return "torch.func works with backend='eager' only"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives work with backend='eager' only"
    return None
