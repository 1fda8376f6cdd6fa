"""RepeatedInputLSTM: called as ``nn.LSTM``, for inputs of which some features are the same at each step."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tagrank.nn.checks import State
from tagrank.nn.layer import ContextLSTM

_WEIGHT = "weight_ih_l0"


class RepeatedInputLSTM(ContextLSTM):
    """A :class:`ContextLSTM` that finds its context in the input: the features that are the same at each step.

    It takes and returns what ``nn.LSTM`` does, and its ``state_dict()`` loads both ways. The repeated features are the
    last ones, or the first ones after :meth:`move_context_first`. They are read at the first step only, which also gets
    their whole gradient: over the steps it adds up to that of ``nn.LSTM``.

    Each call makes sure that the features repeat. That reads them once; it waits for the GPU, except under
    ``torch.compile``. A tensor that was expanded over the steps needs no look.
    """

    context_first = False

    @torch.no_grad()
    def move_context_first(self) -> None:
        """Take the first features for the context, not the last. ``state_dict()`` stays the same."""
        self.context_first = True
        weight = self._parameter(_WEIGHT)
        weight.copy_(self._own_order(weight))

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: State | None = None
    ) -> tuple[Tensor, State]:
        """The arguments and results of ``nn.LSTM``.

        Args:
            input: ``[T, B, I + C]``, ``[B, T, I + C]`` with ``batch_first``, ``[T, I + C]`` unbatched; ``T > 0``.
            hx: ``(h_0, c_0)``; zeros if left out.

        Raises:
            TypeError, ValueError, RuntimeError: as :class:`ContextLSTM`. A ``ValueError`` also if the features that are
                to repeat do not.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
        features = self.input_size + self.context_size
        if input.dim() not in (2, 3) or input.shape[-1] != features:
            raise ValueError(f"input: expected shape [T, B, {features}] or [T, {features}], got {list(input.shape)}")
        time = 1 if self.batch_first and input.dim() == 3 else 0
        steps = input.shape[time]
        if steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        begin, own_begin = (0, self.context_size) if self.context_first else (self.input_size, 0)
        repeated = input.narrow(-1, begin, self.context_size)
        context = repeated.select(time, 0)
        if steps > 1 and repeated.stride(time) != 0:
            self._check_repeats(repeated, context.unsqueeze(time), begin)
        own = input.narrow(-1, own_begin, self.input_size) if self.input_size else None
        return super().forward(context, steps, own, hx)

    def to_lstm(self) -> nn.LSTM:
        """An ``nn.LSTM`` with copies of this layer's parameters."""
        lstm = super().to_lstm()
        weight = lstm.get_parameter(_WEIGHT)
        with torch.no_grad():
            weight.copy_(self._order_of_lstm(weight))
        return lstm

    def extra_repr(self) -> str:
        return super().extra_repr() + (", context_first=True" if self.context_first else "")

    def _check_repeats(self, repeated: Tensor, first: Tensor, begin: int) -> None:
        message = (
            f"input: expected features {begin} to {begin + self.context_size - 1} to be the same at each step, as they "
            "were in the example of tagrank.convert; they are not"
        )
        same = ((repeated == first) | (repeated.isnan() & first.isnan())).all()
        if torch.compiler.is_compiling():
            torch._assert_async(same, message)
        elif not same:
            raise ValueError(message)

    def _own_order(self, weight: Tensor) -> Tensor:
        """The columns of ``nn.LSTM``'s weight in the order of this layer's: input, then context."""
        return weight.roll(-self.context_size, 1) if self.context_first else weight

    def _order_of_lstm(self, weight: Tensor) -> Tensor:
        return weight.roll(self.context_size, 1) if self.context_first else weight

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + _WEIGHT] = self._order_of_lstm(destination[prefix + _WEIGHT])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        name = prefix + _WEIGHT
        ordered = dict(state_dict)
        if isinstance(ordered.get(name), Tensor) and ordered[name].dim() == 2:
            ordered[name] = self._own_order(ordered[name])
        super()._load_from_state_dict(ordered, prefix, *arguments)
