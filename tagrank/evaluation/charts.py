"""Learning curves as SVG geometry: lines, ticks and labels of each chart, in the chart's own units."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_LEFT, _TOP, _BOTTOM = 40, 26, 200
"""Edges of the plot, in the units of a chart's view box, which is 400 wide and 232 high."""


def draw_charts(history: Sequence[Mapping[str, float]]) -> list[dict[str, object]]:
    """The charts of a training history, each as the template ``report.html.j2`` draws it.

    Args:
        history: as for :func:`tagrank.evaluation.report_html.write_report`.

    Returns:
        The losses and the validation NDCG@5. A chart without a finite number is left out.
    """
    charts = [
        _chart("Loss, in nats", history, {"training": "train_loss", "validation": "val_loss"}, right=274, digits=2),
        _chart("Validation NDCG@5", history, {"": "val_ndcg@5"}, right=338, digits=3, mark_best=True),
    ]
    return [chart for chart in charts if chart]


def _chart(
    title: str,
    history: Sequence[Mapping[str, float]],
    series: Mapping[str, str],
    *,
    right: int,
    digits: int,
    mark_best: bool = False,
) -> dict[str, object] | None:
    """The geometry of a line chart over epochs, or ``None`` if no value is finite.

    Args:
        title: the caption.
        history: one mapping per epoch.
        series: the key in ``history`` of each line, by the line's name.
        right: the right edge of the plot. The last value of each line is written to the right of this edge.
        digits: decimal places of these values.
        mark_best: whether to mark the highest value.
    """
    lines = {name: [(row["epoch"], row.get(key, math.nan)) for row in history] for name, key in series.items()}
    there = [point for line in lines.values() for point in line if math.isfinite(point[1])]
    if not there:
        return None
    first, last = min(x for x, _ in there), max(x for x, _ in there)
    y_ticks = _ticks(min(y for _, y in there), max(y for _, y in there))

    def across(epoch: float) -> float:
        share = (epoch - first) / (last - first) if last > first else 0.5
        return round(_LEFT + share * (right - _LEFT), 1)

    def up(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(_BOTTOM - share * (_BOTTOM - _TOP), 1)

    drawn: list[dict[str, Any]] = []
    for name, line in lines.items():
        finite = [point for point in line if math.isfinite(point[1])]
        if not finite:
            continue
        # A value that is missing or not finite leaves a gap. "h0", a line of length 0, makes a lone point visible.
        pen, path = "M", ""
        for epoch, value in line:
            if math.isfinite(value):
                path += f"{pen}{across(epoch)} {up(value)}" + ("h0" if pen == "M" else "")
            pen = "L" if math.isfinite(value) else "M"
        x, y = across(finite[-1][0]), up(finite[-1][1])
        drawn.append({"name": name, "path": path, "x": x, "y": y, "at": y, "value": f"{finite[-1][1]:.{digits}f}"})
    if len(drawn) == 2:
        upper, lower = sorted(drawn, key=lambda line: line["y"])
        apart = max(0.0, 15 - (lower["y"] - upper["y"])) / 2
        upper["at"], lower["at"] = upper["y"] - apart, lower["y"] + apart
    best = max(there, key=lambda point: point[1]) if mark_best else None
    inner = [tick for tick in _ticks(first, last) if tick == int(tick) and tick <= last]
    epochs = [first, *(tick for tick in inner if across(tick) - across(first) > 20)]
    return {
        "title": title,
        "left": _LEFT,
        "right": right,
        "bottom": _BOTTOM,
        "lines": drawn,
        "x_ticks": [(across(tick), f"{tick:.0f}") for tick in epochs],
        "y_ticks": [(up(tick), f"{tick:.10g}") for tick in y_ticks],
        "best": best and {"x": across(best[0]), "y": up(best[1]), "text": f"best {best[1]:.3f}, epoch {best[0]:.0f}"},
    }


def _ticks(low: float, high: float) -> list[float]:
    """About four to seven round numbers, the first at most ``low`` and the last at least ``high``."""
    spread = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= spread / 5)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 12) for n in range(start, max(stop, start + 1) + 1)]
