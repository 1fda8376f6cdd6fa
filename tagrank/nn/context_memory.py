"""The context's share of the gates, kept from one step of a sequence to the next."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

from tagrank.nn.cell import ContextGates
from tagrank.recurrence.tracing import observed

KEPT = 32
"""For so many hidden states, the latest ones, it is kept what was read. More than one are needed by sequences that take
turns."""


class Reading(NamedTuple):
    """A context that was read.

    Attributes:
        context: its values, ``[B, C]`` or ``[C]``.
        gates: its share of the gates. Gradients reach the weights from here, and the context at each step.
        weights: what they were computed with. While they are kept, no other tensor has the ``id`` of one of them.
        samples: views of some of their values, and copies of these.
        circumstances: of the computation.
    """

    context: Tensor
    gates: ContextGates
    weights: Sequence[Tensor]
    samples: Sequence[tuple[Tensor, Tensor]]
    circumstances: tuple[Any, ...]


class ContextMemory:
    """What a module that steps has read, for the hidden states that it returned, as long as these exist.

    If a call gets the very tensor that an earlier call returned, it is the next step of the same sequence. The share is
    then used again, unless

    - the context has other values, or the state was detached in place, which ends its graph of autograd;
    - a weight was changed or replaced, or its ``requires_grad`` was;
    - gradients, the inference mode or autocast were turned on or off.

    Each step's context gets its own gradient: rows of an embedding that begins at zero are equal, and not one.

    PyTorch counts most changes of a tensor, but not those of fused optimizers, of collective operations, and through
    ``weight.data``. They are seen by samples: all biases, and a diagonal of the context's columns of the weight.
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
        tensors made in inference mode, whose changes are not counted.
        """
        return context.is_cpu and not observed((context, *weights)) and not any(w.is_inference() for w in weights)

    def gates(
        self,
        state: object,
        context: Tensor,
        weights: Sequence[Tensor],
        compute: Callable[[Tensor], ContextGates],
    ) -> tuple[ContextGates, Reading]:
        """The context's share of the gates, where :meth:`works`. Its second derivatives are not those of ``compute``.

        Args:
            state: the hidden state that the call gets.
            context: ``[B, C]`` or ``[C]``.
            weights: what ``compute`` reads, ``weight_ih`` first, whose last columns are the context's.
            compute: the share of a context.

        Returns:
            The gates, and what to :meth:`keep` beside the next hidden state.
        """
        circumstances = _circumstances(weights)
        known = self._find(state)
        if (
            known is None
            or known.circumstances != circumstances
            or not torch.equal(known.context, context)
            or not all(torch.equal(now, then) for now, then in known.samples)
        ):
            # A copy: the caller may write the next input into the same memory.
            copy = context.detach().clone()
            weight, *biases = (weight.detach() for weight in weights)
            views = [weight.narrow(1, weight.shape[1] - context.shape[-1], context.shape[-1]).diagonal(), *biases]
            samples = [(view, view.clone()) for view in views]
            known = Reading(copy, compute(copy), weights, samples, circumstances)
        if not (context.requires_grad and torch.is_grad_enabled()):
            return known.gates, known
        columns = weights[0].narrow(1, weights[0].shape[1] - context.shape[-1], context.shape[-1])
        gates: Tensor = _GradientTo.apply(context, columns, known.gates.gates)
        return ContextGates(gates, known.gates.input_weight), known

    def keep(self, state: Tensor, reading: Reading) -> None:
        """Keep what was read for as long as the hidden state exists."""
        key, memory = id(state), ref(self)

        def forget(_: object) -> None:
            if (self := memory()) is not None:
                self._readings.pop(key, None)

        self._readings[key] = ref(state, forget), reading
        if len(self._readings) > KEPT:
            del self._readings[next(iter(self._readings))]

    def _find(self, state: object) -> Reading | None:
        found = self._readings.get(id(state))
        if found is None or found[0]() is not state:
            return None
        ended = isinstance(state, Tensor) and state.grad_fn is None
        return None if ended and found[1].gates.gates.requires_grad else found[1]


def _circumstances(weights: Sequence[Tensor]) -> tuple[Any, ...]:
    """What the gates of a context depend on besides values. If it is equal, they need not be computed again."""
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
