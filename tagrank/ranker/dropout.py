"""Dropout whose random numbers cost little on CPUs."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 2**16


class Part(NamedTuple):
    """Rows of a larger tensor, which other processes have the other rows of.

    Attributes:
        dim: the dimension of the rows.
        whole: how many rows the larger tensor has.
        rows: which of them are here.
    """

    dim: int
    whole: int
    rows: slice


def dropout(x: Tensor, rate: float, training: bool = True, part: Part | None = None) -> Tensor:
    """:func:`torch.nn.functional.dropout`; on CPUs a number drawn for one element there serves for four.

    Each element is compared with 16 random bits, so its probability of being dropped is ``rate``, rounded to a multiple
    of 2^-16. What is kept is divided by the probability of being kept, after rounding.

    Args:
        x: any shape, floating.
        rate: the probability with which an element becomes 0, in [0, 1).
        training: if False, ``x`` is returned as it is.
        part: which part of a larger tensor ``x`` is. Numbers are drawn for the larger one, so that its elements become
            0 where they would without parts.
    """
    if not training or rate == 0:
        return x
    if part is None:
        return F.dropout(x, rate) if x.device.type != "cpu" else x * _factors(x.shape, rate, x.dtype)
    shape = torch.Size([*x.shape[: part.dim], part.whole, *x.shape[part.dim + 1 :]])
    factors = F.dropout(x.new_ones(shape), rate) if x.device.type != "cpu" else _factors(shape, rate, x.dtype)
    return x * factors[(slice(None),) * part.dim + (part.rows,)]


def _factors(shape: torch.Size, rate: float, dtype: torch.dtype) -> Tensor:
    """What the elements of a tensor on the CPU are multiplied by."""
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    size = shape.numel()
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[:size].view(shape) >= dropped - _LEVELS // 2
    return kept * torch.tensor(_LEVELS / (_LEVELS - dropped), dtype=dtype)
