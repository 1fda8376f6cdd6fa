"""Which backends there are, which of them can run here, and which one serves a call.

A fused backend is a module with

- ``DEVICE``: the type of device on which ``auto`` uses it;
- ``UNAVAILABLE``: why it cannot run on this machine, or ``None``;
- ``MISSET``, where it has one: what the user set wrongly for it, or ``None``; a call on ``DEVICE`` that would come to
  this backend is then an error, and not silently another one's;
- ``unsupported(gates_x)``: why it cannot take these tensors, or ``None``;
- ``unproven(gates_x)``, where it has one: why ``auto`` does not take tensors that it supports, or ``None``;
- ``forward(gates_x, weight_hh, h0, c0, steps, save_gates, save_cells)``
  -> ``(output, c_n, gates, cells)``;
- ``backward(grad_output, grad_c_n, gates_x, weight_hh, h0, c0, output, gates, cells, constant, weight_wanted)``
  -> ``(d_gates_x, d_weight_hh, d_h0, d_c0)``; where ``gates`` has no elements it computes them again from ``gates_x``.
  Unless ``weight_wanted``, ``d_weight_hh`` has no elements, and the product that it takes is not done.

The shapes are those of ``tagrank.recurrence.op``; all tensors but ``grad_output`` are contiguous. ``h0`` and ``c0`` are
``None`` where they are zero, which saves the first step's product; their gradients have no elements then. To add a
backend, write such a module and name it in ``FUSED``.
"""

import warnings
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tagrank.errors import InputError
from tagrank.recurrence.backends import cluster, native
from tagrank.recurrence.backends import triton_kernels as triton

#: In the order in which ``auto`` tries them.
FUSED: dict[str, ModuleType] = {"native": native, "cluster": cluster, "triton": triton}
NAMES = ("eager", *FUSED)


def unavailable() -> dict[str, str | None]:
    """For each backend, why it cannot run on this machine, or ``None`` where it can."""
    return {"eager": None} | {name: module.UNAVAILABLE for name, module in FUSED.items()}


def check_name(backend: str) -> str:
    """``backend``, where it is ``"auto"`` or a backend's name.

    Raises:
        ValueError: it is neither.
    """
    if backend not in ("auto", *NAMES):
        raise ValueError(f"backend: expected one of 'auto', {', '.join(map(repr, NAMES))}; got {backend!r}")
    return backend


def choose(backend: str, gates_x: Tensor) -> str:
    """The name of the backend that serves these gates.

    Args:
        backend: ``"auto"``, or a backend by name, which is then an order and not a wish.
        gates_x: Its device, dtype and shape decide.

    Raises:
        ValueError: ``backend`` is no backend's name.
        InputError: an environment variable has a value that a backend for this device cannot take.
        RuntimeError: the backend asked for by name cannot run here, or not on these tensors.
    """
    check_name(backend)
    transformed = _transformed()
    if backend == "auto" and transformed is None:
        for name, module in FUSED.items():
            # The device first: to look for a GPU takes time.
            if gates_x.device.type == module.DEVICE and passed_over(name, gates_x) is None:
                return name
        _say_if_slow(gates_x)
    if backend in ("auto", "eager"):
        return "eager"
    reason = transformed or refusal(backend, gates_x)
    if reason is not None:
        raise RuntimeError(f"backend={backend!r} cannot run this: {reason}")
    return backend


def _say_if_slow(gates_x: Tensor) -> None:
    """Warn, once where warnings are shown once, that ``auto`` is slow for want of the C++ library."""
    if gates_x.device.type == native.DEVICE and native.UNAVAILABLE and not torch.compiler.is_compiling():
        warnings.warn(
            f"the recurrence runs eagerly, up to twice as slow as nn.LSTM: {native.UNAVAILABLE} "
            "(backend='eager' keeps this warning away)",
            stacklevel=2,
        )


def refusal(name: str, gates_x: Tensor) -> str | None:
    """Why backend ``name`` cannot serve these gates, or ``None``; an ``InputError`` where a user's setting is why."""
    if name == "eager":
        return None
    module = FUSED[name]
    misset: str | None = getattr(module, "MISSET", None)
    if misset is not None and gates_x.device.type == module.DEVICE:
        raise InputError(misset)
    reason: str | None = module.UNAVAILABLE or module.unsupported(gates_x)
    return reason


def passed_over(name: str, gates_x: Tensor) -> str | None:
    """Why ``auto`` does not take the fused backend ``name`` for these gates, or ``None``."""
    module = FUSED[name]
    reason = refusal(name, gates_x)
    if reason is None and gates_x.device.type != module.DEVICE:
        reason = f"auto uses it on {module.DEVICE} alone"
    if reason is None and hasattr(module, "unproven"):
        reason = module.unproven(gates_x)
    return reason


def _transformed() -> str | None:
    """Why no fused backend can be used where PyTorch transforms the computation, or ``None`` where it does not.

    A fused operator has a reverse-mode derivative alone: forward mode would take its tangent for zero, in silence, and
    torch.func cannot see through it.
    """
    if torch._C._are_functorch_transforms_active():
        return "torch.func sees through backend='eager' alone"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives go through backend='eager' alone"
    return None
