"""How features are brought to a common scale before a model reads them."""

import torch
from torch import Tensor


def signed_root(features: Tensor) -> Tensor:
    """``sign(x) sqrt(|x|)`` of each entry, which tames activations with long tails (Perronnin et al., 2010)."""
    return features.sign() * features.abs().sqrt()


NOISE = 1e-4
"""The deviation, as a part of the size of features, below which it is rounding: float16 has 1/2048."""


def mean_and_deviation(features: Tensor) -> tuple[Tensor, Tensor]:
    """What standardises features ``[N, D]``: the mean of each entry ``[D]``, and one deviation for all entries ``[]``.

    The deviation is the root of the mean variance. A deviation per entry would blow up the entries that are nearly
    always zero. If the features are all alike, up to rounding, the deviation is 1: another would blow up the rounding,
    and whatever differs from these features later.

    Raises:
        ValueError: there are no features.
    """
    if not len(features):
        raise ValueError("features: expected at least one image, got none")
    variance, mean = torch.var_mean(features.float(), dim=0, correction=0)
    deviation, size = variance.mean().sqrt(), mean.square().mean().sqrt()
    return mean, deviation if deviation > NOISE * size else torch.ones_like(deviation)
