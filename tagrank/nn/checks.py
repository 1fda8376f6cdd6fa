"""The checks that the layer and its cell share, in the words of nn.LSTM."""

import operator
import warnings
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from tagrank.recurrence.dtypes import autocasts

State = tuple[Tensor, Tensor]


def check_sizes(context_size: Any, hidden_size: Any, input_size: Any) -> tuple[int, int, int]:
    """The sizes that a module is built with, as ints.

    Raises:
        TypeError: one is no integer.
        ValueError: one is out of range.
    """
    context_size = as_int("context_size", context_size)
    hidden_size, input_size = as_int("hidden_size", hidden_size), as_int("input_size", input_size)
    if hidden_size <= 0:
        raise ValueError("hidden_size must be greater than zero")
    if context_size < 0 or input_size < 0 or context_size + input_size == 0:
        raise ValueError(
            "context_size and input_size must not be negative, nor both be zero; "
            f"got context_size={context_size}, input_size={input_size}"
        )
    return context_size, hidden_size, input_size


def as_int(name: str, size: Any) -> int:
    """Any integer, NumPy's too, as an int.

    Raises:
        TypeError: ``size`` is none, or a bool.
    """
    if not isinstance(size, bool | Tensor):
        try:
            return operator.index(size)
        except TypeError:
            pass
    raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")


def check_context_size(context_size: Any, name: str, features: int) -> int:
    """How many features of a module's input are the context, as an int.

    Args:
        context_size: the argument of a call.
        name: of the module in an error.
        features: how many features the module reads.

    Raises:
        TypeError: it is no integer.
        ValueError: the module reads fewer features.
    """
    size = as_int("context_size", context_size)
    if not 0 <= size <= features:
        raise ValueError(f"context_size: expected 0 to {features}, as many as {name} reads; got {size}")
    return size


def check_flag(name: str, flag: Any) -> bool:
    """An argument that is to be a bool.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(flag, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
    return flag


def check_dropout(dropout: Any, num_layers: int) -> float:
    """The probability of dropout between layers. Warns if there is nothing between them.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
            f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=3,
        )
    return float(dropout)


def check_projection(proj_size: Any, hidden_size: int) -> int:
    """The size of the projection, or 0.

    Raises:
        TypeError: it is no integer.
        ValueError: it is negative, or not smaller than the hidden state.
    """
    size = as_int("proj_size", proj_size)
    if size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")
    return size


def check_features(tensor: Tensor, name: str, size: int, weight: Tensor) -> None:
    """Check the last dimension of a context or an input, and its dtype unless autocast converts it.

    Raises:
        RuntimeError: the number of features is not ``size``.
        ValueError: the dtype is not that of the weight.
    """
    if tensor.shape[-1] != size:
        raise RuntimeError(f"{name}.size(-1) must be equal to {name}_size. Expected {size}, got {tensor.shape[-1]}")
    _check_dtype(tensor, name, weight)


def check_state(
    hx: Any, name: str, shape: tuple[int, ...], weight: Tensor, cell_shape: tuple[int, ...] | None = None
) -> State:
    """Check the hidden and the cell state.

    Args:
        hx: the argument of a call.
        name: of ``hx`` in an error.
        shape: that both states must have.
        weight: has the dtype that both states must have, unless autocast converts them.
        cell_shape: that the cell state must have, if it is another one.

    Returns:
        ``hx`` as a tuple.

    Raises:
        TypeError: it is no pair of tensors.
        RuntimeError: a state has another shape.
        ValueError: a state has another dtype than the weight.
    """
    # A generator would take as long as all of these.
    pair = isinstance(hx, tuple | list) and len(hx) == 2
    if not pair or not isinstance(hx[0], Tensor) or not isinstance(hx[1], Tensor):
        got = f"({', '.join(type(s).__name__ for s in hx)})" if isinstance(hx, tuple | list) else type(hx).__name__
        raise TypeError(f"hx: expected a pair of Tensors, the hidden and the cell state; got {got}")
    h, c = hx
    for i, (state, expected) in enumerate(((h, shape), (c, shape if cell_shape is None else cell_shape))):
        if state.shape != expected:
            raise RuntimeError(f"Expected {name}[{i}] size {expected}, got {list(state.shape)}")
        if state.dtype != weight.dtype:
            _check_dtype(state, f"{name}[{i}]", weight)
    return h, c


def _check_dtype(tensor: Tensor, name: str, weight: Tensor) -> None:
    if tensor.dtype != weight.dtype and not autocasts(tensor.device.type):
        raise ValueError(
            f"{name} dtype ({tensor.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert {name}: {name}.to({weight.dtype}), or convert model: model.to({tensor.dtype})"
        )


def leaf_of(module: nn.Module, *arguments: Any, **options: Any) -> Any:
    """A call as one node of the graph that ``torch.fx.symbolic_trace`` records: the module's checks need tensors."""
    proxy = next(argument for argument in (*arguments, *options.values()) if isinstance(argument, Proxy))
    tracer: Any = proxy.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, options)
