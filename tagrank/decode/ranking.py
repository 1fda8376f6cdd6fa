"""What decoders return, and what all decoders share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class RankedTag(NamedTuple):
    """A tag, its 1-based rank, and its score: the probability that the tag is on a person's list."""

    tag: str
    rank: int
    score: float


class Ranking(NamedTuple):
    """Distinct tags of one image by index, the most important first, and the probability that each is on a list."""

    tags: list[int]
    scores: list[float]


def check_options(decoder: str, known: Sequence[str], top_k: int | None, threshold: float | None) -> None:
    """Check the options of a decoder.

    Raises:
        ValueError: an option is out of range.
    """
    if decoder not in known:
        raise ValueError(f"decoder: expected one of {', '.join(map(repr, known))}; got {decoder!r}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a probability in [0, 1], got {threshold}")


def list_length(decoder: str, top_k: int | None, threshold: float | None, steps: int, num_tags: int) -> int | None:
    """How many tags to rank before thresholds apply; ``None`` if the model chooses."""
    if top_k is None:
        if threshold is None:
            return None
        top_k = num_tags if decoder in ("expected_gain", "headline") else steps
    return min(top_k, num_tags)


def order_by_gain(gain: Array, expected_length: Array, length: int | None) -> list[list[int]]:
    """The tags with the highest gain ``[B, V]``: ``length`` tags, or the expected length ``[B]``, rounded."""
    order = np.argsort(-gain, axis=1, kind="stable")
    if length is None:
        counts = np.clip(np.floor(expected_length + 0.5), 1, gain.shape[1]).astype(int)
    else:
        counts = np.full(len(gain), length)
    return [[int(v) for v in row[:n]] for row, n in zip(order, counts, strict=True)]
