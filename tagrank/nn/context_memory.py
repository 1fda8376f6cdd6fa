"""The context's share of the gates, kept from one step of a sequence to the next."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from tagrank.nn.cell import ContextGates
from tagrank.recurrence.tracing import observed


class Reading(NamedTuple):
    """A context that was read.

    Attributes:
        context: its values, ``[B, C]`` or ``[C]``.
        gates: its share of the gates. Gradients reach the weights from here, and the context at each step.
        weights: what they were computed with. Kept, so that no other weight is ever at the same address.
        circumstances: of the computation.
    """

    context: Tensor
    gates: ContextGates
    weights: Sequence[Tensor]
    circumstances: tuple[Any, ...]


class ContextMemory:
    """What a module that steps has read, kept as long as the hidden states exist that it returned.

    If the next call gets the very tensor that an earlier call returned, it is a next step of the same sequence. The
    share is then used again, unless the context has other values, a weight is another, or gradients or autocast were
    turned on or off. Each step's context gets its own gradient: rows of an embedding that begins at zero are equal, and
    not one.

    A change of a weight that PyTorch does not count, as one through ``weight.data``, is seen from the next sequence on.
    """

    def __init__(self) -> None:
        self._readings: dict[int, tuple[ref[Tensor], Reading]] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # A copy has returned no states.
        return ContextMemory, ()

    def __len__(self) -> int:
        return len(self._readings)

    @staticmethod
    def works(context: Tensor, weights: Sequence[Tensor]) -> bool:
        """Whether anything is kept here.

        It is not on GPUs, which a look at the values would have to wait for, where PyTorch records or compiles, and for
        weights whose changes PyTorch does not count.
        """
        return context.is_cpu and not observed((context, *weights)) and not weights[0].is_inference()

    def gates(
        self,
        state: object,
        context: Tensor,
        weights: Sequence[Tensor],
        compute: Callable[[Tensor], ContextGates],
    ) -> tuple[ContextGates, Reading]:
        """The context's share of the gates, where :meth:`works`.

        Args:
            state: the hidden state that the call gets.
            context: ``[B, C]`` or ``[C]``.
            weights: what ``compute`` reads, ``weight_ih`` first, whose last columns are the context's.
            compute: the share of a context.

        Returns:
            The gates, and what to :meth:`keep` beside the next hidden state.
        """
        weight = weights[0]
        found = self._readings.get(id(state))
        known = found[1] if found is not None and found[0]() is state else None
        circumstances = _circumstances(weights)
        if known is None or known.circumstances != circumstances or not torch.equal(known.context, context):
            # A copy: the caller may write the next input into the same memory.
            copy = context.detach().clone()
            known = Reading(copy, compute(copy), weights, circumstances)
        if not (context.requires_grad and torch.is_grad_enabled()):
            return known.gates, known
        columns = weight.narrow(1, weight.shape[1] - context.shape[-1], context.shape[-1])
        gates: Tensor = _GradientTo.apply(context, columns, known.gates.gates)
        return ContextGates(gates, known.gates.input_weight), known

    def keep(self, state: Tensor, reading: Reading) -> None:
        """Keep what was read for as long as the hidden state exists."""
        key, readings = id(state), self._readings
        readings[key] = ref(state, lambda _: readings.pop(key, None)), reading


def _circumstances(weights: Sequence[Tensor]) -> tuple[Any, ...]:
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (weight,) = ctx.saved_tensors
        return (grad.to(weight.dtype) @ weight).to(ctx.dtype), None, grad
