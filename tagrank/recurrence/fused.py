"""The layers of an LSTM as one node of the autograd graph, each pass of a layer one call of the C++ library.

Everything else in the call takes longer than the recurrence itself for short sequences, so nothing is done twice here:
what is contiguous, aligned or of the right shape is the library's business.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tagrank.recurrence.backends import FUSED
from tagrank.recurrence.backends.base import Backend, BackwardCall, ForwardCall
from tagrank.recurrence.backends.compiled import BIAS, C0, CONTEXT, H0, INPUT, WEIGHT_HH, WEIGHT_IH, grad_stride
from tagrank.recurrence.backends.gpu import elsewhere
from tagrank.recurrence.tracing import record

#: The parameters of a layer: weight_ih, weight_hh, bias_ih, bias_hh.
PER_LAYER = 4


class Settings(NamedTuple):
    """What a call of :func:`layers` has beside tensors.

    Attributes:
        backend: runs the recurrence.
        steps: ``T``.
        state_dimensions: 3 if states are ``[layers, B, H]``, 2 if there is one layer and they are ``[B, H]``.
        recompute: whether to keep only the cell states for backward where the gates' share of the input is constant.
    """

    backend: Backend
    steps: int
    state_dimensions: int
    recompute: bool


_BITS = (CONTEXT, INPUT, WEIGHT_IH, WEIGHT_HH, BIAS, H0, C0)
#: The gradients of ``output``, ``h_n`` and ``c_n``.
Grads = Sequence[Tensor | None]


def layers(
    settings: Settings,
    context: Tensor | None,
    input: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    parameters: Sequence[Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Run all layers, differentiable once.

    Args:
        settings: see there.
        context: ``[B, C]``, which stays the same at each step.
        input: ``[T, B, I]``, or ``[B, I]`` for a single step; it, or the context, may be missing.
        h0, c0: as ``settings.state_dimensions`` says, or ``None`` for zeros.
        parameters: ``weight_ih [4H, I + C]``, ``weight_hh [4H, H]``, ``bias_ih`` and ``bias_hh`` ``[4H]`` (or ``None``)
            of each layer. If ``weight_ih`` is ``None``, the context ``[B, 4H]`` or the input ``[T, B, 4H]`` is its
            share of the gates itself. If ``weight_ih`` has only the input's columns, the context ``[B, 4H]`` is.

    Returns:
        ``output`` ``[T, B, H]`` of the last layer, and ``h_n`` and ``c_n`` shaped like the states.
    """
    if torch.is_grad_enabled():
        for tensor in (context, input, h0, c0, *parameters):
            if tensor is not None and tensor.requires_grad:
                results: tuple[Tensor, Tensor, Tensor] = _Layers.apply(settings, context, input, h0, c0, *parameters)
                return results
    if len(parameters) == PER_LAYER:
        output, h_n, c_n = _layer_forward(settings, False, context, input, h0, c0, *parameters)
    else:
        output, h_n, c_n, _ = _forward(settings, False, context, input, h0, c0, parameters)
    return output, h_n, c_n


def _forward(
    settings: Settings,
    train: bool,
    context: Tensor | None,
    input: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    parameters: Sequence[Any],
) -> tuple[Tensor, Tensor, Tensor, list[list[Any]]]:
    """The results, and what each layer keeps for backward if ``train``.

    A layer keeps its output, its activated gates (or those before the recurrence, to compute them again) and its cells.
    """
    if len(parameters) == PER_LAYER:
        output, h_n, c_n, *kept = _layer_forward(settings, train, context, input, h0, c0, *parameters)
        return output, h_n, c_n, [[output, *kept]]
    everything = []
    one = settings._replace(state_dimensions=2)
    for layer in range(len(parameters) // PER_LAYER):
        own = parameters[PER_LAYER * layer : PER_LAYER * (layer + 1)]
        h, c = (None if state is None else state[layer] for state in (h0, c0))
        everything.append(_layer_forward(one, train, context, input, h, c, *own))
        context, input = None, everything[-1][0]
    h_n, c_n = (torch.stack([results[i] for results in everything]) for i in (1, 2))
    return everything[-1][0], h_n, c_n, [[results[0], *results[3:]] for results in everything]


def _layer_forward(
    settings: Settings,
    train: bool,
    context: Tensor | None,
    input: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> list[Tensor]:
    """The results of ``tagrank::layer_forward``: output, h_n, c_n, and if ``train`` what backward reads."""
    backend, steps, state_dimensions, recompute = settings
    save_gates = train and not (recompute and (input is None or weight_ih is None))
    tensors = context, input, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh
    launch = backend.fixed_launch
    if launch is not None:
        record(f"{backend.name}.forward")
    else:
        x: Any = context if input is None else input
        device = x.device
        if elsewhere(device):
            with torch.cuda.device(device):
                return _layer_forward(settings, train, *tensors)
        addend = "none"
        if weight_ih is not None and save_gates == train:
            both = context is not None and input is not None
            ready = both and weight_ih.size(1) == x.size(-1)
            addend = "none" if ready and steps == 1 else "rows" if both else "none" if bias_hh is None else "row"
        size = x.size(-2), weight_hh.size(1), steps
        states = h0 is not None, c0 is not None
        launch = backend.launch(ForwardCall(device, x.dtype, *size, input is None, addend, *states, save_gates, train))
    results: list[Tensor] = _operator("layer_forward")(*tensors, steps, state_dimensions, save_gates, train, launch)
    return results


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: Settings,
        context: Tensor | None,
        input: Tensor | None,
        h0: Tensor | None,
        c0: Tensor | None,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, h_n, c_n, kept = _forward(settings, True, context, input, h0, c0, parameters)
        ctx.set_materialize_grads(False)
        ctx.settings = settings
        ctx.sources = (context is not None, input is not None)
        # Backward of one step does not read the output: a caller may change h in place before the next step.
        if settings.steps == 1 and len(kept) == 1:
            kept[0][0] = None
        if parameters[0] is None:
            context = input = None  # backward does not read gates that were given
        if len(kept) == 1:
            ctx.save_for_backward(context, input, h0, c0, *parameters[:2], *kept[0])
        else:
            weights = [p for i, p in enumerate(parameters) if i % PER_LAYER < 2]
            ctx.save_for_backward(context, input, h0, c0, *weights, *(tensor for some in kept for tensor in some))
        return output, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            # A second derivative may follow. The results then have a node that refuses to have one.
            return Gradients.apply(_backward, ctx, *ctx.saved_tensors, *grads)  # type: ignore[no-any-return]
        return _backward(ctx, ctx.saved_tensors, grads)


class Gradients(torch.autograd.Function):
    """A backward pass, with a derivative that is an error. Its results depend on all that they are made of.

    ``backward_of(of, saved, grads)`` is the pass; ``of`` is the context of the forward pass, and the last three tensors
    are the gradients of its results.
    """

    @staticmethod
    def forward(ctx: Any, backward_of: Any, of: Any, *tensors: Tensor | None) -> Any:
        return backward_of(of, tensors[:-3], tensors[-3:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        refuse_second_derivative()


def refuse_second_derivative(*_: Any) -> Any:
    raise RuntimeError(
        "the fused backends of lstm_recurrence have no second derivative (as cuDNN's LSTM has none); "
        "backend='eager' differentiates any number of times"
    )


def _backward(ctx: Any, saved: Sequence[Any], grads: Grads) -> tuple[Any, ...]:
    """The gradients of all arguments of :meth:`_Layers.forward`, the one of ``settings`` ``None``.

    ``saved`` is what ``ctx`` has saved, which an activation checkpoint gives only once.
    """
    settings, needed = ctx.settings, ctx.needs_input_grad
    depth = (len(needed) - 5) // PER_LAYER
    if depth == 1:
        return None, *_layer_backward(settings, grads, saved[:6], saved[6:], ctx.sources, needed[1:])
    context, input, h0, c0, *others = saved
    weights, kept = others[: 2 * depth], others[2 * depth :]
    gradients: list[Tensor | None] = [None] * len(needed)
    first = context, input
    d_states: list[list[Tensor | None]] = [[], []]
    for layer in reversed(range(depth)):
        at = 5 + PER_LAYER * layer
        sources, of_input = ctx.sources, needed[1:3]
        if layer > 0:
            context, input = None, kept[3 * (layer - 1)]
            sources, of_input = (False, True), (False, any(needed[1:at]))
        else:
            context, input = first
        h_n, c_n, h, c = (None if state is None else state[layer] for state in (*grads[1:], h0, c0))
        results = _layer_backward(
            settings,
            (grads[0], h_n, c_n),
            (context, input, h, c, *weights[2 * layer : 2 * layer + 2]),
            kept[3 * layer : 3 * layer + 3],
            sources,
            (*of_input, *needed[3:5], *needed[at : at + PER_LAYER]),
        )
        gradients[at : at + PER_LAYER] = results[4:]
        for d_state, result in zip(d_states, results[2:4], strict=True):
            d_state.insert(0, result)
        if layer == 0:
            gradients[1:3] = results[:2]
        elif not of_input[1]:
            break  # nothing below needs a gradient
        grads = (results[1], *grads[1:])
    gradients[3:5] = (None if d[0] is None else torch.stack(d) for d in d_states)  # type: ignore[arg-type]
    return tuple(gradients)


def _layer_backward(
    settings: Settings,
    grads: Grads,
    tensors: Sequence[Any],
    kept: Sequence[Any],
    sources: tuple[bool, bool],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients of context, input, h0, c0, weight_ih, weight_hh and both biases; ``None`` where none is needed.

    ``tensors`` are the first six of these, and ``needed`` says for each of the eight whether its gradient is needed.
    ``kept`` is what the layer kept, and ``sources`` whether it had a context and an input.
    """
    weight_ih = tensors[4]
    constant = not sources[1]
    summed = constant or (sources[0] and settings.steps > 1)
    recompute = settings.recompute and (constant or weight_ih is None)
    wanted = needed[0] * CONTEXT | needed[1] * INPUT | needed[4] * WEIGHT_IH | needed[5] * WEIGHT_HH
    wanted |= (needed[6] or needed[7]) * BIAS | needed[2] * H0 | needed[3] * C0
    arguments = (*grads, *tensors, *kept, constant, summed, recompute, wanted)
    # Compiled autograd traces this function. How to launch a pass, and on which stream, is then found when it runs.
    compiling = torch.compiler.is_compiling()
    run: Any = torch.ops.tagrank.layer_backward_on if compiling else _launch_backward
    results = iter(run(*arguments, settings.backend.name))
    d_context, d_input, d_weight_ih, d_weight_hh, d_bias, d_h0, d_c0 = [
        next(results) if wanted & bit else None for bit in _BITS
    ]
    d_bias_ih, d_bias_hh = d_bias if needed[6] else None, d_bias if needed[7] else None
    return [d_context, d_input, d_h0, d_c0, d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh]


def _launch_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    context: Tensor | None,
    input: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    output: Tensor | None,
    saved: Tensor,
    cells: Tensor,
    constant: bool,
    summed: bool,
    recompute: bool,
    wanted: int,
    backend: str,
) -> list[Tensor]:
    """The results of ``tagrank::layer_backward``, launched as the backend says."""
    fused = FUSED[backend]
    launch = fused.fixed_launch
    if launch is not None:
        record(f"{backend}.backward")
    else:
        what = weight_hh.device, weight_hh.dtype, cells.shape[1], cells.shape[2], cells.shape[0]
        given = grad_stride(grad_output), grad_h_n is not None, grad_c_n is not None
        flags = constant, summed, recompute, c0 is not None
        launch = fused.launch(BackwardCall(*what, *flags, *given, bool(wanted & C0)))
    tensors = grad_output, grad_h_n, grad_c_n, context, input, h0, c0, weight_ih, weight_hh, output, saved, cells
    results: list[Tensor] = _operator("layer_backward")(*tensors, constant, summed, recompute, wanted, launch)
    return results


@cache
def _operator(name: str) -> Any:
    """An operator of the library, which to look up takes as long as a small tensor."""
    return getattr(torch.ops.tagrank, name).default


def _copies(*arguments: Any) -> list[Tensor]:
    # An operator's results share no memory: a gradient may be a part of another, or of an argument.
    return [result.clone(memory_format=torch.contiguous_format) for result in _launch_backward(*arguments)]


_SCHEMA = (
    "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? context, Tensor? input, Tensor? h0, Tensor? c0, "
    "Tensor? weight_ih, Tensor weight_hh, Tensor? output, Tensor saved, Tensor cells, bool constant, bool summed, "
    "bool recompute, int wanted, str backend) -> Tensor[]"
)


@torch.library.custom_op("tagrank::layer_backward_on", _copies, mutates_args=(), schema=_SCHEMA).register_fake
def _shapes(*arguments: Any) -> list[Tensor]:
    _, _, _, context, input, h0, c0, weight_ih, weight_hh, _, _, cells, *_, wanted, _ = arguments
    steps, batch, hidden = cells.shape
    context_shape = (batch, 4 * hidden) if context is None or weight_ih is None else context.shape
    input_shape = (steps, batch, 4 * hidden) if input is None or weight_ih is None else input.shape
    shapes = {CONTEXT: context_shape, INPUT: input_shape, WEIGHT_HH: weight_hh.shape, BIAS: (4 * hidden,)}
    for bit, tensor in ((WEIGHT_IH, weight_ih), (H0, h0), (C0, c0)):
        shapes[bit] = () if tensor is None else tensor.shape
    return [weight_hh.new_empty(shapes[bit]) for bit in _BITS if wanted & bit]
