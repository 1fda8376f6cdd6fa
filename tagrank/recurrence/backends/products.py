"""The products of the backward pass that need no recurrence: one each over all steps and rows, done by PyTorch.

The backends for GPUs do them before and after their kernel, which computes the gradients of the gates.
"""

import torch
from torch import Tensor

from tagrank.recurrence.backends.base import BackwardInputs


def gates_and_place_for_gradients(inputs: BackwardInputs) -> tuple[Tensor, Tensor]:
    """The gates that the kernel reads, and the array that it writes their gradients to; both ``[T, B, 4H]``.

    With ``inputs.recompute`` the gates are ``h_{t-1} U^T``: the kernel adds ``gates_x`` and applies the activations.
    """
    if not inputs.recompute:
        return inputs.gates, torch.empty_like(inputs.gates)
    products = _recurrent_products(inputs.output, inputs.weight_hh, inputs.h0)
    # Nobody else has this array, so the gradients may overwrite it.
    return products, products


def _recurrent_products(output: Tensor, weight_hh: Tensor, h0: Tensor | None) -> Tensor:
    """``h_{t-1} U^T`` for all steps, ``[T, B, 4H]``: one product, because all hidden states are known."""
    steps, batch, hidden = output.shape
    products = output.new_empty(steps, batch, 4 * hidden)
    torch.mm(output[:-1].flatten(0, 1), weight_hh.t(), out=products[1:].flatten(0, 1))
    if h0 is None:
        products[0].zero_()
    else:
        torch.mm(h0, weight_hh.t(), out=products[0])
    return products


def weight_and_state_gradients(d_gates: Tensor, inputs: BackwardInputs) -> tuple[Tensor, Tensor]:
    """``d_weight_hh`` and ``d_h0`` from the gradients of the gates, ``[T, B, 4H]``.

    ``h_{t-1}`` is ``h0`` at the first step and ``output[t - 1]`` at the others. A gradient that
    :meth:`Backend.backward` leaves out has no elements.
    """
    output, h0 = inputs.output, inputs.h0
    d_h0 = output.new_empty(0) if h0 is None else d_gates[0] @ inputs.weight_hh
    if not inputs.weight_wanted:
        return output.new_empty(0), d_h0
    d_weight_hh = d_gates[1:].flatten(0, 1).t() @ output[:-1].flatten(0, 1)
    if h0 is not None:
        d_weight_hh.addmm_(d_gates[0].t(), h0)
    return d_weight_hh, d_h0
