"""The reliability diagram as SVG geometry, as the template ``report.html.j2`` draws it."""

from tagrank.metrics import Reliability

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 230, 26, 200
"""Edges of the plot, a square, in the units of its view box, which is 266 wide and 232 high."""
_LARGEST, _SMALLEST = 7.0, 2.0
"""Radii of the dots: the area is the share of the tags."""


def draw_reliability(found: Reliability) -> dict[str, object] | None:
    """The geometry of the diagram: what came true against the probability, a dot for each bin. None if it is empty."""
    if not len(found.counts):
        return None
    largest = int(found.counts.max())
    dots = [
        {
            "x": _across(predicted),
            "y": _up(observed),
            "radius": round(max(_SMALLEST, _LARGEST * (count / largest) ** 0.5), 1),
            "title": f"{count} tags with {predicted:.0%} on average: {observed:.0%} were on a person’s list",
        }
        for predicted, observed, count in zip(
            found.predicted.tolist(), found.observed.tolist(), found.counts.tolist(), strict=True
        )
    ]
    return {
        "left": _LEFT,
        "right": _RIGHT,
        "top": _TOP,
        "bottom": _BOTTOM,
        "dots": dots,
        "path": "M" + "L".join(f"{dot['x']} {dot['y']}" for dot in dots),
        "ticks": [(_across(share), _up(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        "error": f"{100 * found.error:.1f}%",
        "count": int(found.counts.sum()),
    }


def _across(share: float) -> float:
    return round(_LEFT + share * (_RIGHT - _LEFT), 1)


def _up(share: float) -> float:
    return round(_BOTTOM - share * (_BOTTOM - _TOP), 1)
