"""How the sequences of a batch lie in memory: all as long as each other, padded, or packed.

Each layout runs the recurrence over its rows and turns them around, and the layers need to know no more of it.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tagrank.recurrence import lstm_recurrence
from tagrank.recurrence.packed import packed_recurrence, projected_recurrence
from tagrank.recurrence.padded import Places, Results, padded_recurrence


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

    def projected(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_hr: Tensor,
        backend: str,
    ) -> Results | None:
        """The same with a projection of each hidden state, as :func:`projected_recurrence` does it: ``[rows, P]``,
        ``[B, P]`` and ``[B, H]``. ``None`` if the layout cannot."""

    def backwards(self, rows: Tensor) -> Tensor:
        """``[rows, F]`` with the steps of each sequence in the opposite order. Applied twice, it is nothing."""

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

    def projected(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_hr: Tensor,
        backend: str,
    ) -> Results | None:
        batch = (input_gates if context_gates is None else context_gates).shape[-2]  # type: ignore[union-attr]
        rows = None if input_gates is None else input_gates.flatten(0, 1)
        sizes = [batch] * self.steps
        output, h_n, c_n = projected_recurrence(rows, context_gates, weight_hh, h0, c0, weight_hr, sizes, backend)
        return output.view(self.steps, batch, -1), h_n, c_n

    def backwards(self, rows: Tensor) -> Tensor:
        return rows.flip(0)

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

    def projected(self, *arguments: Any) -> Results | None:
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

    def projected(
        self,
        input_gates: Tensor | None,
        context_gates: Tensor | None,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weight_hr: Tensor,
        backend: str,
    ) -> Results | None:
        sizes = self.batch_sizes.tolist()
        return projected_recurrence(input_gates, context_gates, weight_hh, h0, c0, weight_hr, sizes, backend)

    def backwards(self, rows: Tensor) -> Tensor:
        if self._opposite is None:
            self._opposite = self.places().opposite().to(rows.device)
        return rows.index_select(0, self._opposite)

    def at_first_step(self, values: Tensor) -> Tensor:
        return F.pad(values, (0, 0, 0, self.rows - self.sequences))


def _sum(input_gates: Tensor | None, context_gates: Tensor | None) -> Tensor:
    if input_gates is None or context_gates is None:
        gates: Any = context_gates if input_gates is None else input_gates
        return gates  # type: ignore[no-any-return]
    return input_gates + context_gates
