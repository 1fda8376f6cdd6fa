"""The checks that the layer and its cell share, in the words of nn.LSTM."""

import operator
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


def check_features(tensor: Tensor, name: str, size: int, weight: Tensor) -> None:
    """Check the last dimension of a context or an input, and its dtype unless autocast converts it.

    Raises:
        RuntimeError: the number of features is not ``size``.
        ValueError: the dtype is not that of the weight.
    """
    if tensor.size(-1) != size:
        raise RuntimeError(f"{name}.size(-1) must be equal to {name}_size. Expected {size}, got {tensor.size(-1)}")
    _check_dtype(tensor, name, weight)


def check_state(hx: Any, name: str, shape: tuple[int, ...], weight: Tensor) -> State:
    """Check the hidden and the cell state.

    Args:
        hx: the argument of a call.
        name: of ``hx`` in an error.
        shape: that both states must have.
        weight: has the dtype that both states must have, unless autocast converts them.

    Returns:
        ``hx`` as a tuple.

    Raises:
        TypeError: it is no pair of tensors.
        RuntimeError: a state has another shape.
        ValueError: a state has another dtype than the weight.
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


def leaf_of(module: nn.Module, *arguments: Any, **options: Any) -> Any:
    """A call as one node of the graph that ``torch.fx.symbolic_trace`` records: the module's checks need tensors."""
    proxy = next(argument for argument in (*arguments, *options.values()) if isinstance(argument, Proxy))
    tracer: Any = proxy.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, options)
