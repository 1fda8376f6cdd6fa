"""The recurrence as two PyTorch operators: one for a whole sequence forward, one for backward.

One call per sequence and never one per step, as a custom operator costs some 10 microseconds a call. What every
backend shares is here: validation, autocast, and what is saved for backward.

Shapes, for ``T`` steps, batch ``B`` and hidden size ``H``; gates in nn.LSTM's order i, f, g, o:

    gates_x     [B, 4H] (constant over time) or [T, B, 4H]
    weight_hh   [4H, H]
    h0, c0      [B, H]
    output      [T, B, H]
    gates       [T, B, 4H]  activated gates, saved in the dtype of gates_x
    cells       [T, B, H]   c_1..c_T, saved in float32 (float64 for float64)
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tagrank.recurrence.backends import FUSED, choose
from tagrank.recurrence.backends.eager import cell_dtype, lstm_loop

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    """Run an LSTM whose input's share of the gates is already there.

    Equations (2)-(7) of Yan, Wang and Liao (2016) with ``gates_x`` in the place of ``W I``::

        i, f, g, o = split(gates_x[t] + h[t-1] @ weight_hh.T)
        c[t] = sigmoid(f) * c[t-1] + sigmoid(i) * tanh(g)
        h[t] = sigmoid(o) * tanh(c[t])

    Args:
        gates_x: the input's share of the gates, biases included, ordered i, f, g, o as in :class:`torch.nn.LSTM`:
            ``[B, 4H]`` where it stays the same over time, ``[T, B, 4H]`` where it does not.
            float16, bfloat16, float32 or float64; any strides.
        weight_hh: ``[4H, H]``, as ``nn.LSTM.weight_hh_l0``.
        h0: ``[B, H]``, the initial hidden state; zeros where left out.
        c0: ``[B, H]``, the initial cell state; zeros where left out.
        steps: ``T``. Required where ``gates_x`` is constant; else it has to agree with its length or be left out.
        backend: ``"auto"``, ``"eager"``, ``"native"``, ``"cluster"`` or ``"triton"``. Only ``"eager"`` has second and
            forward-mode derivatives and goes through ``torch.func``, where ``"auto"`` takes it by itself.
        recompute: for backward, keep the cell states alone and compute the gates again: more time, less memory where
            ``gates_x`` is constant; where it is not, it is kept itself.

    Returns:
        ``output`` ``[T, B, H]``, the hidden states, and ``c_n`` ``[B, H]``, the last cell state; both in the dtype of
        ``gates_x``, or in autocast's where it is on.

    Raises:
        TypeError: ``steps`` is no int.
        ValueError: a shape, dtype, device, ``steps`` or the name of the backend is wrong.
        RuntimeError: ``backend`` names one that cannot run here or not on these tensors.
    """
    steps = _check(gates_x, weight_hh, steps)
    batch, hidden = gates_x.shape[-2], weight_hh.shape[1]
    if autocasts(gates_x.device.type):
        gates_x, weight_hh = _autocast(gates_x), _autocast(weight_hh)
        h0, c0 = (None if state is None else _autocast(state) for state in (h0, c0))
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
    """:func:`lstm_recurrence` for arguments that are known to fit together, of one dtype, autocast seen to.

    For a single step at a small batch the checks would take as long as the products.
    """
    name = choose(backend, gates_x)
    if name == "eager":
        batch, hidden = gates_x.shape[-2], weight_hh.shape[1]
        h0 = gates_x.new_zeros(batch, hidden) if h0 is None else h0
        c0 = gates_x.new_zeros(batch, hidden) if c0 is None else c0
        return lstm_loop(gates_x, weight_hh, h0, c0, steps)
    inputs = (gates_x, weight_hh, h0, c0)
    train = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    forward = _Recurrence.apply if train else _forward
    if _seen(inputs):
        forward = torch.ops.tagrank.lstm_forward
    output, c_n, _, _ = forward(*inputs, steps, name, train and not recompute, train)
    return output, c_n


def _check(gates_x: Tensor, weight_hh: Tensor, steps: int | None) -> int:
    """The number of steps, once gates_x and weight_hh are known to fit together."""
    if gates_x.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"gates_x: expected one of {names}; got {gates_x.dtype}")
    if weight_hh.dim() != 2 or weight_hh.shape[0] != 4 * weight_hh.shape[1] or weight_hh.shape[1] == 0:
        raise ValueError(f"weight_hh: expected shape [4H, H] with H > 0, got {list(weight_hh.shape)}")
    hidden = weight_hh.shape[1]
    if gates_x.dim() not in (2, 3) or gates_x.shape[-1] != 4 * hidden:
        raise ValueError(
            f"gates_x: expected shape [B, 4H] or [T, B, 4H] with 4H = {4 * hidden}, got {list(gates_x.shape)}"
        )
    if gates_x.dim() == 3:
        if steps is not None and steps != gates_x.shape[0]:
            raise ValueError(f"steps: expected {gates_x.shape[0]}, the length of gates_x, or None; got {steps}")
        steps = gates_x.shape[0]
    if steps is None:
        raise ValueError("steps: expected a number of steps, as gates_x is the same at each of them; got None")
    check_steps(steps)
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    return steps


def check_steps(steps: Any) -> None:
    """A number of steps, which may be one that torch.compile and torch.export leave open.

    Raises:
        TypeError: it is no whole number.
    """
    if isinstance(steps, bool) or not isinstance(steps, int | torch.SymInt):
        raise TypeError(f"steps: expected an int, got {type(steps).__name__}")


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _autocast(tensor: Tensor) -> Tensor:
    """Under autocast, a floating point tensor in its dtype, as nn.LSTM has them; float64 stays as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _seen(inputs: tuple[Tensor | None, ...]) -> bool:
    """Whether somebody looks at the operators that run, so that the recurrence has to be one of them.

    Else it is called directly: for short sequences the way through the dispatcher and back would take longer than the
    recurrence itself.
    """
    plain = all(tensor is None or type(tensor) in (Tensor, nn.Parameter) for tensor in inputs)
    tracing = torch._C._get_tracing_state() is not None  # torch.jit.is_tracing(), less what that costs
    return torch.compiler.is_compiling() or tracing or torch._C._len_torch_dispatch_stack() > 0 or not plain


def _forward(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    steps: int,
    backend: str,
    save_gates: bool,
    save_cells: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(output, c_n, gates, cells)``; what is not saved has no elements."""
    states = (None if state is None else state.contiguous() for state in (h0, c0))
    return FUSED[backend].forward(  # type: ignore[no-any-return]
        gates_x.contiguous(), weight_hh.contiguous(), *states, steps, save_gates, save_cells
    )


@torch.library.custom_op("tagrank::lstm_forward", _forward, mutates_args=()).register_fake
def _forward_fake(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    steps: int,
    backend: str,
    save_gates: bool,
    save_cells: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, hidden = gates_x.shape[-2], weight_hh.shape[1]
    output = gates_x.new_empty(steps, batch, hidden)
    c_n = gates_x.new_empty(batch, hidden)
    gates = gates_x.new_empty((steps, batch, 4 * hidden) if save_gates else (0,))
    cells = gates_x.new_empty((steps, batch, hidden) if save_cells else (0,), dtype=cell_dtype(gates_x.dtype))
    return output, c_n, gates, cells


def _backward(
    grad_output: Tensor,
    grad_c_n: Tensor,
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    constant: bool,
    weight_wanted: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(d_gates_x, d_weight_hh, d_h0, d_c0)``; the last two have no elements where their state was left out.

    Nor has ``d_weight_hh`` unless ``weight_wanted``: it is half of the arithmetic. There is no such choice for
    ``d_gates_x``, as everything else is made from the gradients of the gates.

    One of ``gates`` and ``gates_x`` has no elements. It has no derivative of its own: asking for one is an error.
    """
    states = (None if state is None else state.contiguous() for state in (h0, c0))
    # A caller's autocast is for the forward pass: the gradients are those of what was computed there.
    with _no_autocast(gates_x.device.type):
        return FUSED[backend].backward(  # type: ignore[no-any-return]
            grad_output,
            grad_c_n.contiguous(),
            gates_x.contiguous(),
            weight_hh.contiguous(),
            *states,
            output,
            gates,
            cells,
            constant,
            weight_wanted,
        )


def _no_autocast(device: str) -> AbstractContextManager[object]:
    # Entering one where there is nothing to switch off would take as long as a step of a small recurrence.
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


@torch.library.custom_op("tagrank::lstm_backward", _backward, mutates_args=()).register_fake
def _backward_fake(
    grad_output: Tensor,
    grad_c_n: Tensor,
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    constant: bool,
    weight_wanted: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps, batch, hidden = output.shape
    return (
        output.new_empty((batch, 4 * hidden) if constant else (steps, batch, 4 * hidden)),
        weight_hh.new_empty(weight_hh.shape if weight_wanted else (0,)),
        output.new_empty((0,) if h0 is None else (batch, hidden)),
        output.new_empty((0,) if c0 is None else (batch, hidden)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gates_x, weight_hh, h0, c0, _, backend, _, _ = inputs
    hidden_states, _, gates, cells = output
    ctx.backend = backend
    ctx.constant = gates_x.dim() == 2
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates, cells)
    # The gates before their activation are read where those after it were not saved, and only there.
    saved = gates_x.new_empty(0) if gates.numel() else gates_x
    ctx.save_for_backward(saved, weight_hh, h0, c0, hidden_states, gates, cells)


def _gradients(ctx: Any, backward: Any, grad_output: Tensor | None, grad_c_n: Tensor | None) -> tuple[Any, ...]:
    gates_x, weight_hh, h0, c0, output, gates, cells = ctx.saved_tensors
    if cells.numel() == 0 and output.numel() > 0:
        raise RuntimeError(
            "lstm_recurrence kept nothing for backward here (a program exported or traced under torch.no_grad() does "
            "not): export it with gradients enabled to train it"
        )
    grad_output = torch.zeros_like(output) if grad_output is None else grad_output
    grad_c_n = output.new_zeros(output.shape[1:]) if grad_c_n is None else grad_c_n
    # A frozen weight gets none, as under LoRA or where only what comes before the layer is trained.
    wanted = ctx.needs_input_grad[1]
    saved = (gates_x, weight_hh, h0, c0, output, gates, cells)
    d_gates_x, d_weight_hh, d_h0, d_c0 = backward(grad_output, grad_c_n, *saved, ctx.constant, wanted, ctx.backend)
    d_weight_hh = d_weight_hh if wanted else None
    d_h0, d_c0 = (None if state is None else d for state, d in ((h0, d_h0), (c0, d_c0)))
    return d_gates_x, d_weight_hh, d_h0, d_c0, None, None, None, None


def _autograd(ctx: Any, grad_output: Tensor | None, grad_c_n: Tensor | None, *_: Any) -> tuple[Any, ...]:
    return _gradients(ctx, torch.ops.tagrank.lstm_backward, grad_output, grad_c_n)


torch.library.register_autograd("tagrank::lstm_forward", _autograd, setup_context=_setup_context)


def _no_second_derivative(*_: Any) -> Any:
    raise RuntimeError(
        "the fused backends of lstm_recurrence have no second derivative (as cuDNN's LSTM has none); "
        "backend='eager' differentiates any number of times"
    )


torch.library.register_autograd("tagrank::lstm_backward", _no_second_derivative)


class _Recurrence(torch.autograd.Function):
    """The same formula around the same two functions, called directly."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Not by setup_context as a member: for that, PyTorch looks at the signature in each call.
        output = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_c_n: Tensor | None, *_: Any) -> tuple[Any, ...]:
        # Where a second derivative may follow, by the operator, which refuses to have one.
        backward = torch.ops.tagrank.lstm_backward if torch.is_grad_enabled() else _backward
        return _gradients(ctx, backward, grad_output, grad_c_n)
