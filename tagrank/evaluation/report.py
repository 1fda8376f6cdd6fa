"""The report of a model: table, learning curves, mistakes, and photographs with its lists beside people's lists."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tagrank.annotator import Annotator
from tagrank.decode import OutputTags, Ranking
from tagrank.errors import InputError
from tagrank.evaluation.judgement import KS, Judgement, Row
from tagrank.evaluation.report_html import OrderMistake, ReportExample, write_report
from tagrank.evaluation.tables import COLUMNS, CONTEST_COLUMNS
from tagrank.features.familiarity import UNKNOWN
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import order_confusions


def write_model_report(
    path: Path,
    annotator: Annotator,
    images: LabelledImages,
    ours: Judgement,
    baselines: Sequence[Row],
    history: Sequence[Mapping[str, float]],
    *,
    root: Path,
    row: Row | None = None,
    examples: int = 48,
    worst: int = 12,
    judged_by: str = "",
    seen: int = 0,
    on_error: Callable[[Path, InputError], None] | None = None,
    **options: Any,
) -> None:
    """Write the report of a model: see :func:`tagrank.evaluation.report_html.write_report`.

    Args:
        path: the HTML file.
        annotator: the model.
        images: the images that it was judged by.
        ours: its judgement.
        baselines: the other rows of the table.
        history: metrics by epoch; may be empty.
        root: the folder of the pictures. If none is there, no images are shown.
        row: our row of the table; by default that of the judgement.
        examples: the largest number of images to show, evenly spaced over those whose pictures are there.
        worst: the largest number of images with the lowest NDCG@5 of all to show, with or without their pictures.
        judged_by: which images these are; default: their number.
        seen: how many of them the model was trained or validated on.
        on_error: as for :func:`tagrank.evaluation.report_html.write_report`.
        **options: keyword arguments of :meth:`Annotator.rank`, the same as for the judgement.
    """
    output: OutputTags | None = options.get("output")
    named = images if output is None else images.renamed(output.rename)
    tag = (annotator.vocabulary if output is None else output.vocabulary).tag

    unlike = annotator.unlike(images.inputs)

    def cards(rows: Sequence[int]) -> list[ReportExample]:
        """The examples of some rows, with the lists that were judged."""
        inputs = images.inputs[list(rows)]
        shown = []
        for row, own, scored in zip(
            rows, annotator.rank(inputs, **options), annotator.rank(inputs, top_k=max(KS), **options), strict=True
        ):
            example, judged = named.examples[row], list(ours.rankings[row])
            picture = root / example.image
            # In another batch a tie may be broken differently. A judged tag may then have no score here.
            scores = dict(zip(scored.tags, scored.scores, strict=True))
            shown.append(
                ReportExample(
                    example.image,
                    picture if picture.is_file() else None,
                    annotator.tags(Ranking(judged, [scores.get(v, math.nan) for v in judged]), output),
                    example.tags,
                    example.lists,
                    float(ours.per_image["ndcg@5"][row]),
                    beyond=[tag(v) for v in judged if v not in own.tags],
                    unlike=float(unlike[row]),
                )
            )
        return shown

    there = [i for i, example in enumerate(images.examples) if (root / example.image).is_file()]
    count = min(examples, len(there))
    spread = [there[i * len(there) // count] for i in range(count)]
    by_score = sorted(range(len(images)) if there else (), key=lambda i: float(ours.per_image["ndcg@5"][i]))
    spec = annotator.backbone_spec
    summary = {
        "model": f"image at {annotator.ranker.conditioning.replace('_', ' ')}, H = {annotator.ranker.hidden_size}",
        "backbone": "unknown" if spec is None else ", ".join(spec.values()),
        "decoder": annotator.check_decoder(options.get("decoder")).replace("_", " "),
        "vocabulary": f"{len(annotator.vocabulary)} tags",
        "judged by": judged_by or f"{len(images)} images",
    }
    if annotator.familiarity is not None:
        summary["unlike the training photographs"] = f"{int((unlike >= UNKNOWN).sum())} of {len(images)} images"
    keys = dict.fromkeys(("name", *COLUMNS, *CONTEST_COLUMNS))
    rows = [{key: row[key] for key in keys if key in row} for row in (row or ours.row(), *baselines)]
    mistakes = [
        OrderMistake(tag(c.first), tag(c.second), c.wrong, c.total)
        for c in order_confusions(ours.rankings, ours.references)
    ]
    write_report(
        path,
        title="Ranked tags",
        summary=summary,
        rows=rows,
        history=history,
        examples=cards(spread),
        worst=cards(by_score[:worst]),
        confusions=mistakes,
        calibration=ours.calibration,
        judged=len(images),
        seen=seen,
        on_error=on_error,
    )
