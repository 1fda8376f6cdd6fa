"""Models whose positions are independent of each other: from distributions to one ranked list of distinct tags.

Notation: ``p_t(v)`` is the probability of tag ``v`` at position ``t``; class ``V`` is END; a list *reaches* position
``t`` with probability ``prod_{s<t} (1 - p_s(END))``. Ties go to the tag that is
first in the vocabulary, except with ``assignment``: the solver chooses among equally likely lists, each time the same.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from tagrank.decode.output import OutputTags
from tagrank.decode.ranking import Array, Ranking, check_options, list_length, order_by_gain
from tagrank.metrics import Calibration
from tagrank.ranker.reach import reach


def decode(
    probabilities: Tensor,
    decoder: str = "expected_gain",
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    output: OutputTags | None = None,
    calibration: Calibration = Calibration(),
) -> list[Ranking]:
    """Choose a ranked list for each image.

    Args:
        probabilities: ``[B, S, V + 1]``, from :meth:`tagrank.TagRanker.predict`.
        decoder:
            ``"greedy"``: at each position the most likely unused tag, until END is more likely.
            ``"assignment"``: the most likely list of distinct tags with its END. It is exact: a linear sum assignment.
            ``"expected_gain"``: tags by ``sum_t w_t P(list reaches t) p_t(v)``, ``w_t = 1/log2(1+t)``, which is
            Bayes-optimal under DCG if positions are independent. The number of tags is the expected length, rounded.
            ``"headline"``: the same, except for the first tag, which has the largest
            ``sum_t w_t^2 P(list reaches t) p_t(v)``. The weights ``w_t^2`` lie between ``w_t``, which favour tags that
            everybody names somewhere, and a weight for only the first position.
        top_k: this many tags (at most ``V``), instead of a length chosen by the model. Positions beyond ``S`` repeat
            the distribution of the last position.
        threshold: keep the tags whose score is at least this, of the first ``top_k`` ranked tags. If ``top_k`` is left
            out: of all tags with ``"expected_gain"`` and ``"headline"``, of the first ``S`` with other decoders.
        output: which tags may be on the list; all ``V`` if left out. The decoders do not see other tags: the expected
            length counts only these tags, and ``"greedy"`` ends when END is more likely than the best of these tags.
        calibration: of the scores, before they are compared with thresholds.

    Returns:
        A :class:`Ranking` for each image.

    Raises:
        ValueError: an argument is out of range, or ``probabilities`` has another shape or is not made of distributions.
    """
    check_options(decoder, list(DECODERS), top_k, threshold)
    p = _check(probabilities)
    p = p if output is None else output.merge(p)
    length = list_length(decoder, top_k, threshold, p.shape[1], p.shape[2] - 1)
    lists, scores = DECODERS[decoder](p, length), calibration(on_list(p))
    if output is not None:
        return [output.ranking(tags, row, threshold) for tags, row in zip(lists, scores, strict=True)]
    kept = [[v for v in tags if row[v] >= (threshold or 0.0)] for tags, row in zip(lists, scores, strict=True)]
    return [Ranking(tags, [float(row[v]) for v in tags]) for tags, row in zip(kept, scores, strict=True)]


def on_list(p: Array) -> Array:
    """The probability that a tag is on the list, ``[B, V]``, if positions are independent of each other.

    A tag occurs for the first time at ``t`` if neither the tag nor END came before:
    ``sum_t p_t(v) prod_{s<t} (1 - p_s(v) - p_s(END))``.
    """
    tags, end = p[..., :-1], p[..., -1:]
    neither = np.clip(1.0 - tags - end, 0.0, 1.0)
    before = np.cumprod(np.concatenate([np.ones_like(neither[:, :1]), neither[:, :-1]], axis=1), axis=1)
    total: Array = (before * tags).sum(axis=1)
    return np.clip(total, 0.0, 1.0)


def _greedy(p: Array, length: int | None) -> list[list[int]]:
    count = min(p.shape[1], p.shape[2] - 1) if length is None else length
    p = _extend(p, count)
    rows = np.arange(len(p))
    used = np.zeros((len(p), p.shape[2] - 1), dtype=bool)
    open_ = np.ones(len(p), dtype=bool)
    lists: list[list[int]] = [[] for _ in rows]
    for t in range(count):
        unused = np.where(used, -1.0, p[:, t, :-1])
        best = unused.argmax(axis=1)
        if length is None and t > 0:
            open_ &= unused[rows, best] >= p[:, t, -1]
        for row in np.flatnonzero(open_):
            lists[row].append(int(best[row]))
        used[rows, best] = True
    return lists


def _assignment(p: Array, length: int | None) -> list[list[int]]:
    from scipy.optimize import linear_sum_assignment

    steps, num_tags = p.shape[1], p.shape[2] - 1
    p = _extend(p, 2 if length is None else length)
    cost = -np.log(np.maximum(p, np.finfo(np.float64).tiny))
    # A list of S tags leaves no position for END, so the longest list with a probability has S - 1 tags.
    lengths = range(1, max(1, min(steps - 1, num_tags)) + 1) if length is None else [length]
    lists = []
    for image in cost:
        best, best_cost = [0], np.inf
        for n in lengths:
            _, tags = linear_sum_assignment(image[:n, :-1])
            total = image[np.arange(n), tags].sum()
            if length is None:
                total += image[n, -1]
            if total < best_cost:
                best, best_cost = [int(v) for v in tags], total
        lists.append(best)
    return lists


def expected_gains(p: Array, power: float = 1.0) -> Array:
    """``sum_t w_t^power P(list reaches t) p_t(v)`` with ``w_t = 1/log2(1+t)``, ``[B, V]``."""
    weights = 1.0 / np.log2(np.arange(2, p.shape[1] + 2))
    gains: Array = np.einsum("s,bs,bsv->bv", weights**power, reach(p), p[..., :-1])
    return gains


def _expected_gain(p: Array, length: int | None) -> list[list[int]]:
    return _by_gain(p, expected_gains(p), length)


def _headline(p: Array, length: int | None) -> list[list[int]]:
    gains = expected_gains(p)
    gains[np.arange(len(gains)), expected_gains(p, power=2.0).argmax(axis=1)] = np.inf
    return _by_gain(p, gains, length)


def _by_gain(p: Array, gains: Array, length: int | None) -> list[list[int]]:
    # E[length] = sum over n >= 1 of P(at least n tags), and a list has at least n tags if its n-th position has a tag.
    return order_by_gain(gains, (reach(p) * p[..., :-1].sum(axis=2)).sum(axis=1), length)


#: Decoders by name. Each takes distributions and a length (``None`` if the model chooses it), and returns tags.
DECODERS: dict[str, Callable[[Array, int | None], list[list[int]]]] = {
    "headline": _headline,
    "expected_gain": _expected_gain,
    "greedy": _greedy,
    "assignment": _assignment,
}


def _extend(p: Array, steps: int) -> Array:
    """Repeat the last distribution until there are at least ``steps`` positions."""
    missing = steps - p.shape[1]
    return p if missing <= 0 else np.concatenate([p, np.repeat(p[:, -1:], missing, axis=1)], axis=1)


def _check(probabilities: Tensor) -> Array:
    if probabilities.dim() != 3 or probabilities.shape[1] < 1 or probabilities.shape[2] < 2:
        raise ValueError(f"probabilities: expected shape [B, S, V + 1], got {list(probabilities.shape)}")
    p: Array = probabilities.detach().double().cpu().numpy()
    if not np.isfinite(p).all() or (p < 0).any() or (np.abs(p.sum(-1) - 1.0) > 1e-2).any():
        raise ValueError("probabilities: expected finite, non-negative values that sum to 1 over the last dimension")
    return p
