"""The report of a model: table, learning curves, mistakes, and photographs with the model's and people's lists."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tagrank.annotator import Annotator
from tagrank.decode import OutputTags, Ranking
from tagrank.errors import InputError
from tagrank.evaluation.judgement import KS, Judgement, Row
from tagrank.evaluation.report_html import OrderMistake, ReportExample, write_report
from tagrank.evaluation.tables import COLUMNS
from tagrank.features.labelled import LabelledImages
from tagrank.metrics.mistakes import order_confusions


def write_model_report(
    path: Path,
    annotator: Annotator,
    images: LabelledImages,
    ours: Judgement,
    baselines: Sequence[Row],
    history: Sequence[Mapping[str, float]],
    *,
    root: Path,
    examples: int = 48,
    worst: int = 12,
    on_error: Callable[[Path, InputError], None] | None = None,
    **options: Any,
) -> None:
    """Write the report of a model: see :func:`tagrank.evaluation.report_html.write_report`.

    Args:
        path: the HTML file.
        annotator: the model.
        images: the images that judged the model.
        ours: the judgement.
        baselines: more rows of the table.
        history: metrics by epoch; may be empty.
        root: the folder of the pictures. Pictures that are not there are not shown.
        examples: how many pictures to show, evenly spaced over ``images``.
        worst: how many of the pictures with the worst lists to show.
        on_error: as for :func:`tagrank.evaluation.report_html.write_report`.
        **options: the options of :meth:`Annotator.rank` that the judgement was made with.
    """
    output: OutputTags | None = options.get("output")
    named = images if output is None else images.renamed(output.rename)
    tag = (annotator.vocabulary if output is None else output.vocabulary).tag

    def cards(rows: Sequence[int]) -> list[ReportExample]:
        """Cards for some pictures, with the lists that were judged."""
        inputs = images.inputs[list(rows)]
        shown = []
        for row, own, scored in zip(
            rows, annotator.rank(inputs, **options), annotator.rank(inputs, top_k=max(KS), **options), strict=True
        ):
            example, judged = named.examples[row], list(ours.rankings[row])
            # Ranked in another batch, ties may break differently: a judged tag may then have no score here.
            scores = dict(zip(scored.tags, scored.scores, strict=True))
            shown.append(
                ReportExample(
                    example.image,
                    root / example.image,
                    annotator.tags(Ranking(judged, [scores.get(v, math.nan) for v in judged]), output),
                    example.tags,
                    example.lists,
                    float(ours.per_image["ndcg@5"][row]),
                    beyond=[tag(v) for v in judged if v not in own.tags],
                )
            )
        return shown

    there = [i for i, example in enumerate(images.examples) if (root / example.image).is_file()]
    count = min(examples, len(there))
    spread = [there[i * len(there) // count] for i in range(count)]
    by_score = sorted(there, key=lambda i: float(ours.per_image["ndcg@5"][i]))
    spec = annotator.backbone_spec
    summary = {
        "model": f"image at {annotator.ranker.conditioning.replace('_', ' ')}, H = {annotator.ranker.hidden_size}",
        "backbone": "unknown" if spec is None else ", ".join(spec.values()),
        "decoder": annotator.check_decoder(options.get("decoder")).replace("_", " "),
        "vocabulary": f"{len(annotator.vocabulary)} tags",
        "judged by": f"{len(images)} images",
    }
    rows = [{key: row[key] for key in ("name", *COLUMNS) if key in row} for row in (ours.row(), *baselines)]
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
        on_error=on_error,
    )
