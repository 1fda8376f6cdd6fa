"""How features are brought to a common scale before a model reads them."""

import torch
from torch import Tensor


def signed_root(features: Tensor) -> Tensor:
    """``sign(x) sqrt(|x|)`` of each entry, which tames activations with long tails (Perronnin et al., 2010)."""
    return features.sign() * features.abs().sqrt()


def mean_and_deviation(features: Tensor) -> tuple[Tensor, Tensor]:
    """What standardises features ``[N, D]``: the mean of each entry ``[D]``, and one deviation for all entries ``[]``.

    The deviation is the root of the mean variance. A deviation per entry would blow up the entries that are nearly
    always zero.
    """
    variance, mean = torch.var_mean(features.float(), dim=0, correction=0)
    return mean, variance.mean().sqrt().clamp(min=1e-12)
