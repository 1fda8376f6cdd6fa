"""ContextLSTMCell: one step, for decoders that choose each input from the output before."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from tagrank.nn.checks import State, check_context_size, check_features, check_sizes, check_state
from tagrank.nn.parameters import add_bias, context_share, copy_parameters, initialise, lstm_parameters
from tagrank.recurrence import lstm_recurrence
from tagrank.recurrence.backends import check_name
from tagrank.recurrence.dtypes import autocasts
from tagrank.recurrence.op import run, run_layers

if TYPE_CHECKING:
    from typing_extensions import Self


class ContextGates(NamedTuple):
    """What :meth:`ContextLSTMCell.context_gates` computes once per sequence, and all steps read.

    Attributes:
        gates: the context's share of the gates, biases included, ``[B, 4H]`` or ``[4H]``, ordered i, f, g, o.
        input_weight: the input's columns of ``weight_ih``, ``[4H, I]``; ``None`` if ``input_size`` is 0. A view is made
            once per sequence, because in backward each view fills and adds a gradient of the whole weight's size.
    """

    gates: Tensor
    input_weight: Tensor | None

    def take(self, rows: Tensor) -> "ContextGates":
        """The gates of the given rows, in the given order, for beams; a row may occur more than once."""
        return ContextGates(self.gates[rows], self.input_weight)


def _check_gates(given: object, weight: Tensor) -> None:
    # A context of 4H features would have the right shape, and give wrong results.
    if not isinstance(given, ContextGates):
        got = f"a Tensor {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(
            f"context_gates: expected what context_gates(context) returns, computed once per sequence; got {got}"
        )
    gates = given.gates
    if gates.dtype != weight.dtype and not autocasts(gates.device.type):
        raise ValueError(
            f"context_gates: expected {weight.dtype} like the weights, got {gates.dtype}; the steps belong under the "
            "autocast that the gates were computed under"
        )


class ContextLSTMCell(nn.Module):
    """One step of a :class:`ContextLSTM`, for decoders that choose each input from the output before.

    Its parameters are those of ``nn.LSTMCell(input_size + context_size, hidden_size)``, the columns of ``weight_ih``
    ordered input, then context.

    Args:
        context_size: number of features ``C`` of the context. With 0 the context is ``[B, 0]``, and the cell is
            ``nn.LSTMCell``.
        hidden_size: number of features ``H`` of the hidden state.
        input_size: number of features ``I`` of the input at each step; 0 for no input.
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        backend: of the recurrence, as in :class:`ContextLSTM`.
        device: of the parameters.
        dtype: of the parameters.

    Example:
        >>> cell = ContextLSTMCell(context_size=512, hidden_size=256, input_size=64)
        >>> gates = cell.context_gates(image)  # once per sequence
        >>> h, c = cell(gates, embed(tag), (h, c))  # at each step
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self,
        context_size: int,
        hidden_size: int,
        *,
        input_size: int = 0,
        bias: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        context_size, hidden_size, input_size = check_sizes(context_size, hidden_size, input_size)
        self.context_size = context_size
        self.hidden_size = hidden_size
        self.input_size = input_size
        self.bias = bias
        self.backend = check_name(backend)
        parameters = lstm_parameters(input_size + context_size, hidden_size, bias, device, dtype)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            self.register_parameter(name, parameters.get(name))
        self.reset_parameters()

    @classmethod
    def from_lstm_cell(cls, cell: nn.LSTMCell, context_size: int, *, backend: str = "auto") -> "Self":
        """A cell with copies of an ``nn.LSTMCell``'s parameters, on their device and in their dtype.

        Args:
            cell: the module whose input is ``cat([x_t, context])``, or the context alone.
            context_size: how many features of its input are the context, the last ones.
            backend: as for the class.

        Raises:
            TypeError: ``cell`` is no ``nn.LSTMCell``, or ``context_size`` no integer.
            ValueError: it has fewer features than ``context_size``.
        """
        if not isinstance(cell, nn.LSTMCell):
            raise TypeError(f"cell: expected an nn.LSTMCell, got {type(cell).__name__}")
        context_size = check_context_size(context_size, "cell", cell.input_size)
        input_size = cell.input_size - context_size
        own = cls(context_size, cell.hidden_size, input_size=input_size, bias=cell.bias, backend=backend, device="meta")
        copy_parameters(cell, own)
        return own.train(cell.training)

    def to_lstm_cell(self) -> nn.LSTMCell:
        """An ``nn.LSTMCell`` with copies of this cell's parameters: its input is ``cat([x_t, context])``."""
        cell = nn.LSTMCell(self.input_size + self.context_size, self.hidden_size, self.bias, device="meta")
        copy_parameters(self, cell)
        return cell.train(self.training)

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly from ``(-1/sqrt(H), 1/sqrt(H))``, as nn.LSTMCell does."""
        initialise(self, self.hidden_size)

    def context_gates(self, context: Tensor) -> ContextGates:
        """The context's share of the gates, biases included. Call it once per sequence, and each step with its result.

        Args:
            context: ``[B, C]``, or ``[C]`` unbatched.

        Raises:
            TypeError: ``context`` is no tensor.
            ValueError, RuntimeError: its shape or dtype does not fit.
        """
        if not isinstance(context, Tensor):
            raise TypeError(f"ContextLSTMCell: context should be a Tensor, got {type(context).__name__}")
        if context.dim() not in (1, 2):
            raise ValueError(f"ContextLSTMCell: Expected context to be 1D or 2D, got {context.dim()}D instead")
        check_features(context, "context", self.context_size, self.weight_ih)
        bias = add_bias(self.bias_ih, self.bias_hh)
        return ContextGates(*context_share(context, self.weight_ih, self.input_size, bias))

    def forward(self, context_gates: ContextGates, input: Tensor | None = None, hx: State | None = None) -> State:
        """One step.

        Args:
            context_gates: the result of :meth:`context_gates`.
            input: ``[B, I]`` or ``[I]``; ``None`` if ``input_size`` is 0.
            hx: ``(h, c)``, each ``[B, H]`` or ``[H]``; zeros if left out.

        Returns:
            ``(h', c')`` of the same shapes. Under autocast they have the dtypes that nn.LSTMCell's have. On CPUs, where
            autocast only reaches the products with ``weight_ih``, this is the dtype of ``hx``, or of the parameters if
            ``hx`` is left out.

        Raises:
            TypeError: an argument is missing or of another type.
            ValueError, RuntimeError: a shape or dtype does not fit.
        """
        weight_hh = self._weight_hh()
        _check_gates(context_gates, weight_hh)
        gates, input_weight = context_gates
        if input is not None or input_weight is not None:
            self._check_input(context_gates, input)
        batched = gates.dim() == 2
        states: tuple[Tensor | None, Tensor | None] = (None, None)
        if hx is not None:
            rows = (gates.shape[0],) if batched else ()
            states = check_state(hx, "hx", (*rows, self.hidden_size), weight_hh)
        if batched:
            return self._step(gates, input_weight, weight_hh, input, *states)
        arguments = (None if tensor is None else tensor.unsqueeze(0) for tensor in (input, *states))
        h, c = self._step(gates.unsqueeze(0), input_weight, weight_hh, *arguments)
        return h[0], c[0]

    def _weight_hh(self) -> Tensor:
        # The dictionary is many times as fast as an attribute. In data-parallel replicas and if it is parametrised, the
        # weight is an attribute only.
        weight = self._parameters.get("weight_hh")
        return self.weight_hh if weight is None else weight

    def _check_input(self, context_gates: ContextGates, input: Tensor | None) -> None:
        gates, weight = context_gates
        if (input is None) != (weight is None) or not (input is None or isinstance(input, Tensor)):
            got = "None" if input is None else list(input.shape) if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(
                f"ContextLSTMCell: input should fit input_size={self.input_size}, got {got}; "
                "the state comes after it: cell(gates, input, (h, c))"
            )
        if input is None or weight is None:
            return
        if input.shape[:-1] != gates.shape[:-1]:
            raise ValueError(
                f"ContextLSTMCell: Expected input of size {[*gates.shape[:-1], self.input_size]} beside this context, "
                f"got {list(input.shape)}"
            )
        check_features(input, "input", self.input_size, weight)

    def _step(
        self,
        gates: Tensor,
        input_weight: Tensor | None,
        weight: Tensor,
        input: Tensor | None,
        h: Tensor | None,
        c: Tensor | None,
    ) -> State:
        """``h`` and ``c``, ``[B, H]``, from the context's share of the gates, ``[B, 4H]``."""
        parameters = (input_weight, weight, None, None)
        results = run_layers(gates, input, h, c, parameters, 1, self.backend, state_dimensions=2)
        if results is not None:
            return results[1], results[2]
        device = gates.device.type
        gates_x = gates if input is None or input_weight is None else torch.addmm(gates, input, input_weight.t())
        if not autocasts(device):
            output, c_n = run(gates_x, weight, h, c, 1, self.backend)
        elif device != "cpu":
            output, c_n = lstm_recurrence(gates_x, weight, h, c, steps=1, backend=self.backend)
        else:
            # nn.LSTMCell keeps its state in float32 here. Rounded at each step, it would be lost in a long sequence.
            wanted = weight.dtype if c is None else c.dtype
            h, c = (None if state is None else state.to(weight.dtype) for state in (h, c))
            with torch.autocast(device, enabled=False):
                output, c_n = run(gates_x.to(weight.dtype), weight, h, c, 1, self.backend)
            return output[0].to(wanted), c_n.to(wanted)
        return output[0], c_n

    def extra_repr(self) -> str:
        text = f"{self.context_size}, {self.hidden_size}"
        if self.input_size:
            text += f", input_size={self.input_size}"
        return text if self.bias else text + ", bias=False"
