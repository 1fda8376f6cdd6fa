"""Ranks photographs by the probability that a person's list starts with the query, or by how alike lists are.

In a model without feedback the positions of a list are independent: a list starts with the tags ``q_1..q_k`` with
probability ``prod_t p_t(q_t)``. The distributions are not conditioned on the tags of a list being distinct; the model
has only learnt from lists in which they are.

Needs no torch, which takes seconds to import.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tagrank.data.nearest import did_you_mean
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.model_files import model_digest
from tagrank.retrieval.index import photo_tables
from tagrank.retrieval.index_file import Contents, read_contents
from tagrank.retrieval.photo_shard import HalfArray, Shard

if TYPE_CHECKING:
    from torch import Tensor

    from tagrank.annotator import Annotator

Scores = NDArray[np.float64]

MOST_UNORDERED = 10
"""How many tags a query in any order may have: with each further tag the search takes more than twice as long."""


class Match(NamedTuple):
    """A photograph that was found: its name, its 1-based rank, and its score.

    The score is a probability if the query was tags, and a cosine in [0, 1] if it was a photograph.
    """

    image: str
    rank: int
    score: float


def open_index(folder: str | Path, root: str | Path | None = None) -> "PhotoIndex":
    """Open an index that ``tagrank index`` or :class:`tagrank.retrieval.IndexWriter` wrote. It is memory-mapped.

    An index may be updated meanwhile: what is opened is the index before or after, and stays as it is while it is open.

    Args:
        folder: the index.
        root: the folder that its photographs' names begin in now, if they were moved. Default: what the index says.

    Raises:
        InputError: there is none, it is damaged, or it has no photographs.
    """
    folder = Path(folder)
    contents = read_contents(folder)
    while True:
        if sum(contents.shards) == len(contents.removed):
            raise InputError(f"{folder}: the index has no photographs yet")
        try:
            shards = [Shard(folder, number, count, contents) for number, count in enumerate(contents.shards)]
        except InputError:
            before, contents = contents, read_contents(folder)
            if contents == before:
                raise
            continue  # an update deleted the shards between two looks
        return PhotoIndex(folder, contents, shards, root)


class PhotoIndex:
    """An index of photographs to search. Made by :func:`open_index`.

    Attributes:
        folder: the folder of the index.
        tags: the tags that a query may have.
        positions: how many tags a query may have.
        root: the folder that names begin in if they are relative paths; None if that is not known.
        model: digest of the model with which it was made.
    """

    def __init__(
        self, folder: Path, contents: Contents, shards: Sequence[Shard], root: str | Path | None = None
    ) -> None:
        self.folder = folder
        root = contents.root if root is None else root
        self.root = None if root is None else Path(root)
        self.tags = contents.tags
        self.positions = contents.positions
        self.model = contents.model
        self._shards = shards
        self._starts = np.cumsum([0, *contents.shards])
        self._removed = frozenset(contents.removed)
        self._kept = np.delete(np.arange(self._starts[-1]), contents.removed) if contents.removed else None
        self._vocabulary = Vocabulary(contents.tags)

    def __len__(self) -> int:
        return int(self._starts[-1]) - len(self._removed)

    def path(self, name: str) -> Path:
        """Where a photograph of the index is, by its name."""
        return Path(name) if self.root is None else self.root / name

    def search(self, tags: Sequence[str], *, ordered: bool = True, top_k: int = 20) -> list[Match]:
        """Find the photographs whose lists most likely start with these tags.

        Args:
            tags: the query: distinct tags of the model, at most :attr:`positions`.
            ordered: whether the list must start with the tags in this order. If not, the probability is the sum over
                all orders.
            top_k: how many photographs to return.

        Returns:
            The photographs by decreasing probability; ties are in the order of the index.

        Raises:
            InputError: the query is empty, has more than :attr:`positions` tags or (in any order) more than
                :data:`MOST_UNORDERED`, a tag twice, or a tag that the model does not have.
        """
        return self._best(self.scores(tags, ordered=ordered), top_k)

    def scores(self, tags: Sequence[str], *, ordered: bool = True) -> Scores:
        """The score of each photograph in :meth:`search`: float64 ``[N]``, in the order of the index."""
        numbers = self._query(tags)
        if not ordered and len(numbers) > MOST_UNORDERED:
            raise InputError(f"query: expected at most {MOST_UNORDERED} tags in any order, got {len(numbers)}")
        columns = list(enumerate(numbers)) if ordered else list(product(range(len(numbers)), numbers))
        # The columns of all shards are requested before the first is waited for.
        for shard in self._shards:
            shard.fetch(*zip(*columns, strict=True))
        if ordered:
            return np.exp(self._over_shards(lambda shard: in_order([shard.log_p(t, tag) for t, tag in columns])))
        return self._over_shards(lambda shard: in_any_order(_square(shard, numbers)))

    def similar(self, gains: HalfArray, top_k: int = 20) -> list[Match]:
        """Find the photographs whose lists are expected to be most similar to another photograph's list.

        The similarity is the cosine of expected gains, ``sum_t w_t P(list reaches t) p_t(v)`` for each tag ``v``. The
        earlier a tag comes in both lists, the more it counts.

        Args:
            gains: float16 ``[V]``, the other photograph's, from :meth:`gains` or :meth:`gains_of`.
            top_k: how many photographs to return.
        """
        query = gains.astype(np.float32)
        for shard in self._shards:
            shard.fetch_gains()
        found = self._best(self._over_shards(lambda shard: _products(shard.gains(), query)), top_k)
        # Rounding to float16 makes lengths differ from 1 and scores exceed 1. They are clipped after the sort: before,
        # clipping would make ties.
        return [match._replace(score=min(match.score, 1.0)) for match in found]

    def gains(self, name: str) -> HalfArray:
        """The expected gains, float16 ``[V]``, of a photograph in the index, scaled to length 1.

        Raises:
            InputError: the photograph is not in the index.
        """
        place = self._find(name)
        if place is None:
            raise InputError(f"{self.folder}: no photograph {name!r} in this index")
        number, row = place
        row_gains: HalfArray = self._shards[number].gains()[row]
        return row_gains

    def gains_of(self, annotator: "Annotator", features: "Tensor") -> HalfArray:
        """The expected gains, float16 ``[V]``, of a photograph that need not be in the index, scaled to length 1.

        Args:
            annotator: the model that the index was made with.
            features: ``[D]``, of the photograph.

        Raises:
            InputError: the index was made with another model.
        """
        if model_digest(annotator.ranker, annotator.vocabulary.tags) != self.model:
            raise InputError(f"{self.folder}: the index was made with another model")
        _, gains = photo_tables(annotator.probabilities(features.unsqueeze(0)))
        photo: HalfArray = gains[0]
        return photo

    def names(self) -> list[str]:
        """The names of all photographs, in the order of the index."""
        names = (name for shard in self._shards for name in shard.names())
        return [name for row, name in enumerate(names) if row not in self._removed]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def _find(self, name: str) -> tuple[int, int] | None:
        """A photograph's shard number and its row number in the shard; None if it is not in the index."""
        for shard in self._shards:
            shard.fetch_names()
        for number, shard in enumerate(self._shards):
            row = shard.row(name)
            if row is not None and row + int(self._starts[number]) not in self._removed:
                return number, row
        return None

    def _locate(self, row: int) -> tuple[int, int]:
        """The shard number and the row number in the shard of a photograph, by its number among all."""
        row = row if self._kept is None else int(self._kept[row])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - int(self._starts[number])

    def _query(self, tags: Sequence[str]) -> list[int]:
        if not 1 <= len(tags) <= self.positions:
            raise InputError(f"query: expected 1 to {self.positions} tags, got {len(tags)}")
        for tag in tags:
            if tag not in self._vocabulary:
                meant = did_you_mean(tag, self.tags)
                raise InputError(f"query: {tag!r} is not one of the {len(self.tags)} tags of this index{meant}")
        numbers = self._vocabulary.encode(tags)
        if len(set(numbers)) < len(tags):
            raise InputError(f"query: expected each tag once, got {', '.join(tags)}")
        return numbers

    def _over_shards(self, score: Callable[[Shard], Scores]) -> Scores:
        scores = np.concatenate([score(shard) for shard in self._shards])
        return scores if self._kept is None else scores[self._kept]

    def _best(self, scores: Scores, top_k: int) -> list[Match]:
        if top_k < 1:
            raise InputError(f"top_k: expected at least 1, got {top_k}")
        top_k = min(top_k, len(scores))
        # Every photograph with at least the top_k-th best score is sorted, so that ties do not depend on the partition.
        least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        rows = np.flatnonzero(scores >= least)
        rows = rows[np.argsort(-scores[rows], kind="stable")][:top_k]
        found = [(*self._locate(int(row)), float(scores[row])) for row in rows]
        return [Match(self._shards[n].name(row), rank, score) for rank, (n, row, score) in enumerate(found, 1)]


def _products(gains: HalfArray, query: NDArray[np.float32]) -> Scores:
    """``gains @ query``. torch converts from float16 three times as fast as NumPy, but is not imported for it."""
    if sys.modules.get("torch") is None:
        return (gains.astype(np.float32) @ query).astype(np.float64)
    import torch

    products: Scores = (torch.from_numpy(gains).float() @ torch.from_numpy(query)).double().numpy()
    return products


def _square(shard: Shard, tags: Sequence[int]) -> HalfArray:
    """``log_p`` of ``k`` tags at the first ``k`` positions, ``[k, k, n]``."""
    return np.stack([np.stack([shard.log_p(t, tag) for tag in tags]) for t in range(len(tags))])


def in_order(columns: Sequence[HalfArray]) -> Scores:
    """Log probabilities ``[n]`` that lists start with tags in this order, from ``log_p_t`` ``[n]`` of each tag."""
    total = columns[0].astype(np.float64)
    for column in columns[1:]:
        total += column
    return total


def in_any_order(log_p: HalfArray) -> Scores:
    """Probabilities ``[n]`` that lists start with ``k`` tags in any order, from ``log_p`` ``[k, k, n]`` of these tags.

    This sum over all orders is the permanent of the ``k x k`` table of tags and positions. It is built up from subsets
    ``C`` of the tags. Lists start with the tags of ``C``, in any order, with the probability
    ``P(C) = sum over tags c in C of P(C without c) p_|C|(c)``. That takes ``k 2^(k-1)`` products instead of ``k k!``.
    """
    k = len(log_p)
    p = np.exp(log_p.astype(np.float64))
    starts: dict[tuple[int, ...], Scores] = {(): np.ones(p.shape[2])}
    for size in range(1, k + 1):
        starts = {
            chosen: sum(
                (starts[chosen[:i] + chosen[i + 1 :]] * p[size - 1, last] for i, last in enumerate(chosen)),
                start=np.zeros(p.shape[2]),
            )
            for chosen in combinations(range(k), size)
        }
    return starts[tuple(range(k))]
