"""The products of the backward pass that need no recurrence: one each over all steps and rows, done by PyTorch."""

import torch
from torch import Tensor


def recurrent_products(output: Tensor, weight_hh: Tensor, h0: Tensor | None) -> Tensor:
    """``h_{t-1} U^T`` for all steps, ``[T, B, 4H]``: one product, as all hidden states are there already."""
    steps, batch, hidden = output.shape
    products = output.new_empty(steps, batch, 4 * hidden)
    torch.mm(output[:-1].flatten(0, 1), weight_hh.t(), out=products[1:].flatten(0, 1))
    if h0 is None:
        products[0].zero_()
    else:
        torch.mm(h0, weight_hh.t(), out=products[0])
    return products


def weight_gradients(
    d_gates: Tensor, output: Tensor, weight_hh: Tensor, h0: Tensor | None, weight_wanted: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of ``weight_hh`` and ``h0``; without elements where it is not wanted, and where h0 was left out.

    h_{t-1} is h0 at the first step and the output, shifted, after it.
    """
    d_h0 = output.new_empty(0) if h0 is None else d_gates[0] @ weight_hh
    if not weight_wanted:
        return output.new_empty(0), d_h0
    d_weight_hh = d_gates[1:].flatten(0, 1).t() @ output[:-1].flatten(0, 1)
    if h0 is not None:
        d_weight_hh.addmm_(d_gates[0].t(), h0)
    return d_weight_hh, d_h0
