"""How the sequences of a batch lie in memory: all as long as each other, padded, or packed.

Each layout runs the recurrence over its rows and turns them around, and the layers need to know no more of it.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tagrank.recurrence import lstm_recurrence
from tagrank.recurrence.backends.eager import lstm_loop
from tagrank.recurrence.packed import packed_loop, packed_recurrence
from tagrank.recurrence.padded import Places, Results, padded_recurrence
from tagrank.recurrence.tracing import record


class Sequences(Protocol):
    """A layout of ``B`` sequences. "Rows" stands for its leading dimensions: ``[T, B]``, or packed ``[N]``."""

    def recurrence(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        backend: str,
        recompute: bool,
    ) -> Results:
        """``output`` ``[rows, H]``, and ``h_n`` and ``c_n`` ``[B, H]``, of the gates ``[rows, 4H]`` and ``[B, 4H]``."""

    def loop(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_hr: Tensor,
    ) -> Results | None:
        """The same by the eager loop with a projection, ``[rows, P]``, ``[B, P]`` and ``[B, H]``; or ``None`` if the
        layout has no loop."""

    def backwards(self, rows: Tensor) -> Tensor:
        """``[rows, F]`` with the steps of each sequence in the opposite order. Applied twice, it is nothing."""

    def count(self, context: Tensor | None) -> int:
        """The number of rows beside a context ``[B, C]``."""

    def at_first_step(self, values: Tensor) -> Tensor:
        """``[B, F]`` to ``[rows, F]``: the values at the first step, zeros at the others."""


class Whole:
    """Sequences of ``steps`` steps each: rows are ``[T, B]``."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def recurrence(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        backend: str,
        recompute: bool,
    ) -> Results:
        gates_x = _sum(input_gates, context_gates)
        recompute = recompute and gates_x.dim() == 2
        options: dict[str, Any] = {"steps": self.steps, "backend": backend, "recompute": recompute}
        output, c_n = lstm_recurrence(gates_x, weight_hh, h0, c0, **options)
        return output, output[-1], c_n

    def loop(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_hr: Tensor,
    ) -> Results | None:
        record("eager.forward")
        gates_x = _sum(input_gates, context_gates)
        batch = gates_x.shape[-2]
        h0 = gates_x.new_zeros(batch, weight_hh.shape[1]) if h0 is None else h0
        c0 = gates_x.new_zeros(batch, weight_hr.shape[1]) if c0 is None else c0
        output, c_n = lstm_loop(gates_x, weight_hh, h0, c0, self.steps, weight_hr)
        return output, output[-1], c_n

    def backwards(self, rows: Tensor) -> Tensor:
        return rows.flip(0)

    def count(self, context: Tensor | None) -> int:
        assert context is not None
        return self.steps * context.shape[0]

    def at_first_step(self, values: Tensor) -> Tensor:
        return F.pad(values.unsqueeze(0), (0, 0, 0, 0, 0, self.steps - 1))


class Padded(Whole):
    """Sequences of the given ``lengths`` ``[B]``, padded to ``steps`` steps: rows are ``[T, B]``.

    Nothing depends on the lengths but numbers, so that none is looked at before it is on its device.
    """

    def __init__(self, steps: int, lengths: Tensor) -> None:
        super().__init__(steps)
        self.lengths = lengths.long()
        self._opposite: Tensor | None = None

    def _opposites(self) -> Tensor:
        """``[T B]``: for each row, the row that takes its place. Padding stays where it is."""
        step = torch.arange(self.steps, device=self.lengths.device).unsqueeze(1)
        other = torch.where(step < self.lengths, self.lengths - 1 - step, step)
        sequences = self.lengths.shape[0]
        return (other * sequences + torch.arange(sequences, device=self.lengths.device)).flatten()

    def recurrence(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        backend: str,
        recompute: bool,
    ) -> Results:
        gates_x = _sum(input_gates, context_gates)
        return padded_recurrence(gates_x, weight_hh, h0, c0, self.lengths, self.steps, backend)

    def loop(self, *arguments: Any) -> Results | None:
        return None

    def backwards(self, rows: Tensor) -> Tensor:
        if self._opposite is None:
            self._opposite = self._opposites()
        return rows.flatten(0, 1).index_select(0, self._opposite).view_as(rows)


class Packed:
    """A packed batch, as in ``PackedSequence``: rows are ``[N]``.

    Args:
        batch_sizes: ``[T]``, int64, on the CPU.
        rows: ``N``, their sum.
        sequences: ``B``, the first of them.
    """

    def __init__(self, batch_sizes: Tensor, rows: int, sequences: int) -> None:
        self.batch_sizes, self.rows, self.sequences = batch_sizes, rows, sequences
        self._opposite: Tensor | None = None

    def places(self) -> Places:
        return Places.of(self.batch_sizes, self.rows, self.sequences)

    def recurrence(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        backend: str,
        recompute: bool,
    ) -> Results:
        return packed_recurrence(input_gates, context_gates, weight_hh, h0, c0, self.batch_sizes, backend)

    def loop(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_hr: Tensor,
    ) -> Results | None:
        sizes = self.batch_sizes.tolist()
        return packed_loop(sizes, input_gates, context_gates, weight_hh, h0, c0, weight_hr)

    def backwards(self, rows: Tensor) -> Tensor:
        if self._opposite is None:
            self._opposite = self.places().opposite().to(rows.device)
        return rows.index_select(0, self._opposite)

    def count(self, context: Tensor | None) -> int:
        return self.rows

    def at_first_step(self, values: Tensor) -> Tensor:
        return F.pad(values, (0, 0, 0, self.rows - self.sequences))


def _sum(input_gates: Tensor | None, context_gates: Tensor | None) -> Tensor:
    if input_gates is None or context_gates is None:
        gates: Any = context_gates if input_gates is None else input_gates
        return gates  # type: ignore[no-any-return]
    return input_gates + context_gates
