"""What decoders return, and what all decoders do."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tagrank.features.familiarity import UNKNOWN

Array = npt.NDArray[np.float64]


class RankedTag(NamedTuple):
    """A tag, its 1-based rank, and its score: the probability that the tag is on a person's list."""

    tag: str
    rank: int
    score: float


class TagList(list[RankedTag]):
    """The ranked tags of a photograph, the most important first.

    Attributes:
        unlike: how unlike the training photographs it is, in [0, 1): the share of validation photographs that are
            nearer to them. NaN if the model does not know.
        members: names of synonyms with those of their tags that the list has without synonyms, the most important
            first; empty unless :meth:`tagrank.annotator.Annotator.annotate` was asked for them.
    """

    def __init__(
        self,
        tags: Iterable[RankedTag] = (),
        unlike: float = math.nan,
        members: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(tags)
        self.unlike = unlike
        self.members = dict(members or {})

    @property
    def unknown(self) -> bool:
        """Whether the photograph is so unlike the training photographs that its tags mean little."""
        return self.unlike >= UNKNOWN


class Ranking(NamedTuple):
    """Indices of one image's distinct tags, the most important first, and the probability that each is on a list."""

    tags: list[int]
    scores: list[float]


def check_options(decoder: str, known: Sequence[str], top_k: int | None, threshold: float | None) -> None:
    """Check that the options of a decoder are in range.

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
    """The number of tags to rank before thresholds apply, or ``None`` if the model chooses the number."""
    if top_k is None:
        if threshold is None:
            return None
        top_k = num_tags if decoder in ("expected_gain", "headline") else steps
    return min(top_k, num_tags)


def order_by_gain(gain: Array, expected_length: Array, length: int | None) -> list[list[int]]:
    """The tags with the highest gain ``[B, V]``: ``length`` tags, or the rounded expected length if ``None``."""
    order = np.argsort(-gain, axis=1, kind="stable")
    if length is None:
        counts = np.clip(np.floor(expected_length + 0.5), 1, gain.shape[1]).astype(int)
    else:
        counts = np.full(len(gain), length)
    return [[int(v) for v in row[:n]] for row, n in zip(order, counts, strict=True)]
