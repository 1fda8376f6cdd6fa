"""What a call of the layer is given, checked in the words of nn.LSTM, and with a batch dimension."""

from typing import Any

from torch import Tensor

from tagrank.nn.checks import State, check_features, check_state
from tagrank.recurrence.op import check_steps


def check_inputs(
    context: Any, input: Any, context_size: int, input_size: int, weight: Tensor
) -> tuple[Tensor | None, Tensor | None, bool]:
    """Context and input with a batch dimension, and whether they had a batch dimension in the call.

    Raises:
        TypeError: one is missing, not taken, or no tensor.
        ValueError, RuntimeError: a shape or dtype does not fit.
    """
    if input is None and input_size == 0 and type(context) is Tensor and context.dim() == 2:
        # The usual call, for which the loop below would take a tenth of the time of a short sequence.
        check_features(context, "context", context_size, weight)
        return context, None, True
    given = {"context": (context, context_size, 1), "input": (input, input_size, 2)}
    batched: bool | None = None
    for name, (tensor, size, dims) in given.items():
        if tensor is None:
            if size > 0:
                raise TypeError(f"ContextLSTM: {name} is required because {name}_size is {size}; got None")
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"ContextLSTM: {name} should be a Tensor, got {type(tensor).__name__}")
        if size == 0:
            raise TypeError(f"ContextLSTM: {name} is not taken because {name}_size is 0; got {list(tensor.shape)}")
        if tensor.dim() not in (dims, dims + 1):
            raise ValueError(f"ContextLSTM: Expected {name} to be {dims}D or {dims + 1}D, got {tensor.dim()}D instead")
        check_features(tensor, name, size, weight)
        if batched is not None and batched != (tensor.dim() == dims + 1):
            raise RuntimeError("ContextLSTM: context and input should both be batched or both be unbatched")
        batched = tensor.dim() == dims + 1
    if not batched:
        context = None if context is None else context.unsqueeze(0)
        input = None if input is None else input.unsqueeze(1)
    return context, input, bool(batched)


def number_of_steps(steps: Any, input: Tensor | None) -> int:
    """``T``, of the argument or of the input ``[T, B, I]``.

    Raises:
        TypeError: both are missing, or ``steps`` is no integer.
        ValueError, RuntimeError: it is not the input's length, or not positive.
    """
    if input is None:
        if steps is None:
            raise TypeError("ContextLSTM: steps is required without an input; got None")
        found = check_steps(steps)
    else:
        found = check_steps(input.shape[0])
        if steps is not None and check_steps(steps) != found:
            raise ValueError(f"steps: expected {found}, the length of input, or None; got {steps}")
    if found < 1:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    return found


def initial_states(hx: State, count: int, batch: int, batched: bool, sizes: tuple[int, int], weight: Tensor) -> State:
    """``h_0`` and ``c_0`` with a batch dimension.

    Args:
        hx: the argument of the call.
        count: how many states there are: layers times directions.
        batch: ``B``.
        batched: whether the call has a batch dimension.
        sizes: the number of features of ``h_0`` and of ``c_0``.
        weight: has the dtype of both.

    Raises:
        TypeError: ``hx`` is no pair of tensors.
        ValueError, RuntimeError: a shape or dtype does not fit.
    """
    rows = (batch,) if batched else ()
    shape, cell_shape = ((count, *rows, size) for size in sizes)
    h_0, c_0 = check_state(hx, "hidden", shape, weight, cell_shape)
    return (h_0, c_0) if batched else (h_0.unsqueeze(1), c_0.unsqueeze(1))


def batch_size(context: Tensor | None, input: Tensor | None) -> int:
    """``B``, of a context ``[B, C]`` or an input ``[T, B, I]``.

    Raises:
        RuntimeError: they differ.
    """
    if context is None:
        assert input is not None
        return input.shape[1]
    if input is not None and context.shape[0] != input.shape[1]:
        raise RuntimeError(f"Expected context batch size {input.shape[1]} like input, got {context.shape[0]}")
    return context.shape[0]
