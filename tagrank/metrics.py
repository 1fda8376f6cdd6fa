"""Ranked lists to numbers: how well a ranking of tags agrees with the ordered list that people gave.

A ranking and its reference are sequences of tag indices, the most important tag first. All measures come per image, as
float64 arrays in the order of the images, so that a caller can take means, confidence intervals or paired differences.

With ``n`` tags in the reference, ``r = 1..n`` the rank of a tag there, and ``p = 1, 2, ...`` a position in the ranking:

    gain(r)   = 1 / log2(1 + r)      "reciprocal_log", of Yan, Wang and Liao (2016)
              = (n + 1 - r) / n      "linear": the relevance n, n-1, .., 1, over n
              = 2^(1 - r) - 2^-n     "exponential": 2^relevance - 1, over 2^n
    gain      = 0                    for a tag that is not in the reference
    DCG@k     = sum over p <= k of gain(tag at p) / log2(1 + p)
    NDCG@k    = DCG@k / (DCG@k of the reference itself, cut at k)

NDCG does not depend on the scale of the gains; the last two are divided so that a long list cannot overflow.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tagrank.data.targets import IGNORE, ListTargets

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GAINS: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "reciprocal_log": lambda rank, n: 1 / np.log2(1 + rank),
    "linear": lambda rank, n: (n + 1 - rank) / n,
    "exponential": lambda rank, n: np.exp2(1 - rank) - np.exp2(-n),
}
"""Gain of a tag by its 1-based rank in a reference list of length ``n``."""


def evaluate_rankings(
    rankings: Sequence[Sequence[int]],
    references: Sequence[Sequence[int]],
    ks: Sequence[int] = (1, 3, 5, 10),
    gain: str = "reciprocal_log",
) -> dict[str, FloatArray]:
    """Compare one ranking per image with the image's reference list.

    A ranking may be shorter than ``k``, or empty: the positions it leaves open count as wrong.

    Args:
        rankings: one list of distinct tag indices per image, the best first; any lengths.
        references: one list of distinct tag indices per image, the most important first; none is empty. A tag that no
            ranking can name, because the vocabulary lacks it, should keep an index of its own here: it then counts in
            the ideal DCG and in recall, as it does for the person who looks at the ranking.
        ks: the cut-offs, each at least 1.
        gain: ``"reciprocal_log"``, ``"linear"`` or ``"exponential"``; see the module's docstring.

    Returns:
        Arrays ``[N]``, one value in [0, 1] per image. For each ``k``: ``"ndcg@k"``; ``"precision@k"``, right tags among
        the first ``k`` over ``k``; ``"recall@k"``, the same over the reference's length; ``"f1@k"``, their harmonic
        mean. And ``"first_tag"``: 1 where the first tag is the reference's first.

    Raises:
        ValueError: the numbers of rankings and references differ, a list has a tag twice or a negative tag, a reference
            is empty, a ``k`` is below 1, or ``gain`` is not known.
    """
    if len(rankings) != len(references):
        raise ValueError(f"rankings: expected {len(references)}, one for each reference; got {len(rankings)}")
    if gain not in GAINS:
        raise ValueError(f"gain: expected one of {', '.join(GAINS)}; got {gain!r}")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks: expected cut-offs of at least 1, got {list(ks)}")
    depth = max(ks)
    image, position, tag = _flatten(rankings, "rankings")
    ref_image, ref_position, ref_tag = _flatten(references, "references")
    lengths = np.bincount(ref_image, minlength=len(references))
    if not lengths.all():
        raise ValueError(f"references: expected at least one tag each; the list of image {lengths.argmin()} is empty")

    rank, length = (ref_position + 1).astype(np.float64), lengths[ref_image].astype(np.float64)
    ref_gain = GAINS[gain](rank, length)
    ideal = _table(ref_image, ref_position, ref_gain, len(references), depth)
    found = _find(image, tag, ref_image, ref_tag)
    hit = found >= 0
    gains = _table(image[hit], position[hit], ref_gain[found[hit]], len(references), depth)
    hits = _table(image[hit], position[hit], np.ones(hit.sum()), len(references), depth).cumsum(axis=1)
    discount = 1 / np.log2(np.arange(depth) + 2.0)
    ndcg = (gains * discount).cumsum(axis=1) / (ideal * discount).cumsum(axis=1)

    result: dict[str, FloatArray] = {}
    for k in ks:
        right = hits[:, k - 1]
        result[f"ndcg@{k}"] = ndcg[:, k - 1]
        result[f"precision@{k}"] = right / k
        result[f"recall@{k}"] = right / lengths
        result[f"f1@{k}"] = 2 * right / (k + lengths)
    first = hit & (position == 0)
    first[first] = ref_position[found[first]] == 0
    result["first_tag"] = np.bincount(image[first], minlength=len(references)).astype(np.float64)
    return result


def negative_log_likelihood(log_probabilities: Tensor, lists: ListTargets) -> FloatArray:
    """Equation (10) per image: ``- sum_t log p_t(y_t)`` over a list and its END, averaged over the image's lists.

    The average makes images with different numbers of lists comparable; in nats per list.

    Args:
        log_probabilities: ``[B, S, V + 1]``, a model's log probabilities at each step; class ``V`` is END.
        lists: targets ``[L, S]``, padded with -100, and the image ``[L]`` that each list belongs to.

    Returns:
        ``[B]``, float64.

    Raises:
        ValueError: the shapes do not fit together, a target or an image index is out of range, or an image has no list.
    """
    if log_probabilities.dim() != 3 or lists.targets.shape[1:] != log_probabilities.shape[1:2]:
        raise ValueError(
            f"log_probabilities: expected shape [B, S, V + 1] with the S of the targets {list(lists.targets.shape)}, "
            f"got {list(log_probabilities.shape)}"
        )
    images, _, classes = log_probabilities.shape
    targets, image_index = lists.targets.detach().cpu(), lists.image_index.detach().cpu()
    padding = targets == IGNORE
    if ((targets < 0) & ~padding).any() or (targets >= classes).any():
        raise ValueError(f"lists.targets: expected classes 0..{classes - 1} or {IGNORE} for padding")
    if image_index.shape != targets.shape[:1] or (image_index < 0).any() or (image_index >= images).any():
        raise ValueError(f"lists.image_index: expected one index in 0..{images - 1} for each of {len(targets)} lists")
    counts = image_index.bincount(minlength=images)
    if not counts.all():
        raise ValueError(f"lists: expected at least one list per image; image {int(counts.argmin())} has none")

    per_image = log_probabilities.detach().cpu().double()[image_index]
    chosen = per_image.gather(2, targets.masked_fill(padding, 0).unsqueeze(2)).squeeze(2).masked_fill(padding, 0.0)
    total = torch.zeros(images, dtype=torch.float64).index_add_(0, image_index, -chosen.sum(dim=1))
    mean: FloatArray = (total / counts).numpy()
    return mean


def summarise(per_image: Mapping[str, FloatArray]) -> dict[str, float]:
    """The mean of each measure over the images.

    Args:
        per_image: arrays ``[N]`` by name, as :func:`evaluate_rankings` returns them, with N > 0.

    Raises:
        ValueError: a measure has no images.
    """
    for name, values in per_image.items():
        if len(values) == 0:
            raise ValueError(f"per_image: expected at least one image, {name!r} has none")
    return {name: float(np.mean(values)) for name, values in per_image.items()}


def _flatten(lists: Sequence[Sequence[int]], name: str) -> tuple[IntArray, IntArray, IntArray]:
    """Image, 0-based position and tag of each entry of ragged lists, once these are known to be valid."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    image = np.repeat(np.arange(len(lists)), lengths)
    position = np.arange(len(image)) - np.repeat(lengths.cumsum() - lengths, lengths)
    tag = np.fromiter(chain.from_iterable(lists), np.int64, len(image))
    if len(tag) and tag.min() < 0:
        where = tag.argmin()
        raise ValueError(f"{name}: expected tag indices from 0, image {image[where]} has {tag[where]}")
    order = np.lexsort((tag, image))
    repeated = (np.diff(image[order]) == 0) & (np.diff(tag[order]) == 0)
    if repeated.any():
        where = order[repeated.argmax()]
        raise ValueError(f"{name}: expected distinct tags, image {image[where]} has tag {tag[where]} twice")
    return image, position, tag


def _find(image: IntArray, tag: IntArray, ref_image: IntArray, ref_tag: IntArray) -> IntArray:
    """For each (image, tag) its index among the reference's entries, or -1."""
    width = 1 + max(tag.max(initial=0), ref_tag.max(initial=0))
    keys, ref_keys = image * width + tag, ref_image * width + ref_tag
    order = np.argsort(ref_keys)
    place = np.searchsorted(ref_keys, keys, sorter=order)
    candidate = order[np.minimum(place, len(order) - 1)]
    return np.where(ref_keys[candidate] == keys, candidate, -1)


def _table(image: IntArray, position: IntArray, values: FloatArray, images: int, depth: int) -> FloatArray:
    """``[images, depth]`` with the values of the first ``depth`` positions, zero elsewhere."""
    table = np.zeros((images, depth))
    inside = position < depth
    table[image[inside], position[inside]] = values[inside]
    return table
