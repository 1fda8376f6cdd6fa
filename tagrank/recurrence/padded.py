"""The recurrence over sequences of different lengths, padded: a sequence that has ended keeps its state.

Its gates are infinite from then on, and their gradients zero::

    i = sigmoid(-inf) = 0,  f = sigmoid(inf) = 1,  o = sigmoid(-inf) = 0:  c[t] = c[t-1],  h[t] = 0

No size depends on the lengths, so that a compiler or a CUDA graph can have all of it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tagrank.recurrence.op import lstm_recurrence

#: ``output``, ``h_n`` and ``c_n``; the states are those at each sequence's own end.
Results = tuple[Tensor, Tensor, Tensor]


def padded_recurrence(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    lengths: Tensor,
    steps: int,
    backend: str = "auto",
) -> Results:
    """:func:`tagrank.lstm_recurrence` over ``B`` sequences of the given lengths, padded to ``T`` steps.

    Args:
        gates_x: ``[T, B, 4H]`` or ``[B, 4H]``. What it holds beyond the end of a sequence is not read.
        weight_hh, h0, c0, backend: as for :func:`tagrank.lstm_recurrence`.
        lengths: ``[B]``, integers from 1 to ``T``, on the device of ``gates_x``.
        steps: ``T``.

    Returns:
        ``output`` ``[T, B, H]``, zero beyond the end of each sequence, and ``h_n`` and ``c_n`` ``[B, H]``.
    """
    gate = gates_x.new_zeros(weight_hh.shape[1])
    ended = torch.cat([gate - torch.inf, gate + torch.inf, gate, gate - torch.inf])
    running = torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths
    gates = torch.where(running.unsqueeze(-1), gates_x, ended)
    output, c_n = lstm_recurrence(gates, weight_hh, h0, c0, backend=backend)
    last = (lengths.long() - 1).view(1, -1, 1).expand(-1, -1, output.shape[-1])
    return output, output.gather(0, last)[0], c_n


class Places(NamedTuple):
    """Where the rows of a packed batch are. All are int64.

    Attributes:
        step: ``[N]``, the time step of each row.
        sequence: ``[N]``, its sequence.
        lengths: ``[B]``, the length of each sequence, none greater than the one before.
        first: ``[T]``, the first row of each step.
    """

    step: Tensor
    sequence: Tensor
    lengths: Tensor
    first: Tensor

    @classmethod
    def of(cls, batch_sizes: Tensor, rows: int, sequences: int) -> "Places":
        """For ``[T]`` batch sizes, whose sum is ``rows`` and whose first is ``sequences``; on their device."""
        device = batch_sizes.device
        ends = batch_sizes.cumsum(0)
        first = ends - batch_sizes
        row = torch.arange(rows, device=device)
        step = torch.searchsorted(ends, row, right=True)
        lengths = (batch_sizes.unsqueeze(1) > torch.arange(sequences, device=device)).sum(0)
        return cls(step, row - first[step], lengths, first)

    def opposite(self) -> Tensor:
        """``[N]``: for each row, the row that is as far from its sequence's other end. Twice applied, it is nothing."""
        return self.first[self.lengths[self.sequence] - 1 - self.step] + self.sequence


def scattered(
    gates_x: Tensor | None,
    constant: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    batch_sizes: Tensor,
    backend: str,
) -> Results:
    """:func:`tagrank.recurrence.packed.packed_recurrence` by way of :func:`padded_recurrence`."""
    given: Any = gates_x if constant is None else constant
    device, steps = given.device, batch_sizes.shape[0]
    known = next((t.shape[0] for t in (constant, h0, c0) if t is not None), None)
    sequences = int(batch_sizes[0]) if known is None else known
    rows = int(batch_sizes.sum()) if gates_x is None else gates_x.shape[0]
    places = Places.of(batch_sizes, rows, sequences)
    position = (places.step * sequences + places.sequence).to(device)
    if gates_x is None:
        gates = given
    else:
        gates = gates_x.new_zeros(steps * sequences, gates_x.shape[1]).index_copy(0, position, gates_x)
        gates = gates.view(steps, sequences, -1)
        gates = gates if constant is None else gates + constant
    lengths = places.lengths.to(device)
    output, h_n, c_n = padded_recurrence(gates, weight_hh, h0, c0, lengths, steps, backend)
    return output.flatten(0, 1).index_select(0, position), h_n, c_n
