"""The recurrence as two PyTorch operators: one for a whole sequence forward, one for backward.

One call per sequence and never one per step, because a custom operator costs some 10 microseconds a call. What every
backend shares is here: what is saved for backward, autograd, and the results' shapes for compilers. Shapes are those
of ``tagrank.recurrence.backends.base``.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tagrank.recurrence.backends import FUSED, BackwardInputs
from tagrank.recurrence.backends.base import Gradients, Outputs
from tagrank.recurrence.dtypes import autocasts, cell_dtype
from tagrank.recurrence.fused import refuse_second_derivative
from tagrank.recurrence.tracing import observed

# Exported programs name these operators and their arguments: the schemas stay as they are.
_FORWARD = (
    "(Tensor gates_x, Tensor weight_hh, Tensor? h0, Tensor? c0, SymInt steps, str backend, "
    "bool save_gates, bool save_cells) -> (Tensor, Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad_output, Tensor grad_c_n, Tensor gates_x, Tensor weight_hh, Tensor? h0, Tensor? c0, "
    "Tensor output, Tensor gates, Tensor cells, bool constant, bool weight_wanted, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def recurrence(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    steps: int,
    backend: str,
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """``output`` and ``c_n`` by a fused backend, differentiable once."""
    inputs = (gates_x, weight_hh, h0, c0)
    # torch.jit.trace checks a trace under no_grad, and expects the same graph.
    enabled = torch.is_grad_enabled() or torch._C._get_tracing_state() is not None
    train = enabled and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    directly = _Recurrence.apply if train else _forward
    forward = torch.ops.tagrank.lstm_forward if observed(inputs) else directly
    output, c_n, _, _ = forward(*inputs, steps, backend, train and not recompute, train)
    return output, c_n


def _forward(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    steps: int,
    backend: str,
    save_gates: bool,
    save_cells: bool,
) -> Outputs:
    return FUSED[backend].forward(
        gates_x.contiguous(),
        weight_hh.contiguous(),
        None if h0 is None else h0.contiguous(),
        None if c0 is None else c0.contiguous(),
        # A trace has the length of its example.
        steps if gates_x.dim() == 2 else gates_x.shape[0],
        save_gates,
        save_cells,
    )


# The C++ library has the same operator, for processes that run saved programs without tagrank's Python. It is for all
# types of devices there, so the kernels for single ones come first.
if not hasattr(torch.ops.tagrank, "lstm_forward"):
    torch.library.define("tagrank::lstm_forward", _FORWARD)
torch.library.impl("tagrank::lstm_forward", ("cpu", "cuda", "xpu", "mps", "hpu", "privateuseone"), _forward)


def _forward_fake(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    steps: int,
    backend: str,
    save_gates: bool,
    save_cells: bool,
) -> Outputs:
    batch, hidden = gates_x.shape[-2], weight_hh.shape[1]
    steps = steps if gates_x.dim() == 2 else gates_x.shape[0]
    output = gates_x.new_empty(steps, batch, hidden)
    c_n = gates_x.new_empty(batch, hidden)
    gates = gates_x.new_empty((steps, batch, 4 * hidden) if save_gates else (0,))
    cells = gates_x.new_empty((steps, batch, hidden) if save_cells else (0,), dtype=cell_dtype(gates_x.dtype))
    return output, c_n, gates, cells


torch.library.register_fake("tagrank::lstm_forward", _forward_fake)


def _backward(
    grad_output: Tensor,
    grad_c_n: Tensor,
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    *others: Any,
) -> Gradients:
    """The fields of :class:`BackwardInputs`, then the backend. It has no derivative: asking for it is an error."""
    *returned, backend = others
    inputs = BackwardInputs(
        grad_output,
        grad_c_n.contiguous(),
        gates_x.contiguous(),
        weight_hh.contiguous(),
        None if h0 is None else h0.contiguous(),
        None if c0 is None else c0.contiguous(),
        *returned,
    )
    # A caller's autocast is for the forward pass: the gradients are those of what was computed there.
    with _no_autocast(gates_x.device.type):
        return FUSED[backend].backward(inputs)


def _no_autocast(device: str) -> AbstractContextManager[object]:
    # To enter one when there is nothing to switch off would take as long as a step of a small recurrence.
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


@torch.library.custom_op("tagrank::lstm_backward", _backward, mutates_args=(), schema=_BACKWARD).register_fake
def _backward_fake(*arguments: Any) -> Gradients:
    inputs = BackwardInputs(*arguments[:-1])
    output, weight_hh = inputs.output, inputs.weight_hh
    steps, batch, hidden = output.shape
    return (
        output.new_empty((batch, 4 * hidden) if inputs.constant else (steps, batch, 4 * hidden)),
        weight_hh.new_empty(weight_hh.shape if inputs.weight_wanted else (0,)),
        output.new_empty((0,) if inputs.h0 is None else (batch, hidden)),
        output.new_empty((0,) if inputs.c0 is None else (batch, hidden)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    # Flags decide, and not numbers of elements: the batch may be empty, or its size may depend on data.
    gates_x, weight_hh, h0, c0, steps, backend, save_gates, ctx.save_cells = inputs
    hidden_states, _, gates, cells = output
    ctx.backend = backend
    ctx.constant = gates_x.dim() == 2
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates, cells)
    # Backward of one step reads only the shape of the output: a caller may change h in place before the next step.
    if (steps if ctx.constant else gates_x.shape[0]) == 1:
        hidden_states = torch.empty_like(hidden_states)
    # Backward reads gates_x only if the activated gates were not saved.
    gates_x = gates_x.new_empty(0) if save_gates else gates_x
    ctx.save_for_backward(gates_x, weight_hh, h0, c0, hidden_states, gates, cells)


def _gradients(ctx: Any, backward: Any, grad_output: Tensor | None, grad_c_n: Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    _, _, h0, c0, output, _, _ = saved
    if not ctx.save_cells:
        raise RuntimeError(
            "lstm_recurrence kept nothing for backward here (a program exported or traced under torch.no_grad() does "
            "not): export it with gradients enabled to train it"
        )
    grad_output = torch.zeros_like(output) if grad_output is None else grad_output
    grad_c_n = output.new_zeros(output.shape[1:]) if grad_c_n is None else grad_c_n
    # A frozen weight needs none: under LoRA, or if only what comes before the layer is trained. There is no such choice
    # for gates_x, because all other gradients are made from those of the gates.
    wanted = ctx.needs_input_grad[1]
    d_gates_x, d_weight_hh, d_h0, d_c0 = backward(grad_output, grad_c_n, *saved, ctx.constant, wanted, ctx.backend)
    d_weight_hh = d_weight_hh if wanted else None
    d_h0 = None if h0 is None else d_h0
    d_c0 = None if c0 is None else d_c0
    return d_gates_x, d_weight_hh, d_h0, d_c0, None, None, None, None


def _autograd(ctx: Any, grad_output: Tensor | None, grad_c_n: Tensor | None, *_: Any) -> tuple[Any, ...]:
    return _gradients(ctx, torch.ops.tagrank.lstm_backward, grad_output, grad_c_n)


torch.library.register_autograd("tagrank::lstm_forward", _autograd, setup_context=_setup_context)


torch.library.register_autograd("tagrank::lstm_backward", refuse_second_derivative)


class _Recurrence(torch.autograd.Function):
    """The same autograd formula around the same two functions, called directly."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Outputs:
        # Not by a member `setup_context`: for that, PyTorch inspects the signature in each call.
        output = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_c_n: Tensor | None, *_: Any) -> tuple[Any, ...]:
        # If a second derivative may follow, by the operator, which refuses to have one.
        backward = torch.ops.tagrank.lstm_backward if torch.is_grad_enabled() else _backward
        return _gradients(ctx, backward, grad_output, grad_c_n)
