"""The demonstration on drawn scenes: pictures, training end to end, a contest with baselines, report."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from tagrank.annotator import Annotator
from tagrank.data.manifest import read_manifest
from tagrank.data.scenes import write_scenes
from tagrank.evaluation.contest import TRIES, contest
from tagrank.evaluation.judgement import Row, judge
from tagrank.evaluation.report import write_model_report
from tagrank.features.labelled import load_labelled
from tagrank.ranker.presets import PRESETS
from tagrank.training.afterwards import complete
from tagrank.training.completing import fit_completer
from tagrank.training.fit import fit_ranker
from tagrank.training.run import train
from tagrank.training.run_folder import read_history

SPLITS: Mapping[str, float] = MappingProxyType({"train": 0.7, "val": 0.1, "test": 0.2})


def run_demo(out: Path, *, scenes: int = 5000, seed: int = 0, progress: bool = True) -> tuple[list[Row], Path]:
    """Draw scenes, train on them, and compare the model with the baselines.

    A backbone and a ranker are trained first, end to end. Then an ensemble of rankers, which takes the ranker's place,
    and a completer learn from the features of the finished backbone, as the baselines do.

    Args:
        out: folder for the pictures, the model and the report. The results of an earlier demo are replaced.
        scenes: the number of pictures. A tenth of them is for validation and a fifth for test.
        seed: of everything that is drawn at random.
        progress: show progress bars, on stderr.

    Returns:
        The rows of the table, our model first, and the path of the report.
    """
    manifest = read_manifest(write_scenes(out / "scenes", scenes, seed, splits=SPLITS))
    first = train(
        manifest.path,
        out / "model",
        backbone="small_cnn",
        preset="scenes",
        completion=False,
        seed=seed,
        overwrite=True,
        progress=progress,
    )
    history = read_history(out / "model")
    train_images, val_images, images = (
        load_labelled(manifest.select(split), backbone=first.backbone(), progress=progress) for split in SPLITS
    )
    # 3,500 images are half of Flickr8k's: smaller batches make up for it with more steps.
    preset = replace(PRESETS["default"], batch_size=32, epochs=TRIES)
    with TemporaryDirectory() as folder:
        ranker = fit_ranker(
            train_images,
            val_images,
            first.vocabulary,
            preset,
            Path(folder),
            seed=seed,
            progress="ensemble" if progress else None,
        )
    completer = fit_completer(train_images, first.vocabulary, PRESETS["default"], seed, progress=progress)
    annotator = Annotator(
        ranker,
        first.vocabulary,
        first.backbone_spec,
        backbone=first.backbone(),
        training=first.training | {"preset": "default", **asdict(preset)},
        completer=completer,
    )
    complete(annotator, train_images, val_images)
    annotator.save(out / "model")
    rows = contest(annotator, train_images, val_images, images, preset, seed=seed, progress=progress)
    report = out / "report.html"
    ours = judge(annotator, images)
    write_model_report(report, annotator, images, ours, rows[1:], history, root=manifest.root, row=rows[0])
    return rows, report
