"""From ranked lists to numbers: how well a ranking of tags agrees with the ordered list that people gave.

A ranking and its reference are sequences of tag indices, the most important tag first. All measures come per image, as
float64 arrays in the order of the images. A caller can take means, confidence intervals or paired differences of them.

With ``n`` tags in the reference, ``r = 1..n`` the rank of a tag there, and ``p = 1, 2, ...`` a position in the ranking:

    gain(r)   = 1 / log2(1 + r)      "reciprocal_log", of Yan, Wang and Liao (2016)
              = (n + 1 - r) / n      "linear": relevance / n, with relevance n, n-1, .., 1
              = 2^(1 - r) - 2^-n     "exponential": (2^relevance - 1) / 2^n
    gain      = 0                    for a tag that is not in the reference
    DCG@k     = sum over p <= k of gain(tag at p) / log2(1 + p)
    NDCG@k    = DCG@k / (DCG@k of the reference itself, cut at k)

NDCG does not depend on the scale of the gains. The last two gains are divided by ``n`` and ``2^n``, so that
a long list cannot overflow.

Rank-biased overlap (Webber, Moffat and Zobel, 2010) compares how many tags two lists share at each depth, and Kendall's
tau compares the order of the tags that they share and ignores all other tags.
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

    A ranking may be shorter than ``k``, or empty: its missing positions count as wrong.

    Args:
        rankings: one list of distinct tag indices per image, the best first; any lengths.
        references: one non-empty list of distinct tag indices per image, the most important first. Give a tag that is
            not in the vocabulary an index of its own: no ranking can contain it, but it then counts in the ideal DCG
            and in recall, as it does for a person who reads the ranking.
        ks: the cut-offs, each at least 1.
        gain: ``"reciprocal_log"``, ``"linear"`` or ``"exponential"``; see the module's docstring.

    Returns:
        Arrays ``[N]``, one value in [0, 1] per image. For each ``k``: ``"ndcg@k"``; ``"precision@k"``, the number of
        right tags among the first ``k``, over ``k``; ``"recall@k"``, the same number over the reference's length;
        ``"f1@k"``, their harmonic mean. And ``"first_tag"``: 1 if both lists have the same first tag, else 0.

    Raises:
        ValueError: the numbers of rankings and references differ, a list has a tag twice or a negative tag, a reference
            is empty, ``ks`` is empty, a ``k`` is below 1, or ``gain`` is not known.
    """
    if gain not in GAINS:
        raise ValueError(f"gain: expected one of {', '.join(GAINS)}; got {gain!r}")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks: expected cut-offs of at least 1, got {list(ks)}")
    depth = max(ks)
    image, position, ref_image, ref_position, found = _match(rankings, references)
    lengths = np.bincount(ref_image, minlength=len(references))
    rank, length = (ref_position + 1).astype(np.float64), lengths[ref_image].astype(np.float64)
    ref_gain = GAINS[gain](rank, length)
    ideal = _table(ref_image, ref_position, ref_gain, len(references), depth)
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


def evaluate_order(
    rankings: Sequence[Sequence[int]], references: Sequence[Sequence[int]], persistence: float = 0.9
) -> dict[str, FloatArray]:
    """Compare whole lists: how much they overlap from the top down, and how alike they order the tags that they share.

    Args:
        rankings: as for :func:`evaluate_rankings`.
        references: as for :func:`evaluate_rankings`.
        persistence: ``p`` of rank-biased overlap, in (0, 1): the probability that someone who has compared the lists
            down to some depth goes on to the next depth.

    Returns:
        Arrays ``[N]``. ``"rbo"``: extrapolated rank-biased overlap, equation (32) of Webber et al., for lists of
        different lengths; in [0, 1], 0 for an empty ranking. ``"kendall_tau"``: of all pairs of
        shared tags, ``(pairs in the same order - pairs in the opposite order) / pairs``; in [-1, 1], NaN if the lists
        share fewer than two tags. ``"overlap"``: the number of shared tags.

    Raises:
        ValueError: :func:`evaluate_rankings` would reject the lists, or ``persistence`` is out of range.
    """
    if not 0 < persistence < 1:
        raise ValueError(f"persistence: expected a number in (0, 1), got {persistence}")
    image, position, _, ref_position, found = _match(rankings, references)
    pairs = [(len(a), len(b)) for a, b in zip(rankings, references, strict=True)]
    lengths = np.array(pairs, dtype=np.int64).reshape(-1, 2)  # [0, 2] if there are no images
    hit = found >= 0
    image, place, ref_place = image[hit], position[hit], ref_position[found[hit]]
    overlap = np.bincount(image, minlength=len(references))
    return {
        "rbo": _rank_biased_overlap(image, np.maximum(place, ref_place), lengths, persistence),
        "kendall_tau": _kendall_tau(image, ref_place, overlap),
        "overlap": overlap.astype(np.float64),
    }


def evaluate_lengths(
    lists: Sequence[Sequence[int]], people: Sequence[Sequence[Sequence[int]]]
) -> dict[str, FloatArray]:
    """Compare lists whose length was chosen with the lists of several people: which tags, and how many.

    Args:
        lists: one list of distinct tag indices per image.
        people: for each image the non-empty lists of people.

    Returns:
        Arrays ``[N]``, means over an image's people; NaN if there are none. ``"list_f1"``: the harmonic mean of the
        share of the list that is on the person's list, and the share of the person's list that is on the list.
        ``"length_error"``: the difference of the two lengths, in tags, without sign.
    """
    f1, error = np.full((2, len(people)), np.nan)
    for image, (chosen, of_people) in enumerate(zip(lists, people, strict=True)):
        if of_people:
            there = set(chosen)
            f1[image] = np.mean([2 * len(there.intersection(tags)) / (len(chosen) + len(tags)) for tags in of_people])
            error[image] = np.mean([abs(len(chosen) - len(tags)) for tags in of_people])
    return {"list_f1": f1, "length_error": error}


def _rank_biased_overlap(image: IntArray, depth: IntArray, lengths: IntArray, p: float) -> FloatArray:
    """Rank-biased overlap of each image, ``[N]``.

    Args:
        image: the image of each shared tag.
        depth: the smallest 0-based depth at which both lists have the shared tag.
        lengths: ``[N, 2]``, of both lists.
        p: the persistence.
    """
    short, long = lengths.min(axis=1), lengths.max(axis=1)
    depths = np.arange(1, 1 + max(long, default=0), dtype=np.float64)
    shared = np.zeros((len(lengths), len(depths)))
    np.add.at(shared, (image, depth), 1.0)
    shared = shared.cumsum(axis=1)  # X_d
    rows, s = np.arange(len(lengths)), np.maximum(short, 1)
    at_short, at_long = shared[rows, s - 1], shared[rows, long - 1]
    # Below the end of the shorter list, the agreement is assumed to stay what it was at that end.
    beyond = at_short[:, None] * np.maximum(depths - s[:, None], 0.0) / (s[:, None] * depths)
    seen = np.where(depths <= long[:, None], (shared / depths + beyond) * p**depths, 0.0).sum(axis=1) * (1 - p) / p
    rest = ((at_long - at_short) / long + at_short / s) * p**long
    return np.where(short == 0, 0.0, np.clip(seen + rest, 0.0, 1.0))


def _kendall_tau(image: IntArray, ref_place: IntArray, overlap: IntArray) -> FloatArray:
    """Kendall's tau of each image, ``[N]``.

    Args:
        image: the image of each shared tag, ascending.
        ref_place: the tag's position in the reference. The tags of an image are in the order of the ranking.
        overlap: ``[N]``, the number of shared tags.
    """
    balance = np.zeros(len(overlap))
    for apart in range(1, max(overlap, default=0)):
        same = image[apart:] == image[:-apart]
        order = np.sign(ref_place[apart:] - ref_place[:-apart])
        balance += np.bincount(image[apart:][same], order[same], minlength=len(overlap))
    pairs = overlap * (overlap - 1) / 2
    tau: FloatArray = np.divide(balance, pairs, out=np.full(len(overlap), np.nan), where=pairs > 0)
    return tau


def negative_log_likelihood(log_probabilities: Tensor, lists: ListTargets) -> FloatArray:
    """Equation (10) per image: ``- sum_t log p_t(y_t)`` over a list and its END, averaged over the image's lists.

    The average makes images with different numbers of lists comparable. The unit is nats per list.

    Args:
        log_probabilities: ``[B, S, V + 1]``, a model's log probabilities at each step; class ``V`` is END.
        lists: targets ``[L, S]``, padded with -100, and the index ``[L]`` of each list's image.

    Returns:
        ``[B]``, float64.

    Raises:
        ValueError: the shapes do not match, a target or an image index is out of range, or an image has no list.
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
    """The mean of each measure over the images that have it. A measure that no image has is left out.

    Args:
        per_image: arrays ``[N]`` by name, as :func:`evaluate_rankings` returns them, with N > 0; NaN if an image
            does not have the measure.

    Raises:
        ValueError: a measure has no images.
    """
    for name, values in per_image.items():
        if len(values) == 0:
            raise ValueError(f"per_image: expected at least one image, {name!r} has none")
    return {name: float(np.nanmean(values)) for name, values in per_image.items() if not np.isnan(values).all()}


def _match(
    rankings: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
    """Check the lists, and find each tag of a ranking in the image's reference.

    Returns:
        Image and 0-based position of each entry of the rankings; image and 0-based position of each entry of the
        references; and for each entry of the rankings, the index of the references' entry with the same image and tag,
        or -1.
    """
    if len(rankings) != len(references):
        raise ValueError(f"rankings: expected {len(references)}, one for each reference; got {len(rankings)}")
    image, position, tag = _flatten(rankings, "rankings")
    ref_image, ref_position, ref_tag = _flatten(references, "references")
    lengths = np.bincount(ref_image, minlength=len(references))
    if not lengths.all():
        raise ValueError(f"references: expected at least one tag each; the list of image {lengths.argmin()} is empty")
    return image, position, ref_image, ref_position, _find(image, tag, ref_image, ref_tag)


def _flatten(lists: Sequence[Sequence[int]], name: str) -> tuple[IntArray, IntArray, IntArray]:
    """Check lists of any lengths, and return the image, 0-based position and tag of each entry."""
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
    """The index of each (image, tag) among the entries of the references, or -1."""
    width = 1 + max(tag.max(initial=0), ref_tag.max(initial=0))
    keys, ref_keys = image * width + tag, ref_image * width + ref_tag
    order = np.argsort(ref_keys)
    place = np.searchsorted(ref_keys, keys, sorter=order)
    candidate = order[np.minimum(place, len(order) - 1)]
    return np.where(ref_keys[candidate] == keys, candidate, -1)


def _table(image: IntArray, position: IntArray, values: FloatArray, images: int, depth: int) -> FloatArray:
    """``[images, depth]``: the values at their image and position. Positions without a value are 0."""
    table = np.zeros((images, depth))
    inside = position < depth
    table[image[inside], position[inside]] = values[inside]
    return table
