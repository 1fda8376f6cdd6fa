"""What the layer and its cell check alike, worded as nn.LSTM words it."""

import math
from typing import Any

from torch import Tensor, nn

from tagrank.recurrence.dtypes import autocasts

State = tuple[Tensor, Tensor]


def check_sizes(context_size: int, hidden_size: int, input_size: int) -> None:
    """Sizes to build a module with.

    Raises:
        TypeError: one is not an int.
        ValueError: one is out of range.
    """
    for name, size in (("context_size", context_size), ("hidden_size", hidden_size), ("input_size", input_size)):
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
    if hidden_size <= 0:
        raise ValueError("hidden_size must be greater than zero")
    if context_size < 0 or input_size < 0 or context_size + input_size == 0:
        raise ValueError(
            "context_size and input_size must not be negative, nor both be zero; "
            f"got context_size={context_size}, input_size={input_size}"
        )


def check_features(tensor: Tensor, name: str, size: int, weight: Tensor) -> None:
    """The last dimension of a context or an input, and its dtype unless autocast sees to it.

    Raises:
        RuntimeError: it has another number of features.
        ValueError: it has another dtype than the weight.
    """
    if tensor.size(-1) != size:
        raise RuntimeError(f"{name}.size(-1) must be equal to {name}_size. Expected {size}, got {tensor.size(-1)}")
    _check_dtype(tensor, name, weight)


def check_state(hx: Any, name: str, shape: tuple[int, ...], weight: Tensor) -> State:
    """``hx`` as a pair of tensors.

    Args:
        hx: what came.
        name: what it is called in an error: ``name[0]`` and ``name[1]``.
        shape: of both.
        weight: whose dtype they have to have, unless autocast sees to it.

    Raises:
        TypeError: it is no pair of tensors.
        RuntimeError: one has another shape.
        ValueError: one has another dtype than the weight.
    """
    pair = isinstance(hx, tuple | list) and len(hx) == 2 and all(isinstance(state, Tensor) for state in hx)
    if not pair:
        got = f"({', '.join(type(s).__name__ for s in hx)})" if isinstance(hx, tuple | list) else type(hx).__name__
        raise TypeError(f"hx: expected a pair of Tensors, the hidden and the cell state; got {got}")
    for i, state in enumerate(hx):
        if state.shape != shape:
            raise RuntimeError(f"Expected {name}[{i}] size {shape}, got {list(state.shape)}")
        _check_dtype(state, f"{name}[{i}]", weight)
    return hx[0], hx[1]


def _check_dtype(tensor: Tensor, name: str, weight: Tensor) -> None:
    if tensor.dtype != weight.dtype and not autocasts(tensor.device.type):
        raise ValueError(
            f"{name} dtype ({tensor.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert {name}: {name}.to({weight.dtype}), or convert model: model.to({tensor.dtype})"
        )


def add_bias(bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor | None:
    """The two biases of an LSTM enter the gates as their sum."""
    return None if bias_ih is None or bias_hh is None else bias_ih + bias_hh


def initialise(module: nn.Module, hidden_size: int) -> None:
    """All parameters uniform in ``(-1/sqrt(H), 1/sqrt(H))``, as nn.LSTM and nn.LSTMCell have them."""
    bound = 1.0 / math.sqrt(hidden_size)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -bound, bound)
