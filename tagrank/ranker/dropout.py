"""Dropout whose random numbers cost little on CPUs."""

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 2**16


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """:func:`torch.nn.functional.dropout`; on CPUs a number drawn for one element there serves for four.

    Each element is compared with 16 random bits, so its probability of being dropped is ``rate``, rounded to a multiple
    of 2^-16. What is kept is divided by the probability of being kept, after rounding.

    Args:
        x: any shape, floating.
        rate: the probability with which an element becomes 0, in [0, 1).
        training: if False, ``x`` is returned as it is.
    """
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
    return x * (kept * torch.tensor(_LEVELS / (_LEVELS - dropped), dtype=x.dtype))
