from math import isclose, sqrt

import pytest

from tagrank.data.sets.importance import Seen, rank_by_importance


def importance(seen: list[Seen]) -> float:
    """The documented formula, for the objects of one name."""
    area = sum(thing.area for thing in seen)
    distances = [sqrt((thing.x - 0.5) ** 2 + (thing.y - 0.5) ** 2) / sqrt(0.5) for thing in seen]
    centrality = 1 - sum(thing.area * d for thing, d in zip(seen, distances, strict=True)) / area
    return sqrt(min(1, area)) * (0.4 + 0.6 * centrality)


def test_size_and_place() -> None:
    small, large = Seen("small", 0.04, 0.5, 0.5), Seen("large", 0.09, 0.5, 0.5)
    assert rank_by_importance([small, large]) == ("large", "small")
    corner, middle = Seen("corner", 0.09, 0.0, 0.0), Seen("middle", 0.02, 0.5, 0.5)
    # corner: sqrt(0.09) * 0.4 = 0.12; middle: sqrt(0.02) * 1 = 0.14.
    assert rank_by_importance([corner, middle]) == ("middle", "corner")
    assert rank_by_importance([]) == ()


def test_objects_of_one_name_add_up() -> None:
    sheep = [Seen("sheep", 0.03, 0.2, 0.6), Seen("sheep", 0.02, 0.8, 0.6), Seen("sheep", 0.01, 0.5, 0.9)]
    assert isclose(importance(sheep), 0.176320, rel_tol=1e-5)
    # The dog is in the centre, so its importance is sqrt(area), and 0.176320 ** 2 = 0.031089.
    assert rank_by_importance([Seen("dog", 0.0312, 0.5, 0.5), *sheep]) == ("dog", "sheep")
    assert rank_by_importance([Seen("dog", 0.0310, 0.5, 0.5), *sheep]) == ("sheep", "dog")


def test_ties_and_nothing() -> None:
    assert rank_by_importance([Seen("b", 0.1, 0.5, 0.5), Seen("a", 0.1, 0.5, 0.5)]) == ("a", "b")
    assert rank_by_importance([Seen("flat", 0.0, 0.5, 0.5), Seen("z", 1e-6, 0, 0)]) == ("z", "flat")


@pytest.mark.parametrize("area", [1.0, 3.0])
def test_more_than_the_whole_image_counts_as_the_whole(area: float) -> None:
    floor = [Seen("floor", area / 2, 0.5, 0.6)] * 2
    whole = Seen("a whole", 1.0, 0.5, 0.6)
    assert rank_by_importance([*floor, whole]) == ("a whole", "floor")
