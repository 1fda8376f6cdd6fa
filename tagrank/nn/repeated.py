"""RepeatedInputLSTM: called as ``nn.LSTM``, for inputs of which some features are the same at each step."""

from collections.abc import Sequence
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from tagrank.nn.cell import ContextGates
from tagrank.nn.checks import State, check_features, leaf_of
from tagrank.nn.context_in_input import ContextInInput
from tagrank.nn.context_memory import ContextMemory
from tagrank.nn.layer import ContextLSTM
from tagrank.nn.lengths import Ragged
from tagrank.nn.parameters import add_bias, context_share
from tagrank.nn.sequences import Packed
from tagrank.recurrence.dtypes import autocasts
from tagrank.recurrence.fused import layers
from tagrank.recurrence.op import layer_settings


class RepeatedInputLSTM(ContextInInput, ContextLSTM):
    """A :class:`ContextLSTM` that finds its context in the input: the features that are the same at each step.

    It takes and returns what ``nn.LSTM`` does, and its ``state_dict()`` loads both ways. The repeated features are the
    last ones, or the first ones after :meth:`move_context_first`. They are read at the first step only, which also gets
    their whole gradient: over the steps it adds up to that of ``nn.LSTM``.

    Each call makes sure that the features repeat. That reads them once; it waits for the GPU, except under
    ``torch.compile``. A tensor that was expanded over the steps needs no look.

    Decoders that step call it for one step after the other, with the states of the step before. Then the context's
    share of the gates is computed once for a sequence, on CPUs, as in
    :class:`~tagrank.nn.repeated_cell.RepeatedInputLSTMCell`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._memory = ContextMemory()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Layers that were pickled by an earlier version have none.
        super().__setstate__({"_memory": ContextMemory()} | state)

    @overload  # type: ignore[override]
    def forward(self, input: Tensor, hx: State | None = None) -> tuple[Tensor, State]: ...
    @overload
    def forward(self, input: PackedSequence, hx: State | None = None) -> tuple[PackedSequence, State]: ...
    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> tuple[Tensor | PackedSequence, State]:
        """The arguments and results of ``nn.LSTM``.

        Args:
            input: ``[T, B, I + C]``, ``[B, T, I + C]`` with ``batch_first``, ``[T, I + C]`` unbatched; ``T > 0``. Or a
                ``PackedSequence`` of such.
            hx: ``(h_0, c_0)``; zeros if left out.

        Raises:
            TypeError, ValueError, RuntimeError: as :class:`ContextLSTM`. A ``ValueError`` also if the features that are
                to repeat do not.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        given: type = type(input)
        if given is Proxy:
            return leaf_of(self, input, hx)  # type: ignore[no-any-return]
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
        features = self.input_size + self.context_size
        if input.dim() not in (2, 3) or input.shape[-1] != features:
            raise ValueError(f"input: expected shape [T, B, {features}] or [T, {features}], got {list(input.shape)}")
        time = 1 if self.batch_first and input.dim() == 3 else 0
        steps = input.shape[time]
        if steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        own, repeated = self._parts(input)
        context = repeated.select(time, 0)
        if steps > 1 and repeated.stride(time) != 0:
            self._check_repeats(repeated, context.unsqueeze(time))
        return super().forward(context, steps, own, hx)

    def _forward_packed(self, input: PackedSequence, hx: State | None) -> tuple[PackedSequence, State]:
        data, batch_sizes, order, back = input
        features = self.input_size + self.context_size
        if data.dim() != 2 or data.shape[1] != features:
            raise ValueError(f"input: expected packed rows of {features} features, got {list(data.shape)}")
        own, repeated = self._parts(data)
        context = repeated[: batch_sizes[0]]
        self._check_repeats(repeated, context.index_select(0, first_rows(input)))
        check_features(context, "context", self.context_size, self._parameter("weight_ih_l0"))
        layout = Packed(batch_sizes, len(data), len(context))
        ragged = Ragged(layout, len(context), own, order, back)
        output, states = self._run_ragged(ragged, context if back is None else context.index_select(0, back), hx)
        return ragged.pack(output), states

    def _run(
        self, context: Tensor | None, input: Tensor | None, steps: int, h_0: Tensor | None, c_0: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        between = self.dropout and self.training and self.num_layers > 1
        if steps == 1 and context is not None and not (self.bidirectional or self.proj_size or between):
            first, *others = self._directions()
            weights = [w for w in (first.weight_ih, first.bias_ih, first.bias_hh) if w is not None]
            settings = None
            if self._memory.works(context, weights) and not autocasts("cpu"):
                settings = layer_settings(first.weight_hh, len(context), 1, self.backend, self.recompute)
            if settings is not None:
                gates, reading = self._memory.gates(h_0, context, weights, partial(self._share, weights))
                parameters = [gates.input_weight, first.weight_hh, None, None]
                for layer in others:  # of a stack
                    parameters += [layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh]
                results = layers(settings, gates.gates, input, h_0, c_0, parameters)
                self._memory.keep(results[1], reading)
                return results
        return super()._run(context, input, steps, h_0, c_0)

    def _share(self, weights: Sequence[Tensor], context: Tensor) -> ContextGates:
        weight, *biases = weights
        return ContextGates(*context_share(context, weight, self.input_size, add_bias(*biases) if biases else None))

    def to_lstm(self) -> nn.LSTM:
        """An ``nn.LSTM`` with copies of this layer's parameters."""
        lstm = super().to_lstm()
        self._order_like_lstm(lstm)
        return lstm

    def _check_repeats(self, repeated: Tensor, first: Tensor) -> None:
        begin = 0 if self.context_first else self.input_size
        message = (
            f"input: expected features {begin} to {begin + self.context_size - 1} to be the same at each step, as they "
            "were in the example of tagrank.convert; they are not"
        )
        same = ((repeated == first) | (repeated.isnan() & first.isnan())).all()
        if torch.compiler.is_compiling():
            torch._assert_async(same, message)
        elif not same:
            raise ValueError(message)

    def _reordered(self) -> list[str]:
        return ["weight_ih" + suffix for suffix in self._suffixes(0)]


def first_rows(packed: PackedSequence) -> Tensor:
    """``[N]``: for each row of a packed batch, the row of the first step of its sequence."""
    sizes = packed.batch_sizes
    sequence = torch.arange(len(packed.data)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    return sequence.to(packed.data.device)
