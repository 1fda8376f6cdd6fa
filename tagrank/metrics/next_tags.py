"""How well a model knows the next tag of a list, given the tags before it."""

import numpy as np
import torch
from torch import Tensor

from tagrank.metrics.rankings import FloatArray

KS = (1, 3)


def evaluate_next_tags(log_p: Tensor, following: Tensor, image: Tensor, images: int) -> dict[str, FloatArray]:
    """Hits and the negative log-likelihood of the tags that people named next.

    Args:
        log_p: ``[N, V]``, for each list the log probabilities of the tags that may come next, given that one comes. A
            tag that is in the list already has ``-inf``.
        following: int64 ``[N]``, the tag that the person named.
        image: int64 ``[N]``, the image of each list.
        images: the number of images.

    Returns:
        ``hit@1`` and ``hit@3``, the share of an image's lists whose next tag is among the 1 or 3 most likely tags (of
        equally likely tags the first in the vocabulary), and ``nll``, the mean of ``-log p`` in nats: float64 arrays
        ``[images]``, NaN for an image without a list.
    """
    rows = torch.arange(len(following), device=log_p.device)
    own = log_p[rows, following].unsqueeze(1)
    earlier = torch.arange(log_p.shape[1], device=log_p.device) < following.unsqueeze(1)
    rank = ((log_p > own) | ((log_p == own) & earlier)).sum(1)
    values = {**{f"hit@{k}": (rank < k).double() for k in KS}, "nll": -own.squeeze(1).double()}
    count = np.bincount(image.cpu().numpy(), minlength=images).astype(np.float64)
    count[count == 0] = np.nan
    return {
        name: np.bincount(image.cpu().numpy(), value.cpu().numpy(), minlength=images) / count
        for name, value in values.items()
    }
