"""What a layer and a cell share that find their context in the input, as nn.LSTM gets it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class ContextInInput(nn.Module):
    """Features that repeat are a part of the input: the last ones, or the first after :meth:`move_context_first`.

    In memory the columns of the weight are ordered input, then context, as everywhere in this package. The state dict
    has them in the order of the input, so that ``nn.LSTM`` and ``nn.LSTMCell`` load it, and theirs is loaded.
    """

    context_size: int
    input_size: int
    context_first = False

    @torch.no_grad()
    def move_context_first(self) -> None:
        """Take the first features for the context, not the last. ``state_dict()`` stays the same."""
        if self.context_first:
            return
        self.context_first = True
        for name in self._reordered():
            weight = getattr(self, name)
            weight.copy_(self._own_order(weight))

    def _reordered(self) -> list[str]:
        """The names of the weights that read the input."""
        raise NotImplementedError

    def _parts(self, input: Tensor) -> tuple[Tensor | None, Tensor]:
        """The features of the input that may vary, or ``None`` if there are none, and those that are to repeat."""
        begin, own_begin = (0, self.context_size) if self.context_first else (self.input_size, 0)
        own = input.narrow(-1, own_begin, self.input_size) if self.input_size else None
        return own, input.narrow(-1, begin, self.context_size)

    def _own_order(self, weight: Tensor) -> Tensor:
        """The columns of ``nn.LSTM``'s weight in the order of this module's: input, then context."""
        return weight.roll(-self.context_size, 1) if self.context_first else weight

    def _order_of_lstm(self, weight: Tensor) -> Tensor:
        return weight.roll(self.context_size, 1) if self.context_first else weight

    @torch.no_grad()
    def _order_like_lstm(self, copy: nn.Module) -> None:
        """Put the columns of an ``nn.LSTM`` or ``nn.LSTMCell`` with copies of this module's weights in its order."""
        for name in self._reordered():
            weight = copy.get_parameter(name)
            weight.copy_(self._order_of_lstm(weight))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._reordered():
            destination[prefix + name] = self._order_of_lstm(destination[prefix + name])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        ordered = dict(state_dict)
        for name in [prefix + name for name in self._reordered()]:
            if isinstance(ordered.get(name), Tensor) and ordered[name].dim() == 2:
                ordered[name] = self._own_order(ordered[name])
        super()._load_from_state_dict(ordered, prefix, *arguments)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", context_first=True" if self.context_first else "")
