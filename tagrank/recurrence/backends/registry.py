"""Which backends there are, which of them can run here, and which backend serves a call."""

import warnings
from typing import TYPE_CHECKING

import torch

from tagrank.errors import InputError
from tagrank.recurrence.backends.base import CHOSEN, Backend, GatesLike
from tagrank.recurrence.backends.cluster import Cluster
from tagrank.recurrence.backends.native import Native
from tagrank.recurrence.backends.triton_kernels import Triton
from tagrank.recurrence.tracing import transformed

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu

#: The backends beside ``"eager"``, by name, in the order in which ``auto`` tries them.
FUSED: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Add a backend: calls can name it from now on, and ``auto`` tries it after those registered before.

    Raises:
        ValueError: there is a backend of this name.
    """
    if backend.name in ("auto", *names()):
        raise ValueError(f"name: expected one that is not taken, got {backend.name!r}")
    FUSED[backend.name] = backend
    CHOSEN.clear()


def unregister(name: str) -> None:
    """Remove a backend."""
    del FUSED[name]
    CHOSEN.clear()


def names() -> tuple[str, ...]:
    """The names of all backends, ``"eager"`` first."""
    return ("eager", *FUSED)


for _backend in (Native(), Cluster(), Triton()):
    register(_backend)


def unavailable() -> dict[str, str | None]:
    """For each backend, why it cannot run on this machine, or ``None`` if it can."""
    return {"eager": None} | {name: backend.unavailable() for name, backend in FUSED.items()}


def check_name(backend: str) -> str:
    """``backend``, if it is ``"auto"`` or a backend's name.

    Raises:
        ValueError: it is neither.
    """
    if backend not in ("auto", "eager") and backend not in FUSED:
        raise ValueError(f"backend: expected one of 'auto', {', '.join(map(repr, names()))}; got {backend!r}")
    return backend


def choose(backend: str, gates_x: GatesLike) -> str:
    """The name of the backend that serves these gates.

    Args:
        backend: ``"auto"``, or a backend's name: then no other backend will do.
        gates_x: its device, dtype and shape decide.

    Raises:
        ValueError: ``backend`` is no backend's name.
        InputError: an environment variable has a value that a backend for this device cannot take.
        RuntimeError: the named backend cannot run here, or not on these tensors.
    """
    reason = transformed()
    # Sizes may be symbols while torch.compile traces.
    if reason is not None or torch.compiler.is_compiling():
        return _choose(backend, gates_x, reason)
    key = (backend, gates_x.device, gates_x.dtype, gates_x.shape[-2], gates_x.shape[-1])
    name = CHOSEN.get(key)
    if name is None:
        name = _choose(backend, gates_x, None)
        if name != "eager":  # whose warning is to come again
            CHOSEN.remember(key, name)
    return name


def _choose(backend: str, gates_x: GatesLike, because_transformed: str | None) -> str:
    check_name(backend)
    if backend == "auto" and because_transformed is None:
        device = gates_x.device.type
        for name, fused in FUSED.items():
            # The device first, because looking for a GPU takes time.
            if device != fused.device:
                continue
            if _refusal(fused, gates_x) is None and fused.unproven(gates_x) is None:
                return name
        _warn_if_slow(gates_x)
    if backend in ("auto", "eager"):
        return "eager"
    reason = because_transformed or _refusal(FUSED[backend], gates_x)
    if reason is not None:
        raise RuntimeError(f"backend={backend!r} cannot run this: {reason}")
    return backend


def passed_over(backend: Backend, gates_x: GatesLike, gpu: "Gpu | None" = None) -> str | None:
    """Why ``auto`` does not take a backend for these gates, or ``None``.

    Args:
        backend: the backend.
        gates_x: its device, dtype and shape decide.
        gpu: a GPU to answer for that is not in this machine, with ``gates_x`` on a CUDA device.

    Raises:
        InputError: as :func:`choose`.
    """
    if gates_x.device.type != backend.device:
        return _refusal(backend, gates_x) or f"auto uses it on {backend.device} only"
    # Whether the backend can run on this machine says nothing about a GPU in another.
    reason = _refusal(backend, gates_x) if gpu is None else backend.unsupported(gates_x, gpu)
    return reason or backend.unproven(gates_x, gpu)


def _refusal(backend: Backend, gates_x: GatesLike) -> str | None:
    """Why a backend cannot serve these gates, or ``None``; an ``InputError`` if the reason is a user's setting."""
    misset = backend.misset()
    if misset is not None and gates_x.device.type == backend.device:
        raise InputError(misset)
    return backend.unavailable() or backend.unsupported(gates_x)


def _warn_if_slow(gates_x: GatesLike) -> None:
    """Warn that ``auto`` is slow because a backend is unavailable, as often as Python shows the same warning."""
    for backend in FUSED.values():
        if gates_x.device.type != backend.device or backend.slow_without is None or torch.compiler.is_compiling():
            continue
        reason = backend.unavailable()
        if reason is not None:
            warnings.warn(
                f"the recurrence runs eagerly, {backend.slow_without}: {reason} "
                "(backend='eager' keeps this warning away)",
                stacklevel=2,
            )
