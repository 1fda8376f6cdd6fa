"""Sequences of different lengths, as a caller gives them: a PackedSequence, or lengths beside padded tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from tagrank.nn.checks import check_features
from tagrank.nn.sequences import Packed, Padded, Sequences, Whole
from tagrank.recurrence.tracing import observed


class Ragged(NamedTuple):
    """A batch of sequences of different lengths, as the layers read it.

    Attributes:
        sequences: the layout.
        batch: ``B``.
        input: ``[rows, I]``, or ``None``.
        order: ``[B]``, the order of the sequences in the layout, or ``None`` if it is the caller's.
        back: ``[B]``, the caller's order, or ``None``.
        padded: ``[N]``, for each packed row the row of ``[T B]`` where the caller has it, or ``None``.
    """

    sequences: Sequences
    batch: int
    input: Tensor | None
    order: Tensor | None = None
    back: Tensor | None = None
    padded: Tensor | None = None

    def sort(self, tensor: Tensor | None, dim: int) -> Tensor | None:
        """A tensor in the caller's order of sequences, which are its dimension ``dim``, in that of the layout."""
        return tensor if tensor is None or self.order is None else tensor.index_select(dim, self.order)

    def unsort(self, states: Tensor) -> Tensor:
        """``[layers, B, H]`` in the caller's order."""
        return states if self.back is None else states.index_select(1, self.back)

    def pad(self, output: Tensor, steps: int) -> Tensor:
        """``[rows, H]`` as ``[T, B, H]``, zero beyond the end of each sequence."""
        if self.padded is None:
            return output
        features = output.shape[1]
        rows = output.new_zeros(steps * self.batch, features).index_copy(0, self.padded, output)
        return rows.view(steps, self.batch, features)

    def pack(self, output: Tensor) -> PackedSequence:
        """``[rows, H]``, packed as the input was."""
        assert isinstance(self.sequences, Packed)
        return PackedSequence(output, self.sequences.batch_sizes, self.order, self.back)


def of_packed(input: PackedSequence, context: Any, steps: int | None, sizes: tuple[int, int], weight: Tensor) -> Ragged:
    """A packed batch, of ``sizes`` context and input features.

    Raises:
        TypeError, ValueError, RuntimeError: something does not fit, in the words of nn.LSTM.
    """
    context_size, input_size = sizes
    data, batch_sizes, order, back = input
    if input_size == 0:
        raise TypeError(f"ContextLSTM: input is not taken because input_size is 0; got PackedSequence {[*data.shape]}")
    if data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
    check_features(data, "input", input_size, weight)
    if steps is not None and steps != batch_sizes.shape[0]:
        raise ValueError(f"steps: expected {batch_sizes.shape[0]}, the length of input, or None; got {steps}")
    if context_size == 0:
        if context is not None:
            raise TypeError(f"ContextLSTM: context is not taken because context_size is 0; got {_describe(context)}")
        sequences = int(batch_sizes[0])
    else:
        if not isinstance(context, Tensor):
            raise TypeError(
                f"ContextLSTM: context is required because context_size is {context_size}; got {_describe(context)}"
            )
        if context.dim() != 2:
            raise ValueError(f"ContextLSTM: Expected context to be 2D beside a PackedSequence, got {context.dim()}D")
        check_features(context, "context", context_size, weight)
        sequences = context.shape[0]
        if not torch.compiler.is_compiling() and sequences != batch_sizes[0]:
            raise RuntimeError(f"Expected context batch size {int(batch_sizes[0])} like input, got {sequences}")
    return Ragged(Packed(batch_sizes, data.shape[0], sequences), sequences, data, order, back)


def of_lengths(
    lengths: Any, context: Tensor | None, input: Tensor | None, batch: int, steps: int | None
) -> tuple[Ragged, int]:
    """Sequences of the given lengths beside ``context`` ``[B, C]`` and ``input`` ``[T, B, I]``, and ``T``.

    On CPUs they are packed, so that there is no arithmetic on padding. Where that would wait for a GPU, or depend on
    data that a compiler does not know, they stay padded.

    Raises:
        TypeError: the lengths are no integers, or ``steps`` is required.
        ValueError: there is not one for each sequence, or one is not from 1 to ``T``.
    """
    given: Any = context if input is None else input
    lengths = _checked(lengths, batch)
    watched = observed((context, input, lengths))
    if steps is None:
        if watched:
            raise TypeError("ContextLSTM: steps is required without an input where PyTorch traces; got None")
        steps = int(lengths.max()) if batch else 1
    message = f"lengths: expected numbers from 1 to {steps}, the length of the longest sequence"
    known = lengths.device.type == "cpu" and not watched
    if known and batch and not 1 <= int(lengths.min()) <= int(lengths.max()) <= steps:
        raise ValueError(f"{message}; got {lengths.tolist()}")
    if known and batch and given.device.type == "cpu":
        return Ragged(Whole(steps), batch, input) if int(lengths.min()) == steps else _pack(lengths, input), steps
    lengths = lengths.to(given.device)
    if not known:
        torch._assert_async(((lengths >= 1) & (lengths <= steps)).all(), message)
    if input is not None:
        # Zero times NaN is NaN: what padding holds is not to reach the gradient of the weight.
        running = torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths
        input = input.where(running.unsqueeze(-1), 0.0)
    return Ragged(Padded(steps, lengths), batch, input), steps


def _checked(lengths: Any, batch: int) -> Tensor:
    if isinstance(lengths, Sequence) and all(type(length) is int for length in lengths):
        lengths = torch.tensor(lengths, dtype=torch.int64)
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected a Tensor of integers, got {type(lengths).__name__}")
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: expected a Tensor of integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: expected shape [B] = [{batch}], got {list(lengths.shape)}")
    return lengths


def _pack(lengths: Tensor, input: Tensor | None) -> Ragged:
    """The sequences without their padding, the longest one first."""
    # By index, and not by pack_padded_sequence, which torch.func and forward-mode derivatives do not go through.
    batch = len(lengths)
    ordered, order = lengths.long().sort(descending=True, stable=True)
    batch_sizes = (ordered > torch.arange(int(ordered[0])).unsqueeze(1)).sum(1)
    layout = Packed(batch_sizes, int(ordered.sum()), batch)
    places = layout.places()
    padded = places.step * batch + order[places.sequence]
    data = None if input is None else input.flatten(0, 1).index_select(0, padded)
    return Ragged(layout, batch, data, order, order.argsort(), padded)


def _describe(given: Any) -> str:
    return str(list(given.shape)) if isinstance(given, Tensor) else type(given).__name__
