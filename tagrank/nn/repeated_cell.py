"""RepeatedInputLSTMCell: called as ``nn.LSTMCell``, for inputs of which some features are the same at each step."""

from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from tagrank.nn.cell import ContextLSTMCell
from tagrank.nn.checks import State, check_features, leaf_of
from tagrank.nn.context_in_input import ContextInInput
from tagrank.nn.context_memory import ContextMemory
from tagrank.recurrence.op import layer_settings


class RepeatedInputLSTMCell(ContextInInput, ContextLSTMCell):
    """A :class:`ContextLSTMCell` that finds its context in the input: the features that are the same at each step.

    It takes and returns what ``nn.LSTMCell`` does, and its ``state_dict()`` loads both ways. The repeated features are
    the last ones, or the first ones after :meth:`move_context_first`.

    On CPUs the context's share of the gates is computed once for a sequence: as long as each call gets the hidden state
    that the call before returned, and the same context (:class:`~tagrank.nn.context_memory.ContextMemory` says what
    else ends this). Otherwise it is computed at each step, so a context that varies costs time and is no error.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._memory = ContextMemory()

    def forward(self, input: Tensor, hx: State | None = None) -> State:  # type: ignore[override]
        """The arguments and results of ``nn.LSTMCell``.

        Args:
            input: ``[B, I + C]`` or ``[I + C]``.
            hx: ``(h, c)``, each ``[B, H]`` or ``[H]``; zeros if left out.

        Raises:
            TypeError, ValueError, RuntimeError: as :class:`ContextLSTMCell`.
        """
        given: type = type(input)
        if given is Proxy:
            return leaf_of(self, input, hx)  # type: ignore[no-any-return]
        features = self.input_size + self.context_size
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
        if input.dim() not in (1, 2) or input.shape[-1] != features:
            raise ValueError(f"input: expected shape [B, {features}] or [{features}], got {list(input.shape)}")
        check_features(input, "input", features, self.weight_ih)
        own, context = self._parts(input)
        weights = [w for w in (self.weight_ih, self.bias_ih, self.bias_hh) if w is not None]
        rows = context.shape[0] if context.dim() == 2 else 1
        # What runs in the eager loop can be differentiated twice.
        if not self._memory.works(context, weights) or not layer_settings(
            self._weight_hh(), rows, 1, self.backend, state_dimensions=2
        ):
            return super().forward(self.context_gates(context), own, hx)
        state = hx[0] if isinstance(hx, tuple | list) and hx else None
        gates, reading = self._memory.gates(state, context, weights, self.context_gates)
        states = super().forward(gates, own, hx)
        self._memory.keep(states[0], reading)
        return states

    def to_lstm_cell(self) -> nn.LSTMCell:
        """An ``nn.LSTMCell`` with copies of this cell's parameters."""
        cell = super().to_lstm_cell()
        self._order_like_lstm(cell)
        return cell

    def _reordered(self) -> list[str]:
        return ["weight_ih"]

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Cells that were pickled by an earlier version have none.
        super().__setstate__({"_memory": ContextMemory()} | state)  # type: ignore[no-untyped-call]
