"""An order for annotated objects that nobody put in order."""

from collections import defaultdict
from collections.abc import Iterable
from math import hypot, sqrt
from typing import NamedTuple


class Seen(NamedTuple):
    """One object in an image.

    Attributes:
        name: what it is.
        area: the part of the image that it covers, in [0, 1].
        x: the middle of its box, from 0 at the image's left edge to 1 at its right.
        y: the same from top to bottom.
    """

    name: str
    area: float
    x: float
    y: float


def rank_by_importance(objects: Iterable[Seen]) -> tuple[str, ...]:
    """The names of an image's objects, the most important first.

    For a name whose objects cover the parts ``a_i`` of the image, with middles at the distances ``d_i`` from the
    image's own (in units of half its diagonal, after both sides are scaled to 1)::

        area = min(1, sum_i a_i)        centrality = 1 - sum_i a_i d_i / sum_i a_i
        importance = sqrt(area) * (0.4 + 0.6 * centrality)

    Size and place are what predicts best which objects people mention (Berg et al., "Understanding and predicting
    importance in images", 2012). Objects may overlap, which the sum does not see. Ties are in alphabetical order.
    """
    areas: defaultdict[str, float] = defaultdict(float)
    offsets: defaultdict[str, float] = defaultdict(float)
    for name, area, x, y in objects:
        areas[name] += area
        offsets[name] += area * hypot(x - 0.5, y - 0.5) / hypot(0.5, 0.5)

    def importance(name: str) -> float:
        area = areas[name]
        return sqrt(min(1.0, area)) * (1.0 - 0.6 * offsets[name] / area) if area else 0.0

    return tuple(sorted(areas, key=lambda name: (-importance(name), name)))
