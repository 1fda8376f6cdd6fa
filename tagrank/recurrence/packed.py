"""The recurrence over a packed batch: sequences of different lengths, without padding.

The rows are those of ``torch.nn.utils.rnn.PackedSequence``: step ``t`` has ``batch_sizes[t]`` rows, one for each sequence
that has not ended, the longest sequence first. On CPUs a backend runs once for each run of steps with the same number
of rows, from the states that the run before left, so that there is no arithmetic on padding.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tagrank.recurrence.backends import FUSED, choose
from tagrank.recurrence.backends.base import Backend, BackwardInputs
from tagrank.recurrence.backends.eager import lstm_loop
from tagrank.recurrence.dtypes import autocasts
from tagrank.recurrence.fused import refuse_second_derivative
from tagrank.recurrence.op import FutureGates, to_autocast
from tagrank.recurrence.padded import Results, scattered
from tagrank.recurrence.tracing import observed, record


def packed_recurrence(
    gates_x: Tensor | None,
    constant: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    batch_sizes: Tensor,
    backend: str = "auto",
) -> Results:
    """:func:`tagrank.lstm_recurrence` over a packed batch of ``B`` sequences, ``N`` rows in all.

    Args:
        gates_x: ``[N, 4H]``, what varies of the gates' share of the input; ``None`` for zeros.
        constant: ``[B, 4H]``, what stays the same over a sequence; ``None`` for zeros. One of the two is given.
        weight_hh: ``[4H, H]``.
        h0, c0: ``[B, H]``; zeros if left out.
        batch_sizes: ``[T]``, int64, on the CPU: the rows of each step.
        backend: as for :func:`tagrank.lstm_recurrence`.

    Returns:
        ``output`` ``[N, H]``, and ``h_n`` and ``c_n`` ``[B, H]``.

    Raises:
        ValueError, RuntimeError: as :func:`tagrank.lstm_recurrence`.
    """
    if weight_hh.device.type != "cpu" or observed((gates_x, constant, weight_hh, h0, c0)):
        return scattered(gates_x, constant, weight_hh, h0, c0, batch_sizes, backend)
    if autocasts("cpu"):
        weight_hh = to_autocast(weight_hh)
        gates_x, constant, h0, c0 = (None if t is None else to_autocast(t) for t in (gates_x, constant, h0, c0))
    sizes = tuple(batch_sizes.tolist())
    name = choose(backend, FutureGates(weight_hh.device, weight_hh.dtype, (sizes[0], weight_hh.shape[0])))
    if name == "eager":
        return _eagerly(sizes, gates_x, constant, weight_hh, h0, c0)
    arguments = (FUSED[name], sizes, gates_x, constant, weight_hh, h0, c0)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments[2:]):
        results: Results = _Segments.apply(*arguments)
        return results
    return _forward(*arguments, save=False)[0]


class _Segment(NamedTuple):
    """Steps with the same number of rows: the packed rows from ``first`` on, and how many rows the next segment has."""

    first: int
    steps: int
    rows: int
    rows_after: int

    def of(self, packed: Tensor) -> Tensor:
        """The segment's rows of ``[N, ...]``, as ``[steps, rows, ...]``."""
        return packed.narrow(0, self.first, self.steps * self.rows).unflatten(0, (self.steps, self.rows))


def _segments(sizes: Sequence[int]) -> Iterator[_Segment]:
    first = start = 0
    for t in range(1, len(sizes) + 1):
        after = sizes[t] if t < len(sizes) else 0
        if after != sizes[start]:
            yield _Segment(first, t - start, sizes[start], after)
            first += (t - start) * sizes[start]
            start = t


#: From the gates ``[steps, rows, 4H]`` or ``[rows, 4H]``, the states ``[rows, H]`` and the number of steps to the output
#: ``[steps, rows, H]``, the last cell state, and what is kept for backward.
_Run = Callable[[Tensor, Any, Any, int], tuple[Tensor, ...]]


def _walk(
    sizes: Sequence[int],
    gates_x: Tensor | None,
    constant: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    run: _Run,
) -> tuple[Results, list[Any]]:
    """The results, and for each segment its first cell state and what ``run`` kept, in one list."""
    outputs, ends, kept = [], [], []
    for segment in _segments(sizes):
        rows = segment.rows
        x: Any = None if gates_x is None else segment.of(gates_x)
        if constant is not None:
            x = constant[:rows] if x is None else x + constant[:rows]
        h, c = (None if state is None else state[:rows] for state in (h, c))
        kept.append(c)
        output, c, *others = run(x, h, c, segment.steps)
        kept += others
        h = output[-1]
        outputs.append(output.flatten(0, 1))
        ends.append((h[segment.rows_after :], c[segment.rows_after :]))
    # The sequences that end first are the last rows.
    h_n, c_n = (torch.cat([pair[i] for pair in reversed(ends)]) for i in range(2))
    return (torch.cat(outputs), h_n, c_n), kept


def _eagerly(
    sizes: Sequence[int],
    gates_x: Tensor | None,
    constant: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
) -> Results:
    record("eager.forward")
    zeros = weight_hh.new_zeros(sizes[0], weight_hh.shape[1])
    h0, c0 = (zeros if state is None else state for state in (h0, c0))

    def run(x: Tensor, h: Tensor, c: Tensor, steps: int) -> tuple[Tensor, ...]:
        return lstm_loop(x, weight_hh, h, c, steps)

    return _walk(sizes, gates_x, constant, h0, c0, run)[0]


def _forward(
    fused: Backend,
    sizes: Sequence[int],
    gates_x: Tensor | None,
    constant: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    save: bool,
) -> tuple[Results, list[Any]]:
    weight = weight_hh.contiguous()
    gates_x, constant, h0, c0 = (None if t is None else t.contiguous() for t in (gates_x, constant, h0, c0))

    def run(x: Tensor, h: Tensor | None, c: Tensor | None, steps: int) -> tuple[Tensor, ...]:
        return fused.forward(x, weight, h, c, steps, save, save)

    return _walk(sizes, gates_x, constant, h0, c0, run)


class _Segments(torch.autograd.Function):
    """All segments as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, fused: Backend, sizes: Sequence[int], *tensors: Any) -> Results:
        results, kept = _forward(fused, sizes, *tensors, save=True)
        ctx.set_materialize_grads(False)
        ctx.fused, ctx.sizes = fused, sizes
        _, _, weight_hh, h0, _ = tensors
        ctx.save_for_backward(weight_hh, h0, results[0], *kept)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return _Gradients.apply(ctx, *ctx.saved_tensors, *grads)  # type: ignore[no-any-return]
        return _backward(ctx, *grads)


class _Gradients(torch.autograd.Function):
    """The backward pass, with a derivative that is an error. Its results depend on all that they are made of."""

    @staticmethod
    def forward(ctx: Any, of: Any, *tensors: Tensor | None) -> tuple[Any, ...]:
        return _backward(of, *tensors[-3:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        refuse_second_derivative()


def _backward(
    ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients of the arguments of :meth:`_Segments.forward`."""
    if autocasts("cpu"):
        # A caller's autocast is for the forward pass.
        with torch.autocast("cpu", enabled=False):
            return _backward(ctx, grad_output, grad_h_n, grad_c_n)
    weight_hh, h0, output, *kept = ctx.saved_tensors
    _, _, gates_wanted, constant_wanted, weight_wanted, h0_wanted, c0_wanted = ctx.needs_input_grad
    batch, weight = ctx.sizes[0], weight_hh.contiguous()
    nothing = output.new_empty(0)
    # Copies, to which the gradients that come from the next segment are added.
    grads = (
        torch.zeros_like(output) if grad_output is None else grad_output.clone(memory_format=torch.contiguous_format)
    )
    d_h, d_c = (torch.zeros_like(output[:batch]) if grad is None else grad.clone() for grad in (grad_h_n, grad_c_n))
    d_constant = output.new_zeros(batch, weight.shape[0]) if constant_wanted else None
    d_gates = output.new_empty(len(output), weight.shape[0]) if gates_wanted or weight_wanted else None
    before: Any = None if h0 is None else h0.contiguous()
    hidden_before = [before]
    segments = list(_segments(ctx.sizes))
    for segment, after in pairwise(segments):
        hidden_before.append(segment.of(output)[-1, : after.rows])
    for segment in reversed(segments):
        gates, cells = kept.pop(-2), kept.pop()
        c, h, rows = kept.pop(), hidden_before.pop(), segment.rows
        grad = segment.of(grads)
        grad[-1] += d_h[:rows]
        saved = (weight, h, c, segment.of(output), gates, cells)
        inputs = BackwardInputs(grad, d_c[:rows], nothing, *saved, constant=False, weight_wanted=False)
        d, _, before_h, before_c = ctx.fused.backward(inputs)
        if d_gates is not None:
            segment.of(d_gates).copy_(d)
        if d_constant is not None:
            d_constant[:rows] += d.sum(0)
        if h is not None:
            d_h[:rows] = before_h
        if c is not None:
            d_c[:rows] = before_c
    return (
        None,
        None,
        d_gates if gates_wanted else None,
        d_constant,
        _weight_gradient(d_gates, output, h0, ctx.sizes) if weight_wanted and d_gates is not None else None,
        d_h if h0_wanted else None,
        d_c if c0_wanted else None,
    )


def _weight_gradient(d_gates: Tensor, output: Tensor, h0: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """One product over all rows: of the gates' gradients, and the hidden states before them."""
    batch, rows = sizes[0], torch.tensor(sizes)
    # The row of the same sequence one step before is as many rows before as that step has.
    before = torch.arange(batch, len(output)) - torch.repeat_interleave(rows[:-1], rows[1:])
    d_weight = d_gates[batch:].t() @ output.index_select(0, before)
    return d_weight if h0 is None else d_weight.addmm_(d_gates[:batch].t(), h0)
