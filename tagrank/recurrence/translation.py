"""The recurrence in ONNX: the operator ``LSTM`` of the standard, which any runtime of ONNX has.

``LSTM`` multiplies its input ``X [T, B, K]`` by a weight ``W [4H, K]``, adds two biases ``[4H]``, and has no place for
a share of the gates that is ready, as the recurrence gets one. Three kinds of terms make up this share:

- A product ``x_t W^T`` of something that varies over time: ``X`` has it as it is.
- A product ``x W^T`` of the context, which stays the same, ``x [B, K]``: ``X`` has it repeated if ``K <= 4H``. The
  runtime then computes the context's share at each step, as for an nn.LSTM.
- Anything else, and the share of a wider context: ``X`` has the term itself, and ``W`` an identity of ``4H`` columns.

The limit is where both take the same time: ``T K 4H`` multiplications against ``K 4H + T (4H)^2``. docs/export.md has
what onnxruntime takes for each.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch

from tagrank.errors import InputError

#: The gates of ``LSTM`` are ordered i, o, f, c; those of nn.LSTM i, f, g, o.
_ORDER = (0, 3, 1, 2)


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export`` needs to export a model that contains :class:`tagrank.ContextLSTM` or its cell.

    The recurrence becomes the standard's operator ``LSTM``. Dynamic sizes stay dynamic, also the number of steps.
    Layers whose backend is eager (``tagrank.recurrence.explain`` says when) are exported step by step instead.

    Returns:
        A ``custom_translation_table``.

    Raises:
        InputError: onnxscript is not installed.

    Example:
        >>> table = tagrank.onnx_translations()
        >>> sizes = ({0: "batch"}, {0: "time", 1: "batch"})
        >>> torch.onnx.export(
        ...     model, (image, words), "model.onnx", dynamo=True, dynamic_shapes=sizes, custom_translation_table=table
        ... )
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"ONNX needs packages that are not installed ({error}): pip install 'tagrank[onnx]'"
        ) from error
    # The package registers the operator when it is first used.
    import tagrank.recurrence.operators  # noqa: F401

    return {torch.ops.tagrank.lstm_forward.default: _lstm_forward}


def _lstm_forward(
    gates_x: Any, weight_hh: Any, h0: Any, c0: Any, steps: Any, backend: str, save_gates: bool, save_cells: bool
) -> tuple[Any, Any, Any, Any]:
    """The operator of :mod:`tagrank.recurrence.operators` by that of ONNX: values of a graph in, values of it out."""
    from onnxscript import opset18

    op: Any = opset18
    if isinstance(steps, int):
        repeat = op.Constant(value_ints=[steps, 1, 1])
    else:
        repeat = op.Concat(op.Reshape(steps, op.Constant(value_ints=[-1])), op.Constant(value_ints=[1, 1]), axis=0)
    hidden = weight_hh.shape[1]
    terms = _Terms(op, gates_x)
    X, W, B = terms.input(repeat), terms.weight(), terms.biases()
    W, R = (_in_order(op, weight, [4, hidden, -1], [1, 4 * hidden, -1]) for weight in (W, weight_hh))
    if B is not None:
        ordered = [_in_order(op, bias, [4, hidden], [1, 4 * hidden]) for bias in B]
        B = op.Concat(*ordered, axis=1)
    states = (None if state is None else op.Unsqueeze(state, op.Constant(value_ints=[0])) for state in (h0, c0))
    Y, _, Y_c = op.LSTM(X, W, R, B, None, *states, hidden_size=hidden)
    output = op.Squeeze(Y, op.Constant(value_ints=[1]))
    c_n = op.Squeeze(Y_c, op.Constant(value_ints=[0]))
    # What backward would read. Nobody does in ONNX, and the exporter removes it: only the shapes are right.
    gates = op.Expand(gates_x, repeat) if save_gates else op.ConstantOfShape(op.Constant(value_ints=[0]))
    cells = op.Identity(output) if save_cells else op.ConstantOfShape(op.Constant(value_ints=[0]))
    return output, c_n, gates, cells


def _in_order(op: Any, weight: Any, by_gate: list[int], shape: list[int]) -> Any:
    """The rows of a weight or bias of nn.LSTM in the order of ``LSTM``."""
    ordered = op.Gather(op.Reshape(weight, op.Constant(value_ints=by_gate)), op.Constant(value_ints=_ORDER), axis=0)
    return op.Reshape(ordered, op.Constant(value_ints=shape))


def _is_matrix(weight: Any) -> bool:
    """Whether a value has two dimensions. What a translation made has no shape yet: its node then tells."""
    if weight.shape is not None:
        return len(weight.shape) == 2
    node = weight.producer()
    return node is not None and node.op_type == "Transpose" and list(node.attributes["perm"].value) == [1, 0]


class _Terms:
    """The input's share of the gates, taken apart by the nodes of the graph that compute it.

    Attributes:
        products: what is multiplied, ``[B, K]`` or ``[T, B, K]``, and the weight ``[4H, K]`` of each.
        vectors: terms ``[4H]``.
    """

    def __init__(self, op: Any, gates_x: Any) -> None:
        self._op, self._gates = op, gates_x
        self.products: list[tuple[Any, Any]] = []
        self.vectors: list[Any] = []
        ready: list[Any] = []
        if not self._take(gates_x, ready):
            self.products, self.vectors, ready = [], [], [gates_x]
        if ready:
            width = op.Constant(value_ints=[gates_x.shape[-1]] * 2)
            identity = op.EyeLike(op.ConstantOfShape(width), dtype=gates_x.dtype.value)
            total = reduce(op.Add, ready)
            total.shape = max((term.shape for term in ready), key=len)
            self.products.append((total, identity))
        # What varies over time comes first.
        self.products.sort(key=lambda product: -len(product[0].shape))

    def _take(self, term: Any, ready: list[Any]) -> bool:
        """Take a term apart; what has no weight is added to ``ready``. False if a shape is not known to fit."""
        node = term.producer()
        kind = None if node is None else node.op_type
        if kind == "Add":
            return all(self._take(part, ready) for part in node.inputs)
        if kind in ("MatMul", "Gemm"):
            x, weight, *more = node.inputs
            settings = {name: attribute.value for name, attribute in node.attributes.items()}
            rows = settings.pop("transB", 0)
            plain = settings in ({}, {"alpha": 1.0, "beta": 1.0, "transA": 0})
            if plain and _is_matrix(weight) and self._fits(x) and self._narrow(x):
                self.products.append((x, weight if rows else self._op.Transpose(weight, perm=[1, 0])))
                return all(self._take(part, ready) for part in more if part is not None)
        if term.shape is not None and list(term.shape) == [self._gates.shape[-1]]:
            self.vectors.append(term)
            return True
        ready.append(term)
        return self._fits(term) and term.shape[-1] == self._gates.shape[-1]

    def _fits(self, value: Any) -> bool:
        """Whether a value is ``[B, ...]`` or ``[T, B, ...]``, with no dimension that is yet to be repeated."""
        shape, gates = value.shape, list(self._gates.shape)
        return shape is not None and 2 <= len(shape) <= len(gates) and list(shape)[:-1] == gates[-len(shape) : -1]

    def _narrow(self, x: Any) -> bool:
        """Whether ``X`` has a factor itself, and not the product: the rule of this module."""
        return len(x.shape) == 3 or (isinstance(x.shape[-1], int) and x.shape[-1] <= self._gates.shape[-1])

    def input(self, repeat: Any) -> Any:
        """``X [T, B, K]``; ``repeat`` is ``[T, 1, 1]``."""
        parts = [x for x, _ in self.products if len(x.shape) == 3]
        if constant := [x for x, _ in self.products if len(x.shape) == 2]:
            once = self._op.Unsqueeze(self._beside(constant, 1), self._op.Constant(value_ints=[0]))
            parts.append(self._op.Expand(once, repeat))
        return self._beside(parts, 2)

    def weight(self) -> Any:
        """``W [4H, K]``, the rows in the order of nn.LSTM."""
        return self._beside([weight for _, weight in self.products], 1)

    def biases(self) -> tuple[Any, Any] | None:
        """Two biases ``[4H]``, whose sum is added to the gates; ``None`` for none."""
        if not self.vectors:
            return None
        first, *others = self.vectors
        return first, reduce(self._op.Add, others) if others else self._op.Sub(first, first)

    def _beside(self, values: list[Any], axis: int) -> Any:
        return values[0] if len(values) == 1 else self._op.Concat(*values, axis=axis)
