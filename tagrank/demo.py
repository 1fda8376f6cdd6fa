"""The whole way on drawn scenes: pictures, training end to end, baselines, report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagrank.annotator import Annotator
from tagrank.data.labelled import LabelledImages, load_labelled
from tagrank.data.manifest import read_manifest
from tagrank.data.scenes import write_scenes
from tagrank.evaluation import Row, evaluate, evaluate_baselines
from tagrank.metrics import evaluate_rankings
from tagrank.runs import read_history, train, training_part
from tagrank.tables import COLUMNS


def run_demo(out: Path, *, scenes: int = 4000, seed: int = 0, progress: bool = True) -> tuple[list[Row], Path]:
    """Train on drawn scenes and compare.

    Args:
        out: folder for the pictures, the model and the report; what an earlier demo left there is replaced.
        scenes: how many pictures; a tenth each for validation and test.
        seed: decides all that is drawn at random.
        progress: show progress bars, on stderr.

    Returns:
        The table's rows, ours first, and the path of the report.
    """
    manifest = read_manifest(write_scenes(out / "scenes", scenes, seed))
    annotator = train(
        manifest.path,
        out / "model",
        backbone="small_cnn",
        preset="scenes",
        seed=seed,
        overwrite=True,
        progress=progress,
    )
    train_images, images = (
        load_labelled(part, backbone=annotator.backbone(), progress=progress)
        for part in (training_part(manifest), manifest.select("test"))
    )
    rows = [evaluate(annotator, images)]
    rows += evaluate_baselines(annotator, train_images, images, seed=seed, progress=progress)
    report = out / "report.html"
    write_model_report(report, annotator, images, rows, read_history(out / "model"), root=manifest.root)
    return rows, report


def write_model_report(
    path: Path,
    annotator: Annotator,
    images: LabelledImages,
    rows: Sequence[Mapping[str, Any]],
    history: Sequence[Mapping[str, float]],
    *,
    root: Path,
    decoder: str | None = None,
    examples: int = 48,
) -> None:
    """Write the report of a model: see :func:`tagrank.report.write_report`.

    Args:
        path: the HTML file.
        annotator: the model.
        images: what it was judged by.
        rows: the table, the model's row first.
        history: metrics by epoch; may be empty.
        root: the folder of the pictures. Those that are not there are not shown.
        decoder: as for :meth:`Annotator.rank`.
        examples: how many pictures to show, evenly spaced over the set.
    """
    from tagrank.report import ReportExample, write_report

    there = [i for i, example in enumerate(images.examples) if (root / example.image).is_file()]
    shown = images.take([there[i * len(there) // examples] for i in range(min(examples, len(there)))])
    decoder = annotator.check_decoder(decoder)
    cards = []
    if len(shown):
        rankings = annotator.rank(shown.inputs, decoder=decoder)
        references = shown.references(annotator.vocabulary)
        scores = evaluate_rankings([r.tags for r in rankings], references, ks=(5,))["ndcg@5"].tolist()
        for example, ranking, ndcg in zip(shown.examples, rankings, scores, strict=True):
            image = root / example.image
            cards.append(
                ReportExample(example.image, image, annotator.tags(ranking), example.tags, example.lists, ndcg)
            )
    spec = annotator.backbone_spec
    summary = {
        "model": f"image at {annotator.ranker.conditioning.replace('_', ' ')}, H = {annotator.ranker.hidden_size}",
        "backbone": "unknown" if spec is None else ", ".join(spec.values()),
        "decoder": decoder.replace("_", " "),
        "vocabulary": f"{len(annotator.vocabulary)} tags",
        "judged by": f"{len(images)} images",
    }
    columns = [{key: row[key] for key in ("name", *COLUMNS) if key in row} for row in rows]
    write_report(path, title="Ranked tags", summary=summary, rows=columns, history=history, examples=cards)
