"""An evaluation as one HTML file that opens anywhere: the table, the learning curves, and images with their tags.

The file refers to nothing outside of it: styles and charts are inline, thumbnails are data URIs, there is no script.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from tagrank.data.files import reason, write_atomically
from tagrank.decode import RankedTag
from tagrank.errors import InputError
from tagrank.evaluation.charts import draw_charts
from tagrank.evaluation.reliability_chart import draw_reliability
from tagrank.evaluation.thumbnails import thumbnail
from tagrank.features.familiarity import UNKNOWN
from tagrank.metrics import Reliability

THUMBNAIL = 320
"""The longest side of a thumbnail, in pixels."""

THUMBNAIL_BYTES = 32 * 1024
"""A thumbnail with more bytes is compressed again with a lower quality."""

MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class ReportExample:
    """An image, what the model says about it, and what people said.

    Attributes:
        name: the caption, also used in the alternative text.
        image: the picture or its file; None if it is not there.
        predicted: the model's tags, the most important first.
        reference: people's lists merged into one, the most important tag first.
        lists: what each person said.
        ndcg: NDCG@5 of ``predicted`` against ``reference``; NaN if there is none.
        beyond: the tags of ``predicted`` that are judged, but not on the list whose length the model chooses.
        unlike: how unlike the training photographs it is, in [0, 1); NaN if that is not known.
    """

    name: str
    image: Image.Image | Path | None
    predicted: Sequence[RankedTag]
    reference: Sequence[str]
    lists: Sequence[Sequence[str]]
    ndcg: float
    beyond: Sequence[str] = ()
    unlike: float = math.nan


@dataclass(frozen=True)
class OrderMistake:
    """Two tags that the model lists in the opposite order to people.

    Attributes:
        first: the tag that people put first.
        second: the tag that the model put first.
        wrong: the number of images, among ``total``, for which the model puts ``second`` first.
        total: the number of images for which people put ``first`` before ``second`` and the model has both.
    """

    first: str
    second: str
    wrong: int
    total: int


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Mapping[str, str],
    rows: Sequence[Mapping[str, float | str]],
    history: Sequence[Mapping[str, float]],
    examples: Sequence[ReportExample],
    worst: Sequence[ReportExample] = (),
    confusions: Sequence[OrderMistake] = (),
    calibration: Reliability | None = None,
    judged: int | None = None,
    seen: int = 0,
    on_error: Callable[[Path, InputError], None] | None = None,
) -> None:
    """Write the report as a whole or not at all: after an error, an existing file is as it was.

    Args:
        path: the HTML file; missing folders above it are made.
        title: the heading.
        summary: what was evaluated and how (model, data, decoder, seed), in the order shown.
        rows: the table, our model first, then the models to compare it with. Each row has a ``"name"``, and means over
            the images under the names of :mod:`tagrank.metrics` (``"ndcg@5"``, ``"first_tag"``, ``"nll"`` in nats ...).
            A measure that a row lacks, or that is NaN, is shown as a dash.
        history: one mapping per epoch, ``"epoch"`` from 1 with any of ``"train_loss"`` and ``"val_loss"`` (nats) and
            ``"val_ndcg@5"``. If it is empty, the report has no learning curves.
        examples: the images, in the order shown.
        worst: the images that the model is most wrong about, of all that judge it, the worst first.
        confusions: pairs of tags in the wrong order, the most frequent first.
        calibration: of the scores of our model's tags; None if they have none.
        judged: how many images judge the model; None if that is not known.
        seen: how many of them the model was trained or validated on.
        on_error: called with the path of an image that cannot be read, and the error. The image is then shown without
            its picture. If ``on_error`` is left out, the error is raised.

    Raises:
        InputError: the report cannot be written, or an image cannot be read and there is no ``on_error``. The message
            names the file.
        ValueError: ``rows`` is empty or a row has no name.
    """
    if not rows or not all(row.get("name") for row in rows):
        raise ValueError(f"rows: expected at least our model, and a 'name' in each row; got {list(rows)}")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(
        files("tagrank.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    html = template.render(
        title=title,
        summary=summary,
        table=_table(rows),
        bars=_bars(rows),
        charts=draw_charts(history),
        calibration=None if calibration is None else draw_reliability(calibration),
        cards=[_card(example, on_error) for example in examples],
        worst=[_card(example, on_error) for example in worst],
        confusions=[{**vars(pair), "share": f"{pair.wrong / pair.total:.0%}"} for pair in confusions],
        judged=judged,
        seen=seen,
        missing=MISSING,
    )
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: cannot write the report: this is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In Python, file names that are not UTF-8 have lone surrogates, which UTF-8 cannot encode.
        write_atomically(path, [html.encode("utf-8", "replace")])
    except OSError as error:
        raise InputError(f"{path}: cannot write the report: {reason(error)}") from error


@dataclass(frozen=True)
class _Measure:
    label: str
    meaning: str
    digits: int = 3
    best: int = 1
    """Which value is the best: 1, the highest; -1, the lowest; 0, not known."""


_MEASURES = {
    "ndcg": _Measure("NDCG", "how well the first {k} tags agree with people’s order; 1 is that order itself"),
    "first_tag": _Measure("First tag", "share of images for which the first tag is people’s first tag"),
    "precision": _Measure("Precision", "share of the first {k} tags that are on people’s list"),
    "recall": _Measure("Recall", "share of people’s list found among the first {k} tags"),
    "f1": _Measure("F1", "harmonic mean of precision and recall of the first {k} tags"),
    "rbo": _Measure("RBO", "rank-biased overlap with people’s list, persistence 0.9; 1 is that list itself"),
    "kendall_tau": _Measure("Tau", "Kendall’s tau of the tags on both lists; 1 is people’s order, -1 its reverse"),
    "overlap": _Measure("Shared", "number of tags on both lists, from which tau is computed", 2),
    "list_f1": _Measure("List F1", "which tags are on a list that ends at a threshold: F1 with each person’s list"),
    "length_error": _Measure(
        "Length off", "number of tags by which this list is longer or shorter; lower is better", 2, -1
    ),
    "next_tag": _Measure("Tag", "share of lists whose tag at place {k} is found, given the tags before it"),
    "nll": _Measure("NLL", "negative log-likelihood of people’s lists, in nats per list; lower is better", 2, -1),
}


def _measure(key: str) -> tuple[int, int, _Measure]:
    """The place of a column (by measure, then by k), and its measure."""
    stem, _, k = key.partition("@")
    known = list(_MEASURES)
    if stem not in known or (k and not re.fullmatch("[0-9]+", k)):
        return len(known), 0, _Measure(key.replace("_", " "), "", best=0)
    return known.index(stem), int(k or 0), _MEASURES[stem]


def _number(value: float | str | None) -> float | None:
    """The value if it is a number, ``None`` if it is missing, NaN or text."""
    return None if value is None or isinstance(value, str) or math.isnan(value) else float(value)


def _table(rows: Sequence[Mapping[str, float | str]]) -> dict[str, object]:
    keys = dict.fromkeys(key for row in rows for key in row if key != "name")
    columns, legend = [], {}
    body: list[list[dict[str, object]]] = [[] for _ in rows]
    for key in sorted(keys, key=lambda key: _measure(key)[:2]):
        _, k, measure = _measure(key)
        at = f"@{k}" if k else ""
        columns.append({"label": measure.label + at, "title": measure.meaning.format(k=k)})
        if measure.meaning:
            legend[measure.label + ("@k" if k else "")] = measure.meaning.format(k="k")
        numbers = [_number(row.get(key)) for row in rows]
        there = [round(number, measure.digits) for number in numbers if number is not None]
        # Numbers that are equal as shown are marked alike. The only value of a column is not marked as the best.
        best = max(there, key=lambda value: measure.best * value) if measure.best and len(there) > 1 else None
        for cells, row, number in zip(body, rows, numbers, strict=True):
            text = row.get(key) if isinstance(row.get(key), str) else _format(number, measure.digits)
            marked = best is not None and number is not None and round(number, measure.digits) == best
            cells.append({"text": text, "best": marked})
    named = [{"name": row["name"], "cells": cells} for row, cells in zip(rows, body, strict=True)]
    return {"columns": columns, "rows": named, "legend": legend}


def _bars(rows: Sequence[Mapping[str, float | str]]) -> dict[str, object] | None:
    """NDCG@5 by row, and the best row apart from our own; ``None`` if our own NDCG@5 is missing."""
    values = [(row["name"], _number(row.get("ndcg@5"))) for row in rows]
    if values[0][1] is None:
        return None
    bars = [{"name": name, "text": _format(v, 3), "percent": _percent(v)} for name, v in values if v is not None]
    first_tag = _number(rows[0].get("first_tag"))
    return {
        "ours": bars[0],
        "rows": bars,
        "rival": max(bars[1:], key=lambda bar: float(bar["text"]), default=None),
        "first_tag": None if first_tag is None else f"{100 * first_tag:.0f}%",
    }


def _format(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _percent(value: float) -> float:
    """The width of a bar for a value in [0, 1]."""
    return round(100 * min(max(value, 0.0), 1.0), 1)


def _card(example: ReportExample, on_error: Callable[[Path, InputError], None] | None) -> dict[str, object]:
    people, named = set(example.reference), {tag.tag for tag in example.predicted}
    tags = []
    for tag in example.predicted:
        score = _number(tag.score)
        text = MISSING if score is None else "<1%" if 0 < score < 0.005 else f"{100 * score:.0f}%"
        percent, beyond = _percent(score or 0.0), tag.tag in example.beyond
        tags.append({"tag": tag.tag, "hit": tag.tag in people, "score": text, "percent": percent, "beyond": beyond})
    lists = [list(tags) for tags in example.lists]
    image = None
    try:
        if example.image is not None:
            image = thumbnail(example.image, THUMBNAIL, THUMBNAIL_BYTES)
    except InputError as error:
        if on_error is None or not isinstance(example.image, Path):
            raise
        on_error(example.image, error)
    return {
        "name": example.name,
        "image": image,
        "unlike": None if math.isnan(example.unlike) else f"{int(100 * example.unlike)}%",
        "unknown": example.unlike >= UNKNOWN,
        "there": example.image is not None,
        "ndcg": _format(_number(example.ndcg), 2),
        "predicted": tags,
        "beyond": bool(example.beyond),
        "reference": [{"tag": tag, "hit": tag in named} for tag in example.reference],
        "lists": [] if lists == [list(example.reference)] else lists,
    }
