"""The recurrence over a packed batch: sequences of different lengths, without padding.

The rows are those of ``torch.nn.utils.rnn.PackedSequence``: step ``t`` has ``batch_sizes[t]`` rows, one for each
sequence that has not ended, the longest sequence first. The C++ library takes them as they are, so that there is no
arithmetic on padding; the eager loop runs once for each run of steps with the same number of rows. The other backends
get padded sequences.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tagrank.recurrence.backends import FUSED, choose
from tagrank.recurrence.backends.compiled import C0, H0, WEIGHT_HH, WEIGHT_HR
from tagrank.recurrence.backends.eager import lstm_loop
from tagrank.recurrence.dtypes import autocasts, cell_dtype
from tagrank.recurrence.fused import Gradients
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
    tensors = (gates_x, constant, weight_hh, h0, c0)
    if weight_hh.device.type != "cpu" or observed(tensors):
        return scattered(*tensors, batch_sizes, backend)
    tensors = _autocast(tensors)
    sizes = batch_sizes.tolist()
    name = _chosen(backend, tensors[2], sizes)
    if name == "eager":
        return packed_loop(sizes, *tensors)
    if not FUSED[name].packs():
        return scattered(*tensors, batch_sizes, name)
    return _run(name, sizes, *tensors, None)


def projected_recurrence(
    gates_x: Tensor | None,
    constant: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_hr: Tensor,
    sizes: Sequence[int],
    backend: str,
) -> Results:
    """:func:`packed_recurrence` with a projection of each hidden state, on CPUs.

    Args:
        weight_hh: ``[4H, P]``.
        h0: ``[B, P]``.
        weight_hr: ``[P, H]``, the projection.
        sizes: the rows of each step.
        backend: ``"auto"``, ``"eager"``, or the name of a backend that takes packed batches.

    Returns:
        ``output`` ``[N, P]``, ``h_n`` ``[B, P]`` and ``c_n`` ``[B, H]``.
    """
    tensors = _autocast((gates_x, constant, weight_hh, h0, c0, weight_hr))
    name = _chosen(backend, tensors[2], sizes)
    if name == "eager" or sizes[0] == 0:
        return packed_loop(sizes, *tensors)
    return _run(name, sizes, *tensors)


def _run(name: str, sizes: Sequence[int], *tensors: Tensor | None) -> Results:
    """On a backend that packs: ``gates_x``, ``constant``, ``weight_hh``, ``h0``, ``c0`` and ``weight_hr``."""
    launch = FUSED[name].fixed_launch
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        results: Results = _Packed.apply(name, sizes, launch, *tensors)
        return results
    output, h_n, c_n = _forward(False, name, sizes, launch, *tensors)
    return output, h_n, c_n


def _autocast(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """The tensors in autocast's dtype if it is on."""
    if not autocasts("cpu"):
        return tensors
    return tuple(None if tensor is None else to_autocast(tensor) for tensor in tensors)


def _chosen(backend: str, weight_hh: Tensor, sizes: Sequence[int]) -> str:
    return choose(backend, FutureGates(weight_hh.device, weight_hh.dtype, (sizes[0], weight_hh.shape[0])))


class _Segment(NamedTuple):
    """Steps with the same number of rows: the packed rows from ``first`` on, and how many rows the next segment has."""

    first: int
    steps: int
    rows: int
    rows_after: int

    def of(self, packed: Tensor) -> Tensor:
        """The segment's rows of ``[N, ...]``, as ``[steps, rows, ...]``."""
        own = packed.narrow(0, self.first, self.steps * self.rows)
        return own.view(self.steps, self.rows, *packed.shape[1:])


def _segments(sizes: Sequence[int]) -> Iterator[_Segment]:
    first = start = 0
    for t in range(1, len(sizes) + 1):
        after = sizes[t] if t < len(sizes) else 0
        if after != sizes[start]:
            yield _Segment(first, t - start, sizes[start], after)
            first += (t - start) * sizes[start]
            start = t


def packed_loop(
    sizes: Sequence[int],
    gates_x: Tensor | None,
    constant: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_hr: Tensor | None = None,
) -> Results:
    """:func:`packed_recurrence` by the eager loop, whose ``weight_hr`` projects the hidden states."""
    record("eager.forward")
    h, c = h0, c0
    outputs, ends = [], []
    for segment in _segments(sizes):
        rows = segment.rows
        x: Any = None if gates_x is None else segment.of(gates_x)
        if constant is not None:
            x = constant[:rows] if x is None else x + constant[:rows]
        h, c = (None if state is None else state[:rows] for state in (h, c))
        output, c = lstm_loop(x, weight_hh, h, c, segment.steps, weight_hr)
        h = output[-1]
        outputs.append(output.flatten(0, 1))
        ends.append((h[segment.rows_after :], c[segment.rows_after :]))
    # The sequences that end first are the last rows.
    h_n, c_n = (torch.cat([pair[i] for pair in reversed(ends)]) for i in range(2))
    return torch.cat(outputs), h_n, c_n


def _forward(
    save: bool,
    name: str,
    sizes: Sequence[int],
    launch: Any,
    gates_x: Tensor | None,
    constant: Tensor | None,
    weight_hh: Any,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_hr: Tensor | None,
) -> list[Tensor]:
    """``output``, ``h_n``, ``c_n``, and if ``save`` the activated gates ``[N, 4H]`` and the cell states ``[N, H]``."""
    x: Any = constant if gates_x is None else gates_x
    if gates_x is not None and constant is not None:
        x = torch.empty_like(gates_x, memory_format=torch.contiguous_format)
        for segment in _segments(sizes):
            torch.add(segment.of(gates_x), constant[: segment.rows], out=segment.of(x))
    record(f"{name}.forward")
    results: list[Tensor] = torch.ops.tagrank.packed_forward.default(
        x, weight_hh, h0, c0, weight_hr, sizes, gates_x is None, save, launch
    )
    return results


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, sizes: Sequence[int], launch: Any, *tensors: Any) -> Results:
        output, h_n, c_n, *kept = _forward(True, name, sizes, launch, *tensors)
        ctx.set_materialize_grads(False)
        ctx.name, ctx.sizes, ctx.launch, ctx.varies = name, sizes, launch, tensors[0] is not None
        ctx.save_for_backward(*tensors[2:], output, *kept)
        return output, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # read once: an activation checkpoint gives them only once
        if torch.is_grad_enabled():
            return Gradients.apply(_backward, ctx, *saved, *grads)  # type: ignore[no-any-return]
        return _backward(ctx, saved, grads)


def _backward(ctx: Any, saved: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients of the arguments of :meth:`_Packed.forward`, from the tensors that it saved."""
    parameters, kept = saved[:4], saved[4:]
    *_, gates_wanted, constant_wanted, weight_wanted, h0_wanted, c0_wanted, projection_wanted = ctx.needs_input_grad
    wanted = weight_wanted * WEIGHT_HH | h0_wanted * H0 | c0_wanted * C0 | projection_wanted * WEIGHT_HR
    record(f"{ctx.name}.backward")
    d_gates, *others = torch.ops.tagrank.packed_backward.default(
        *grads, *parameters, ctx.sizes, *kept, not ctx.varies, wanted, ctx.launch
    )
    d_constant = None
    if constant_wanted:
        d_constant = _sum_over_steps(d_gates, ctx.sizes) if ctx.varies else d_gates
    found = iter(others)
    d_others = [next(found) if want else None for want in (weight_wanted, h0_wanted, c0_wanted, projection_wanted)]
    return None, None, None, d_gates if gates_wanted else None, d_constant, *d_others


def _sum_over_steps(packed: Tensor, sizes: Sequence[int]) -> Tensor:
    """``[N, F]`` to ``[B, F]``, the sum of each sequence; of 16-bit numbers it is kept in float32 and rounded once."""
    sums = packed.new_zeros(sizes[0], packed.shape[1], dtype=cell_dtype(packed.dtype))
    for segment in _segments(sizes):
        sums[: segment.rows] += segment.of(packed).sum(0, dtype=sums.dtype)
    return sums.to(packed.dtype)
