"""The demonstration on drawn scenes: pictures, training end to end, baselines, report."""

from pathlib import Path

from tagrank.data.manifest import read_manifest
from tagrank.data.scenes import write_scenes
from tagrank.evaluation.baseline_rows import evaluate_baselines
from tagrank.evaluation.judgement import Row, judge
from tagrank.evaluation.report import write_model_report
from tagrank.features.labelled import load_labelled
from tagrank.training.run import train
from tagrank.training.run_folder import read_history
from tagrank.training.splits import training_part


def run_demo(out: Path, *, scenes: int = 4000, seed: int = 0, progress: bool = True) -> tuple[list[Row], Path]:
    """Train on drawn scenes and compare.

    Args:
        out: folder for the pictures, the model and the report; the results of an earlier demo there are replaced.
        scenes: how many pictures to draw; a tenth of them for validation and a tenth for the test.
        seed: of all random choices.
        progress: show progress bars on stderr.

    Returns:
        The rows of the table, our model first, and the path of the report.
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
    ours = judge(annotator, images)
    baselines = evaluate_baselines(annotator, train_images, images, seed=seed, progress=progress)
    report = out / "report.html"
    write_model_report(report, annotator, images, ours, baselines, read_history(out / "model"), root=manifest.root)
    return [ours.row(), *baselines], report
