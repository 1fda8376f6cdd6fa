"""Where a model's rankings go wrong."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class OrderConfusion(NamedTuple):
    """A pair of tags that people put in one order, and the model in the other.

    Attributes:
        first: the tag that people put first.
        second: the tag that people put after it.
        wrong: images where the model has ``second`` before ``first``.
        total: images where people have ``first`` before ``second`` and the model has both.
    """

    first: int
    second: int
    wrong: int
    total: int


def order_confusions(
    rankings: Sequence[Sequence[int]], references: Sequence[Sequence[int]], top: int = 15
) -> list[OrderConfusion]:
    """The pairs of tags that a model most often puts in the wrong order.

    Args:
        rankings: one list of distinct tag indices per image, the best first.
        references: people's list for each image.
        top: return at most this many pairs.

    Returns:
        Pairs sorted by the number of images in the wrong order, descending; ties by the share of wrong images,
        descending, then by index. Both directions of a pair may occur.
    """
    wrong: Counter[tuple[int, int]] = Counter()
    total: Counter[tuple[int, int]] = Counter()
    for ranking, reference in zip(rankings, references, strict=True):
        place = {tag: position for position, tag in enumerate(ranking)}
        shared = [tag for tag in reference if tag in place]
        for i, first in enumerate(shared):
            for second in shared[i + 1 :]:
                total[first, second] += 1
                wrong[first, second] += place[second] < place[first]
    pairs = [OrderConfusion(*pair, count, total[pair]) for pair, count in wrong.items() if count]
    return sorted(pairs, key=lambda c: (-c.wrong, c.total, c.first, c.second))[:top]
