"""ContextLSTM: an LSTM over whole sequences."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from tagrank.nn.cell import ContextLSTMCell
from tagrank.nn.checks import State, as_int, check_features, check_sizes, check_state, leaf_of
from tagrank.nn.parameters import add_bias, context_share, copy_parameters, initialise, lstm_parameters
from tagrank.recurrence import lstm_recurrence
from tagrank.recurrence.backends import check_name
from tagrank.recurrence.op import check_steps, run_layers

if TYPE_CHECKING:
    from typing_extensions import Self


class ContextLSTM(nn.Module):
    """``nn.LSTM`` over ``cat([x_t, context])`` that never repeats the context's share of the work.

    The context does not change over the sequence: an image feature, a speaker, a document embedding. The parameters
    have the names and shapes of ``nn.LSTM(input_size + context_size, hidden_size)``, the columns of ``weight_ih_l0``
    ordered input, then context, so a ``state_dict()`` loads both ways. The results are those of ``nn.LSTM`` on the
    context repeated at each step. The product with the context is computed once per sequence, and the recurrence in
    fused kernels (:func:`tagrank.lstm_recurrence`).

    With ``input_size=0`` only the context enters the gates, as in Yan, Wang and Liao (2016), equations (2)-(7). With
    ``context_size=0`` the layer is ``nn.LSTM``.

    Args:
        context_size: number of features ``C`` of the context.
        hidden_size: number of features ``H`` of the hidden state.
        input_size: number of features ``I`` of the input at each step; 0 for no input.
        num_layers: number of layers, each on the output of the layer before; the context enters the first.
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        batch_first: whether input and output are ``[B, T, ...]`` instead of ``[T, B, ...]``; states are not affected.
        dropout: probability of dropout on the output of each layer but the last, in training.
        backend: of the recurrence: ``"auto"``, ``"eager"``, ``"native"``, ``"cluster"`` or ``"triton"``.
        recompute: in training, keep only the cell states of the first layer and compute its gates again for backward:
            less memory, more time. With an input, and in later layers, the gates are kept nevertheless: the gates
            before their activation, which vary over time, would have to be kept instead.
        device: of the parameters.
        dtype: of the parameters.
        bidirectional: not supported.
        proj_size: not supported.

    Raises:
        NotImplementedError: for ``bidirectional`` and ``proj_size``.
        TypeError, ValueError: as ``nn.LSTM``.

    Example:
        >>> lstm = ContextLSTM(context_size=512, hidden_size=256)
        >>> output, (h_n, c_n) = lstm(torch.randn(8, 512), steps=10)
        >>> output.shape
        torch.Size([10, 8, 256])
    """

    def __init__(
        self,
        context_size: int,
        hidden_size: int,
        *,
        input_size: int = 0,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        backend: str = "auto",
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bidirectional: bool = False,
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        context_size, hidden_size, input_size = check_sizes(context_size, hidden_size, input_size)
        num_layers = as_int("num_layers", num_layers)
        if num_layers <= 0:
            raise ValueError("num_layers must be greater than zero")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=2,
            )
        if bidirectional or proj_size:
            raise NotImplementedError("ContextLSTM: bidirectional and proj_size are not supported")
        self.context_size = context_size
        self.hidden_size = hidden_size
        self.input_size = input_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.backend = check_name(backend)
        self.recompute = recompute
        # Code written for nn.LSTM reads these two.
        self.bidirectional = False
        self.proj_size = 0
        for layer in range(num_layers):
            features = input_size + context_size if layer == 0 else hidden_size
            for name, parameter in lstm_parameters(features, hidden_size, bias, device, dtype).items():
                self.register_parameter(f"{name}_l{layer}", parameter)
        self._parameter_names = self._name_parameters()
        self.reset_parameters()

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM, context_size: int, *, backend: str = "auto", recompute: bool = False) -> "Self":
        """A layer with copies of an ``nn.LSTM``'s parameters, on their device and in their dtype.

        Args:
            lstm: the module whose input is ``cat([x_t, context])``, or the context alone.
            context_size: how many features of its input are the context, the last ones.
            backend, recompute: as for the class.

        Raises:
            TypeError: ``lstm`` is no ``nn.LSTM``, or ``context_size`` no integer.
            ValueError: it has fewer features than ``context_size``.
            NotImplementedError: it is bidirectional, or has a projection.
        """
        if not isinstance(lstm, nn.LSTM):
            raise TypeError(f"lstm: expected an nn.LSTM, got {type(lstm).__name__}")
        context_size = as_int("context_size", context_size)
        if not 0 <= context_size <= lstm.input_size:
            raise ValueError(
                f"context_size: expected 0 to {lstm.input_size}, as many as lstm reads; got {context_size}"
            )
        layer = cls(
            context_size,
            lstm.hidden_size,
            input_size=lstm.input_size - context_size,
            num_layers=lstm.num_layers,
            bias=lstm.bias,
            batch_first=lstm.batch_first,
            dropout=lstm.dropout if lstm.num_layers > 1 else 0.0,
            backend=backend,
            recompute=recompute,
            device="meta",
            bidirectional=lstm.bidirectional,
            proj_size=lstm.proj_size,
        )
        copy_parameters(lstm, layer)
        return layer.train(lstm.training)

    def to_lstm(self) -> nn.LSTM:
        """An ``nn.LSTM`` with copies of this layer's parameters: its input is ``cat([x_t, context])``."""
        features = self.input_size + self.context_size
        sizes = features, self.hidden_size, self.num_layers
        lstm = nn.LSTM(*sizes, self.bias, self.batch_first, self.dropout, device="meta")
        copy_parameters(self, lstm)
        lstm.flatten_parameters()
        return lstm.train(self.training)

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly from ``(-1/sqrt(H), 1/sqrt(H))``, as nn.LSTM does."""
        initialise(self, self.hidden_size)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer, in the order of nn.LSTM."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        return [[self._parameter(f"{name}_l{layer}") for name in names] for layer in range(self.num_layers)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._parameter_names = self._name_parameters()

    def _name_parameters(self) -> list[str | None]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        there = names if self.bias else (*names[:2], None, None)
        return [name and f"{name}_l{layer}" for layer in range(self.num_layers) for name in there]

    def _all_parameters(self) -> list[Tensor | None]:
        """``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh`` of each layer, with ``None`` for missing biases."""
        own, found = self._parameters, []
        for name in self._parameter_names:
            # The dictionary is many times as fast as an attribute. In data-parallel replicas and if they are
            # parametrised, the parameters are attributes only.
            parameter = None if name is None else own.get(name)
            found.append(getattr(self, name) if parameter is None and name is not None else parameter)
        return found

    def flatten_parameters(self) -> None:
        """Does nothing. Code written for nn.LSTM may call it, to pack the weights for cuDNN."""

    def forward(
        self,
        context: Tensor | None = None,
        steps: int | None = None,
        input: Tensor | None = None,
        hx: State | None = None,
    ) -> tuple[Tensor, State]:
        """Run the sequence.

        Args:
            context: ``[B, C]``, or ``[C]`` unbatched; ``None`` if ``context_size`` is 0.
            steps: ``T``, required if there is no input; otherwise the input's length, or left out.
            input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched; ``None`` if ``input_size``
                is 0.
            hx: ``(h_0, c_0)``, each ``[num_layers, B, H]``, unbatched ``[num_layers, H]``; zeros if left out.

        Returns:
            ``output`` ``[T, B, H]`` (``[B, T, H]`` with ``batch_first``, ``[T, H]`` unbatched), the hidden states of
            the last layer, and ``(h_n, c_n)``, the last states of each layer, shaped like ``hx``.

        Raises:
            TypeError: an argument is missing or not a tensor.
            ValueError, RuntimeError: a shape, dtype or ``steps`` does not fit, in the words of nn.LSTM.
        """
        types: tuple[type, type] = (type(context), type(input))
        if Proxy in types:
            return leaf_of(self, context, steps=steps, input=input, hx=hx)  # type: ignore[no-any-return]
        context, input, batched = self._check_inputs(context, input)
        if input is not None and batched and self.batch_first:
            input = input.transpose(0, 1)
        if context is not None and input is not None and context.shape[0] != input.shape[1]:
            raise RuntimeError(f"Expected context batch size {input.shape[1]} like input, got {context.shape[0]}")
        steps = self._check_steps(steps, input)
        batch = _batch_size(context, input)
        h_0, c_0 = self._initial_states(hx, batch, batched)
        output, h_n, c_n = self._run(context, input, steps, h_0, c_0)
        if not batched:
            return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return output.transpose(0, 1) if self.batch_first else output, (h_n, c_n)

    def _run(
        self, context: Tensor | None, input: Tensor | None, steps: int, h_0: Tensor | None, c_0: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``output``, ``h_n`` and ``c_n`` of arguments that have a batch dimension, the time first."""
        if not (self.dropout and self.training and self.num_layers > 1):
            results = run_layers(context, input, h_0, c_0, self._all_parameters(), steps, self.backend, self.recompute)
            if results is not None:
                return results
        hidden_states: Tensor | None = None
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            gates_x = self._first_gates(context, input) if hidden_states is None else self._gates(hidden_states, layer)
            hidden_states, c = lstm_recurrence(
                gates_x,
                self._parameter(f"weight_hh_l{layer}"),
                None if h_0 is None else h_0[layer],
                None if c_0 is None else c_0[layer],
                steps=steps,
                backend=self.backend,
                recompute=self.recompute and gates_x.dim() == 2,
            )
            h_n.append(hidden_states[-1])
            c_n.append(c)
            if layer < self.num_layers - 1:
                hidden_states = F.dropout(hidden_states, self.dropout, self.training)
        assert hidden_states is not None
        # h_n is made of the states before this view, so that a hook on the output does not see the gradient of h_n.
        return hidden_states.view_as(hidden_states), torch.stack(h_n), torch.stack(c_n)

    def extra_repr(self) -> str:
        text = f"{self.context_size}, {self.hidden_size}"
        defaults: dict[str, Any] = {
            "input_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "backend": "auto",
            "recompute": False,
        }
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)!r}"
        return text

    def cell(self) -> ContextLSTMCell:
        """A cell that runs this layer step by step, for decoders that choose each input from the output before.

        The cell has this layer's parameters, not copies of them. It does not see parameters that replace them later
        (``load_state_dict(assign=True)``): make a new cell then.

        Raises:
            ValueError: the layer is a stack of several.
        """
        if self.num_layers != 1:
            raise ValueError(f"cell: expected num_layers=1, got {self.num_layers}")
        cell = ContextLSTMCell(
            self.context_size,
            self.hidden_size,
            input_size=self.input_size,
            bias=self.bias,
            backend=self.backend,
            device="meta",
        )
        for name in [name for name, parameter in cell.named_parameters()]:
            # Deleted first, because under functional_call this layer's parameters are plain tensors.
            delattr(cell, name)
            setattr(cell, name, self._parameter(f"{name}_l0"))
        return cell

    def context_gates(self, context: Tensor | None) -> Tensor:
        """The context's share of the first layer's gates, biases included, to call ``lstm_recurrence`` by hand.

        :meth:`ContextLSTMCell.context_gates` returns more than this tensor: what :meth:`cell` needs to step.

        Args:
            context: ``[B, C]``, or ``[C]`` unbatched; ``None`` if ``context_size`` is 0.

        Returns:
            ``[B, 4H]`` or ``[4H]``, ordered i, f, g, o; without a context the biases, ``[4H]``.
        """
        weight, bias = self._parameter("weight_ih_l0"), self._bias(0)
        if context is None:
            return weight.new_zeros(4 * self.hidden_size) if bias is None else bias
        return context_share(context, weight, self.input_size, bias)[0]

    def input_gates(self, input: Tensor) -> Tensor:
        """The input's share of the first layer's gates, without biases: ``[..., I]`` to ``[..., 4H]``."""
        return F.linear(input, self._parameter("weight_ih_l0")[:, : self.input_size])

    def _first_gates(self, context: Tensor | None, input: Tensor | None) -> Tensor:
        """``[B, 4H]``, the same at each step, if there is no input; else ``[T, B, 4H]``."""
        if context is None:
            assert input is not None
            return self._gates(input, 0)
        weight, bias = self._parameter("weight_ih_l0"), self._bias(0)
        gates, input_weight = context_share(context, weight, self.input_size, bias)
        return gates if input is None or input_weight is None else F.linear(input, input_weight) + gates

    def _gates(self, input: Tensor, layer: int) -> Tensor:
        return F.linear(input, self._parameter(f"weight_ih_l{layer}"), self._bias(layer))

    def _parameter(self, name: str) -> Tensor:
        # Not by get_parameter, because under functional_call and in data-parallel replicas it is a plain tensor.
        parameter: Tensor = getattr(self, name)
        return parameter

    def _bias(self, layer: int) -> Tensor | None:
        if not self.bias:
            return None
        return add_bias(self._parameter(f"bias_ih_l{layer}"), self._parameter(f"bias_hh_l{layer}"))

    def _check_inputs(self, context: Tensor | None, input: Tensor | None) -> tuple[Tensor | None, Tensor | None, bool]:
        """Context and input with a batch dimension, and whether they had a batch dimension in the call."""
        weight = self._parameter("weight_ih_l0")
        if input is None and self.input_size == 0 and type(context) is Tensor and context.dim() == 2:
            # The usual call, for which the loop below would take a tenth of the time of a short sequence.
            check_features(context, "context", self.context_size, weight)
            return context, None, True
        given = {"context": (context, self.context_size, 1), "input": (input, self.input_size, 2)}
        batched: bool | None = None
        for name, (tensor, size, dims) in given.items():
            if isinstance(tensor, PackedSequence):
                raise TypeError(f"ContextLSTM: {name} is a PackedSequence, which is not supported; pad it")
            if tensor is None:
                if size > 0:
                    raise TypeError(f"ContextLSTM: {name} is required because {name}_size is {size}; got None")
                continue
            if not isinstance(tensor, Tensor):
                raise TypeError(f"ContextLSTM: {name} should be a Tensor, got {type(tensor).__name__}")
            if size == 0:
                raise TypeError(f"ContextLSTM: {name} is not taken because {name}_size is 0; got {list(tensor.shape)}")
            if tensor.dim() not in (dims, dims + 1):
                raise ValueError(
                    f"ContextLSTM: Expected {name} to be {dims}D or {dims + 1}D, got {tensor.dim()}D instead"
                )
            check_features(tensor, name, size, weight)
            if batched is not None and batched != (tensor.dim() == dims + 1):
                raise RuntimeError("ContextLSTM: context and input should both be batched or both be unbatched")
            batched = tensor.dim() == dims + 1
        if not batched:
            context = None if context is None else context.unsqueeze(0)
            input = None if input is None else input.unsqueeze(1)
        return context, input, bool(batched)

    def _check_steps(self, steps: int | None, input: Tensor | None) -> int:
        if input is None:
            if steps is None:
                raise TypeError("ContextLSTM: steps is required without an input; got None")
            steps = check_steps(steps)
        else:
            length = check_steps(input.shape[0])
            if steps is not None and check_steps(steps) != length:
                raise ValueError(f"steps: expected {length}, the length of input, or None; got {steps}")
            steps = length
        if steps < 1:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        return steps

    def _initial_states(self, hx: State | None, batch: int, batched: bool) -> tuple[Tensor | None, Tensor | None]:
        if hx is None:
            return None, None
        rows = (batch,) if batched else ()
        shape = (self.num_layers, *rows, self.hidden_size)
        h_0, c_0 = check_state(hx, "hidden", shape, self._parameter("weight_hh_l0"))
        return (h_0, c_0) if batched else (h_0.unsqueeze(1), c_0.unsqueeze(1))


def _batch_size(context: Tensor | None, input: Tensor | None) -> int:
    if context is not None:
        return context.shape[0]
    assert input is not None
    return input.shape[1]
