"""ContextLSTM: an LSTM over whole sequences."""

from collections.abc import Sequence
from typing import overload

from torch import Tensor
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from tagrank.nn.arguments import batch_size, check_inputs, initial_states, number_of_steps
from tagrank.nn.cell import ContextLSTMCell
from tagrank.nn.checks import State, leaf_of
from tagrank.nn.lengths import Ragged, of_lengths, of_packed
from tagrank.nn.lstm_parameters import ParametersOfLSTM
from tagrank.nn.parameters import add_bias, context_share
from tagrank.nn.sequences import Sequences, Whole
from tagrank.nn.stack import Options, run_stack
from tagrank.recurrence.op import run_layers


class ContextLSTM(ParametersOfLSTM):
    """``nn.LSTM`` over ``cat([x_t, context])`` that never repeats the context's share of the work.

    The context does not change over the sequence: an image feature, a speaker, a document embedding. The parameters
    have the names and shapes of ``nn.LSTM(input_size + context_size, hidden_size)``, the columns of ``weight_ih_l0``
    ordered input, then context, so a ``state_dict()`` loads both ways. The results are those of ``nn.LSTM`` on the
    context repeated at each step. The product with the context is computed once per sequence, and the recurrence in
    fused kernels (:func:`tagrank.lstm_recurrence`).

    With ``input_size=0`` only the context enters the gates, as in Yan, Wang and Liao (2016), equations (2)-(7). With
    ``context_size=0`` the layer is ``nn.LSTM``. Sequences of different lengths are a ``PackedSequence``, or padded with
    ``lengths`` beside them.

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
        bidirectional: whether each layer also runs from the last step to the first, with parameters of its own. The
            next layer, and the caller, get the hidden states of both directions beside each other.
        proj_size: number of features ``P`` to which each hidden state is projected, or 0 for no projection. On CPUs a
            step has ``5 H P`` multiplications for each row. On GPUs a fused backend runs with the product of the
            weights, ``weight_hh weight_hr``, on the states before projection, so a step has ``4 H^2``.

    Raises:
        TypeError, ValueError: as ``nn.LSTM``.

    Example:
        >>> lstm = ContextLSTM(context_size=512, hidden_size=256)
        >>> output, (h_n, c_n) = lstm(torch.randn(8, 512), steps=10)
        >>> output.shape
        torch.Size([10, 8, 256])
    """

    @overload
    def forward(
        self,
        context: Tensor | None = None,
        steps: int | None = None,
        input: Tensor | None = None,
        hx: State | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, State]: ...
    @overload
    def forward(
        self, context: Tensor | None, steps: int | None, input: PackedSequence, hx: State | None = None
    ) -> tuple[PackedSequence, State]: ...
    @overload
    def forward(
        self,
        context: Tensor | None = None,
        steps: int | None = None,
        *,
        input: PackedSequence,
        hx: State | None = None,
    ) -> tuple[PackedSequence, State]: ...
    def forward(
        self,
        context: Tensor | None = None,
        steps: int | None = None,
        input: Tensor | PackedSequence | None = None,
        hx: State | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run the sequence.

        Below, ``D`` is 2 if the layer is bidirectional, otherwise 1, and ``P`` is ``proj_size``, or ``H`` if that is 0.

        Args:
            context: ``[B, C]``, or ``[C]`` unbatched; ``None`` if ``context_size`` is 0.
            steps: ``T``, required if there is neither an input nor ``lengths``; otherwise the input's length, or left
                out.
            input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` unbatched; ``None`` if ``input_size``
                is 0. Or a ``PackedSequence`` of such, sorted by length or not; the context and the states are in the
                order of its sequences before they were sorted.
            hx: ``(h_0, c_0)``, ``[num_layers * D, B, P]`` and ``[num_layers * D, B, H]``, unbatched without ``B``;
                zeros if left out.
            lengths: ``[B]``, integers from 1 to ``T``: how long each sequence is. The input beyond is padding, and is
                not read. Not beside a ``PackedSequence``.

        Returns:
            ``output`` ``[T, B, D * P]`` (``[B, T, D * P]`` with ``batch_first``, ``[T, D * P]`` unbatched), the hidden
            states of the last layer, and ``(h_n, c_n)``, the last states of each layer, shaped like ``hx``. With
            ``lengths`` the output is zero beyond the end of each sequence, and the last states are those at that end.
            For a ``PackedSequence`` the output is one, too.

        Raises:
            TypeError: an argument is missing or not a tensor.
            ValueError, RuntimeError: a shape, dtype, ``steps`` or ``lengths`` does not fit, in the words of nn.LSTM.
        """
        types: tuple[type, type] = (type(context), type(input))
        if Proxy in types:
            options = {"steps": steps, "input": input, "hx": hx} | ({} if lengths is None else {"lengths": lengths})
            return leaf_of(self, context, **options)  # type: ignore[no-any-return]
        weight = self._parameter("weight_ih_l0")
        sizes = self.context_size, self.input_size
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise TypeError("ContextLSTM: lengths is not taken beside a PackedSequence, which has lengths")
            ragged = of_packed(input, context, steps, sizes, weight)
            packed, states = self._run_ragged(ragged, context, hx)
            return ragged.pack(packed), states
        context, input, batched = check_inputs(context, input, *sizes, weight)
        if input is not None and batched and self.batch_first:
            input = input.transpose(0, 1)
        batch = batch_size(context, input)
        if lengths is not None:
            if not batched:
                raise ValueError("ContextLSTM: lengths is taken beside batched inputs only")
            if steps is not None or input is not None:
                steps = number_of_steps(steps, input)
            ragged, steps = of_lengths(lengths, context, input, batch, steps)
            output, states = self._run_ragged(ragged, context, hx)
            output = ragged.pad(output, steps)
            return output.transpose(0, 1) if self.batch_first else output, states
        steps = number_of_steps(steps, input)
        h_0, c_0 = self._initial_states(hx, batch, batched)
        output, h_n, c_n = self._run(context, input, steps, h_0, c_0)
        if not batched:
            return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return output.transpose(0, 1) if self.batch_first else output, (h_n, c_n)

    def _run(
        self, context: Tensor | None, input: Tensor | None, steps: int, h_0: Tensor | None, c_0: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``output``, ``h_n`` and ``c_n`` of arguments that have a batch dimension, the time first."""
        parameters = self._all_parameters()
        if not (self.bidirectional or self.proj_size or (self.dropout and self.training and self.num_layers > 1)):
            results = run_layers(context, input, h_0, c_0, parameters, steps, self.backend, self.recompute)
            if results is not None:
                return results
        return self._run_stack(Whole(steps), context, input, h_0, c_0)

    def _run_ragged(self, ragged: Ragged, context: Tensor | None, hx: State | None) -> tuple[Tensor, State]:
        """``output`` of the rows of the layout, and ``(h_n, c_n)`` in the caller's order of sequences."""
        h_0, c_0 = (ragged.sort(state, 1) for state in self._initial_states(hx, ragged.batch, True))
        context = ragged.sort(context, 0)
        output, h_n, c_n = self._run_stack(ragged.sequences, context, ragged.input, h_0, c_0)
        return output, (ragged.unsort(h_n), ragged.unsort(c_n))

    def _run_stack(
        self,
        sequences: Sequences,
        context: Tensor | None,
        input: Tensor | None,
        h_0: Tensor | None,
        c_0: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dropout = self.dropout if self.training else 0.0
        options = Options(2 if self.bidirectional else 1, dropout, self.backend, self.recompute)
        return run_stack(sequences, context, input, h_0, c_0, self._directions(), options)

    def _initial_states(self, hx: State | None, batch: int, batched: bool) -> tuple[Tensor | None, Tensor | None]:
        if hx is None:
            return None, None
        count = self.num_layers * (2 if self.bidirectional else 1)
        sizes = self.proj_size or self.hidden_size, self.hidden_size
        return initial_states(hx, count, batch, batched, sizes, self._parameter("weight_hh_l0"))

    def cell(self) -> ContextLSTMCell:
        """A cell that runs this layer step by step, for decoders that choose each input from the output before.

        The cell has this layer's parameters, not copies of them. It does not see parameters that replace them later
        (``load_state_dict(assign=True)``): make a new cell then.

        Raises:
            ValueError: the layer is a stack of several, is bidirectional, or has a projection.
        """
        if self.num_layers != 1:
            raise ValueError(f"cell: expected num_layers=1, got {self.num_layers}")
        if self.bidirectional:
            raise ValueError(
                "cell: expected bidirectional=False, got True; the backward direction starts from the last step, so a "
                "decoder that does not know that step yet cannot run it"
            )
        if self.proj_size:
            raise ValueError(f"cell: expected proj_size=0, got {self.proj_size}; nn.LSTMCell has no projection, either")
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

        Of a bidirectional layer these are the gates of its forward direction.

        :meth:`ContextLSTMCell.context_gates` returns more than this tensor: what :meth:`cell` needs to step.

        Args:
            context: ``[B, C]``, or ``[C]`` unbatched; ``None`` if ``context_size`` is 0.

        Returns:
            ``[B, 4H]`` or ``[4H]``, ordered i, f, g, o; without a context the biases, ``[4H]``.
        """
        weight = self._parameter("weight_ih_l0")
        bias = add_bias(self._parameter("bias_ih_l0"), self._parameter("bias_hh_l0")) if self.bias else None
        if context is None:
            return weight.new_zeros(4 * self.hidden_size) if bias is None else bias
        return context_share(context, weight, self.input_size, bias)[0]

    def input_gates(self, input: Tensor) -> Tensor:
        """The input's share of the first layer's gates, without biases: ``[..., I]`` to ``[..., 4H]``."""
        return F.linear(input, self._parameter("weight_ih_l0")[:, : self.input_size])
