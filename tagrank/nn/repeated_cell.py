"""RepeatedInputLSTMCell: called as ``nn.LSTMCell``, for inputs of which some features are the same at each step."""

from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from tagrank.nn.cell import ContextGates, ContextLSTMCell
from tagrank.nn.checks import State, check_features
from tagrank.nn.context_in_input import ContextInInput
from tagrank.recurrence.tracing import observed


class RepeatedInputLSTMCell(ContextInInput, ContextLSTMCell):
    """A :class:`ContextLSTMCell` that finds its context in the input: the features that are the same at each step.

    It takes and returns what ``nn.LSTMCell`` does, and its ``state_dict()`` loads both ways. The repeated features are
    the last ones, or the first ones after :meth:`move_context_first`.

    It keeps the context's share of the gates for as long as the hidden state exists that it returned. If the next call
    gets this very tensor and the same context, the share is not computed again. In all other cases it is: if the states
    were changed or put in another order on the way, if the context or a weight is another, if gradients were turned on,
    on GPUs (which would have to be waited for), and where PyTorch records or compiles. So the results are those of
    ``nn.LSTMCell`` in any case. The gradients are too, because each step's context gets its own.

    A change of a weight that PyTorch does not count, as one through ``weight.data``, is seen from the next sequence on.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._readings: dict[int, tuple[ref[Tensor], _Reading]] = {}

    def forward(self, input: Tensor, hx: State | None = None) -> State:  # type: ignore[override]
        """The arguments and results of ``nn.LSTMCell``.

        Args:
            input: ``[B, I + C]`` or ``[I + C]``.
            hx: ``(h, c)``, each ``[B, H]`` or ``[H]``; zeros if left out.

        Raises:
            TypeError, ValueError, RuntimeError: as :class:`ContextLSTMCell`.
        """
        features = self.input_size + self.context_size
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
        if input.dim() not in (1, 2) or input.shape[-1] != features:
            raise ValueError(f"input: expected shape [B, {features}] or [{features}], got {list(input.shape)}")
        check_features(input, "input", features, self.weight_ih)
        own, context = self._parts(input)
        weights = [self.weight_ih, self.bias_ih, self.bias_hh] if self.bias else [self.weight_ih]
        if not context.is_cpu or observed((context, *weights)) or weights[0].is_inference():
            return super().forward(self.context_gates(context), own, hx)
        known, circumstances = self._known(hx), _circumstances(weights)
        if known is None or known.circumstances != circumstances or not torch.equal(known.context, context):
            # A copy: the caller may write the next input into the same memory.
            copy = context.detach().clone()
            known = _Reading(copy, self.context_gates(copy), weights, circumstances)
        gates = known.gates
        if context.requires_grad and torch.is_grad_enabled():
            weight = self.weight_ih.narrow(1, self.input_size, self.context_size)
            gates = ContextGates(_gradient_to(context, weight, gates.gates), gates.input_weight)
        states = super().forward(gates, own, hx)
        self._keep(states[0], known)
        return states

    def _known(self, hx: State | None) -> "_Reading | None":
        """What was read when the hidden state was computed, if this cell did that."""
        state = hx[0] if isinstance(hx, tuple | list) and hx else None
        found = self._readings.get(id(state))
        return found[1] if found is not None and found[0]() is state else None

    def _keep(self, state: Tensor, known: "_Reading") -> None:
        """Keep what was read for as long as the hidden state exists."""
        key, readings = id(state), self._readings
        readings[key] = ref(state, lambda _: readings.pop(key, None)), known

    def to_lstm_cell(self) -> nn.LSTMCell:
        """An ``nn.LSTMCell`` with copies of this cell's parameters."""
        cell = super().to_lstm_cell()
        self._order_like_lstm(cell)
        return cell

    def _reordered(self) -> list[str]:
        return ["weight_ih"]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_readings"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._readings = {}


class _Reading(NamedTuple):
    """A context that was read.

    Attributes:
        context: its values.
        gates: its share of the gates. Gradients reach the weights from here, and the context at each step.
        weights: what they were computed with. Kept, so that no other weight is ever at the same address.
        circumstances: of the computation.
    """

    context: Tensor
    gates: ContextGates
    weights: list[Tensor]
    circumstances: tuple[Any, ...]


def _circumstances(weights: list[Tensor]) -> tuple[Any, ...]:
    """What the gates of a context depend on besides its values. If it is equal, they need not be computed again."""
    of_weights = [(id(w), w._version, w.data_ptr(), w.requires_grad) for w in weights]
    autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return *of_weights, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast


class _GradientTo(torch.autograd.Function):
    """Gates that were computed from another tensor with the context's values, and whose gradient this context gets."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, weight: Tensor, gates: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = context.dtype
        return gates.view_as(gates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return (grad.to(weight.dtype) @ weight).to(ctx.dtype), None, grad


def _gradient_to(context: Tensor, weight: Tensor, gates: Tensor) -> Tensor:
    result: Tensor = _GradientTo.apply(context, weight, gates)  # type: ignore[no-untyped-call]
    return result
