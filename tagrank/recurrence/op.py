"""``lstm_recurrence``: checks its arguments, and runs them on the backend that serves them."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Proxy

from tagrank.recurrence.backends import FUSED, choose
from tagrank.recurrence.backends.base import CHOSEN
from tagrank.recurrence.backends.eager import lstm_loop
from tagrank.recurrence.dtypes import DTYPES, autocasts, dtype_name
from tagrank.recurrence.fused import Settings, layers
from tagrank.recurrence.operators import recurrence
from tagrank.recurrence.tracing import observed, record


def lstm_recurrence(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    steps: int | None = None,
    backend: str = "auto",
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run an LSTM whose input's share of the gates is already computed.

    Equations (2)-(7) of Yan, Wang and Liao (2016) with ``gates_x`` instead of ``W I``::

        i, f, g, o = split(gates_x[t] + h[t-1] @ weight_hh.T)
        c[t] = sigmoid(f) * c[t-1] + sigmoid(i) * tanh(g)
        h[t] = sigmoid(o) * tanh(c[t])

    Args:
        gates_x: the input's share of the gates, biases included, ordered i, f, g, o as in :class:`torch.nn.LSTM`:
            ``[B, 4H]`` if it stays the same over time, else ``[T, B, 4H]``.
            float16, bfloat16, float32 or float64; any strides.
        weight_hh: ``[4H, H]``, as ``nn.LSTM.weight_hh_l0``.
        h0: ``[B, H]``, the initial hidden state; zeros if left out.
        c0: ``[B, H]``, the initial cell state; zeros if left out.
        steps: ``T``. Required if ``gates_x`` is ``[B, 4H]``; otherwise its length, or left out.
        backend: ``"auto"``, ``"eager"``, ``"native"``, ``"cluster"`` or ``"triton"``. Only ``"eager"`` has second and
            forward-mode derivatives and goes through ``torch.func``; ``"auto"`` takes it by itself there.
        recompute: for backward, keep the cell states only and compute the gates again. This takes more time, and less
            memory if ``gates_x`` is ``[B, 4H]``; ``[T, B, 4H]`` must itself be kept.

    Returns:
        ``output`` ``[T, B, H]``, the hidden states, and ``c_n`` ``[B, H]``, the last cell state; both in the dtype of
        ``gates_x``, or in autocast's if it is on.

    Raises:
        TypeError: ``steps`` is no int.
        ValueError: a shape, dtype, device, ``steps`` or the name of the backend is wrong.
        RuntimeError: the named backend cannot run here, or not on these tensors.
    """
    given: Any = gates_x
    if type(given) is Proxy:  # torch.fx.symbolic_trace: one node of its graph, because the checks need tensors
        options = {"steps": steps, "backend": backend, "recompute": recompute}
        node: Any = given.tracer.create_proxy("call_function", lstm_recurrence, (given, weight_hh, h0, c0), options)
        return node  # type: ignore[no-any-return]
    steps = _check(gates_x, weight_hh, steps)
    batch, hidden = gates_x.shape[-2], weight_hh.shape[1]
    if autocasts(gates_x.device.type):
        gates_x, weight_hh = to_autocast(gates_x), to_autocast(weight_hh)
        h0, c0 = (None if state is None else to_autocast(state) for state in (h0, c0))
    for name, state in (("h0", h0), ("c0", c0)):
        if state is not None and state.shape != (batch, hidden):
            raise ValueError(f"{name}: expected shape [B, H] = [{batch}, {hidden}], got {list(state.shape)}")
    for name, tensor in (("weight_hh", weight_hh), ("h0", h0), ("c0", c0)):
        if tensor is not None and (tensor.dtype != gates_x.dtype or tensor.device != gates_x.device):
            raise ValueError(
                f"{name}: expected {gates_x.dtype} on {gates_x.device} like gates_x, "
                f"got {tensor.dtype} on {tensor.device}"
            )

    return run(gates_x, weight_hh, h0, c0, steps, backend, recompute)


def run(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    steps: int,
    backend: str,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`lstm_recurrence` for arguments that are known to fit together, of one dtype, with autocast done.

    For a single step at a small batch the checks would take as long as the products.
    """
    name = choose(backend, gates_x)
    if name != "eager":
        fused = FUSED[name]
        if fused.by_library() and not observed((gates_x, weight_hh, h0, c0)):
            context, input = (gates_x, None) if gates_x.dim() == 2 else (None, gates_x)
            settings = Settings(fused, steps, 2, recompute)
            output, _, c_n = layers(settings, context, input, h0, c0, (None, weight_hh, None, None))
            return output, c_n
        return recurrence(gates_x, weight_hh, h0, c0, steps, name, recompute)
    record("eager.forward")
    return lstm_loop(gates_x, weight_hh, h0, c0, steps)


class FutureGates(NamedTuple):
    """What backends need to know of gates that are not computed yet."""

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, int]


def run_layers(
    context: Tensor | None,
    input: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    parameters: Sequence[Tensor | None],
    steps: int,
    backend: str,
    recompute: bool = False,
    state_dimensions: int = 3,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """:func:`tagrank.recurrence.fused.layers`, if a backend takes whole layers here; otherwise ``None``.

    The arguments are those of ``layers``, and are known to fit together, and of :func:`run`. Where PyTorch records
    operators, each product is an operator of its own, so the answer is ``None``; under autocast too, except for a layer
    on a GPU, all of whose tensors are converted first.
    """
    weight_hh: Any = parameters[1]
    if observed((context, input, h0, c0, *parameters)):
        return None
    # Two calls ask about one type of device, and take four times as long as this one, which asks about all.
    if torch._C._is_any_autocast_enabled() and autocasts(weight_hh.device.type):
        if weight_hh.device.type != "cuda" or state_dimensions == 2:
            return None
        context, input, h0, c0 = (None if t is None else to_autocast(t) for t in (context, input, h0, c0))
        parameters = [None if parameter is None else to_autocast(parameter) for parameter in parameters]
        weight_hh = parameters[1]
    x: Any = context if input is None else input
    settings = layer_settings(weight_hh, x.shape[-2], steps, backend, recompute, state_dimensions)
    return None if settings is None else layers(settings, context, input, h0, c0, parameters)


def layer_settings(
    weight_hh: Tensor, batch: int, steps: int, backend: str, recompute: bool = False, state_dimensions: int = 3
) -> Settings | None:
    """How :func:`run_layers` runs, or ``None`` if no backend takes whole layers of this size here."""
    device, gates, dtype = weight_hh.device, weight_hh.shape[0], weight_hh.dtype
    key = (backend, device, dtype, batch, gates, steps, state_dimensions, recompute)
    settings = CHOSEN.get(key)
    if settings is None:
        name = choose(backend, FutureGates(device, dtype, (batch, gates)))
        if name == "eager" or not FUSED[name].by_library():
            return None
        settings = Settings(FUSED[name], steps, state_dimensions, recompute)
        CHOSEN.remember(key, settings)
    return settings


def _check(gates_x: Tensor, weight_hh: Tensor, steps: int | None) -> int:
    """The number of steps. Raises the errors of :func:`lstm_recurrence` for these three arguments."""
    if gates_x.dtype not in DTYPES:
        raise ValueError(f"gates_x: expected one of {', '.join(map(dtype_name, DTYPES))}; got {gates_x.dtype}")
    if weight_hh.dim() != 2 or weight_hh.shape[0] != 4 * weight_hh.shape[1] or weight_hh.shape[1] == 0:
        raise ValueError(f"weight_hh: expected shape [4H, H] with H > 0, got {list(weight_hh.shape)}")
    hidden = weight_hh.shape[1]
    if gates_x.dim() not in (2, 3) or gates_x.shape[-1] != 4 * hidden:
        raise ValueError(
            f"gates_x: expected shape [B, 4H] or [T, B, 4H] with 4H = {4 * hidden}, got {list(gates_x.shape)}"
        )
    if gates_x.dim() == 3:
        length = check_steps(gates_x.shape[0])
        if steps is not None and check_steps(steps) != length:
            raise ValueError(f"steps: expected {length}, the length of gates_x, or None; got {steps}")
        steps = length
    if steps is None:
        raise ValueError("steps: expected a number of steps because gates_x is the same at each step; got None")
    steps = check_steps(steps)
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    return steps


def check_steps(steps: Any) -> int:
    """A number of steps as an int, or as it is if torch.compile or torch.export left it symbolic.

    In ``torch.jit.trace`` sizes are tensors. The trace then has the number as a constant, which the operator of the
    recurrence ignores if the gates vary.

    Raises:
        TypeError: it is no integer.
    """
    if isinstance(steps, torch.SymInt):
        return steps  # type: ignore[return-value]
    if type(steps) is int:
        return steps
    of_tensor = isinstance(steps, Tensor) and (torch._C._get_tracing_state() is None or steps.dtype == torch.bool)
    if not isinstance(steps, bool) and not of_tensor:
        try:
            return operator.index(steps)
        except TypeError:
            pass
    raise TypeError(f"steps: expected an int, got {type(steps).__name__}")


def to_autocast(tensor: Tensor) -> Tensor:
    """A tensor in the dtype of autocast, as nn.LSTM converts it; float64 stays as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype(tensor.device.type))
