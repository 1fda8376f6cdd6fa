"""The layers of an LSTM one after another, each in one direction or in both, over sequences of any layout."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tagrank.nn.parameters import add_bias, context_share
from tagrank.nn.sequences import Sequences, Whole
from tagrank.recurrence.op import run_layers
from tagrank.recurrence.padded import Results
from tagrank.recurrence.tracing import observed


class Direction(NamedTuple):
    """The parameters of one direction of a layer.

    Attributes:
        weight_ih: ``[4H, F]``.
        weight_hh: ``[4H, H]``, or ``[4H, P]`` with a projection.
        bias_ih, bias_hh: ``[4H]``.
        weight_hr: the projection, ``[P, H]``, or ``None``.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    weight_hr: Tensor | None


class Options(NamedTuple):
    """What a stack has beside tensors: the number of ``directions``, the ``dropout`` between layers, and the rest."""

    directions: int
    dropout: float
    backend: str
    recompute: bool


def run_stack(
    sequences: Sequences,
    context: Tensor | None,
    input: Tensor | None,
    h_0: Tensor | None,
    c_0: Tensor | None,
    parameters: Sequence[Direction],
    options: Options,
) -> Results:
    """Run all layers.

    Args:
        sequences: the layout of the input.
        context: ``[B, C]``, which enters the first layer at each step.
        input: ``[rows, I]``; it, or the context, may be missing.
        h_0, c_0: ``[layers * directions, B, P or H]``.
        parameters: of the first layer, forward and then backward, and of the others.
        options: see there.

    Returns:
        ``output`` ``[rows, directions * (P or H)]``, and ``h_n`` and ``c_n``, shaped like ``h_0`` and ``c_0``.
    """
    h_n, c_n = [], []
    for number, own in enumerate(parameters):
        reverse = number % options.directions == 1
        h, c = (None if state is None else state[number] for state in (h_0, c_0))
        x = sequences.backwards(input) if reverse and input is not None else input
        output, h, c = _run_direction(sequences, context, x, h, c, own, options)
        h_n.append(h)
        c_n.append(c)
        if options.directions == 2 and not reverse:
            forward = output
            continue
        if reverse:
            output = torch.cat([forward, sequences.backwards(output)], dim=-1)
        if number + 1 < len(parameters):
            context, input = None, F.dropout(output, options.dropout, options.dropout > 0)
    # h_n is made of the states before this view, so that a hook on the output does not see the gradient of h_n.
    return output.view_as(output), torch.stack(h_n), torch.stack(c_n)


def _run_direction(
    sequences: Sequences,
    context: Tensor | None,
    input: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    parameters: Direction,
    options: Options,
) -> Results:
    """One direction of a layer, over the steps as they come."""
    weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = parameters
    if weight_hr is None:
        return _run_plain(sequences, context, input, h0, c0, parameters, options, None)
    if not _folds((context, input, h0, c0, *parameters), weight_hh.device, options.backend):
        gates = _gates(context, input, weight_ih, add_bias(bias_ih, bias_hh))
        results = sequences.projected(*gates, weight_hh, h0, c0, weight_hr, options.backend)
        if results is not None:
            return results
    # gates_t = x_t + W_hh h_{t-1} with h_{t-1} = W_hr r_{t-1}: the recurrence of r has the weight W_hh W_hr. Only h_0
    # is no projection of anything, and enters the gates of the first step by itself.
    first = None if h0 is None else F.linear(h0, weight_hh)
    folded = parameters._replace(weight_hh=weight_hh @ weight_hr)
    output, h_n, c_n = _run_plain(sequences, context, input, None, c0, folded, options, first)
    return F.linear(output, weight_hr), F.linear(h_n, weight_hr), c_n


def _folds(tensors: Sequence[Tensor | None], device: torch.device, backend: str) -> bool:
    """Whether a projection is folded into the weight.

    It is where a pass knows no projection: on GPUs, and where operators are recorded.
    """
    if observed(tensors):
        return True
    return backend != "eager" and (device.type != "cpu" or backend not in ("auto", "native"))


def _run_plain(
    sequences: Sequences,
    context: Tensor | None,
    input: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    parameters: Direction,
    options: Options,
    first: Tensor | None,
) -> Results:
    """:func:`_run_direction` without the projection. ``first`` ``[B, 4H]`` is added to the gates of the first step."""
    weight_ih, weight_hh, bias_ih, bias_hh, _ = parameters
    if type(sequences) is Whole and first is None:
        h_0, c_0 = (None if state is None else state.unsqueeze(0) for state in (h0, c0))
        own = weight_ih, weight_hh, bias_ih, bias_hh
        results = run_layers(context, input, h_0, c_0, own, sequences.steps, options.backend, options.recompute)
        if results is not None:
            return results[0], results[1][0], results[2][0]
    input_gates, context_gates = _gates(context, input, weight_ih, add_bias(bias_ih, bias_hh))
    if first is not None:
        there = sequences.at_first_step(first)
        input_gates = there if input_gates is None else input_gates + there
    return sequences.recurrence(input_gates, context_gates, weight_hh, h0, c0, options.backend, options.recompute)


def _gates(
    context: Tensor | None, input: Tensor | None, weight_ih: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The input's share of the gates, ``[rows, 4H]``, and the context's, ``[B, 4H]``. One of them has the bias."""
    if context is None:
        return None if input is None else F.linear(input, weight_ih, bias), None
    context_gates, of_input = context_share(context, weight_ih, weight_ih.shape[1] - context.shape[1], bias)
    return None if input is None or of_input is None else F.linear(input, of_input), context_gates
