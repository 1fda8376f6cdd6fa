"""``demo``, ``features``, ``train`` and ``env``: up to a trained model."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tagrank.cli.app import (
    BackboneOption,
    FeaturesOption,
    ManifestFile,
    SeedOption,
    WeightsOption,
    command,
)
from tagrank.errors import InputError


class Preset(str, Enum):
    """Names of :data:`tagrank.ranker.presets.PRESETS`."""

    default = "default"
    paper = "paper"
    scenes = "scenes"


class Conditioning(str, Enum):
    """Of :class:`tagrank.TagRanker`."""

    every_step = "every_step"
    initial = "initial"


@command("tagrank demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, model and report.")] = Path("runs/demo"),
    scenes: Annotated[int, typer.Option(help="How many pictures to draw.", min=100)] = 4000,
    seed: SeedOption = 0,
) -> None:
    """Draw scenes, train on them end to end, compare with the baselines, and write a report."""
    from tagrank.demo import run_demo
    from tagrank.evaluation.tables import print_rows

    rows, report = run_demo(out, scenes=scenes, seed=seed)
    print_rows(rows)
    typer.echo(f"report: {report}")


@command("tagrank features photos/ --backbone efficientnet_lite0 --out features/")
def features(
    paths: Annotated[list[Path], typer.Argument(help="Images, folders of them, or a manifest.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The feature store; one that is there is added to.", show_default=False)],
    backbone: BackboneOption = "vgg16",
    weights: WeightsOption = None,
) -> None:
    """Compute the features of images, once and for all.

    Images are stored under their paths relative to the manifest or folder given.
    """
    from tagrank.features.backbones import load_backbone
    from tagrank.features.labelled import named_images, write_features

    if backbone == "small_cnn" and weights is None:
        raise InputError("backbone: small_cnn is trained with a ranker; without trained weights it has no features")
    failed = 0

    def report(path: Path, error: InputError) -> None:
        nonlocal failed
        failed += 1
        typer.echo(f"tagrank: {error}", err=True)

    images = named_images(paths)
    computed = write_features(load_backbone(backbone or "vgg16", weights), images, out, on_error=report)
    typer.echo(f"{out}: {computed} images added, {len(images) - computed - failed} were there, {failed} failed")
    if failed:
        raise typer.Exit(1)


@command("tagrank train photos.jsonl --backbone efficientnet_lite0 --out models/photos")
def train(
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option(help="Folder for the model.", show_default=False)],
    features: FeaturesOption = None,
    val: Annotated[
        Path | None, typer.Option(help="Manifest to validate on; else the split 'val', else a tenth.")
    ] = None,
    val_features: Annotated[Path | None, typer.Option(help="Features of --val.")] = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    preset: Annotated[Preset, typer.Option(help="Hyper-parameters.")] = Preset.default,
    conditioning: Annotated[Conditioning, typer.Option(help="Where the image enters.")] = Conditioning.every_step,
    feedback: Annotated[bool, typer.Option("--feedback", help="Read the previous tag at each step.")] = False,
    epochs: Annotated[int | None, typer.Option(help="In place of the preset's.", min=1)] = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
) -> None:
    """Train a ranker on images with ordered lists of tags."""
    from tagrank.training.run import train as run
    from tagrank.training.run_folder import has_run, read_history

    try:
        run(
            manifest,
            out,
            features=features,
            val=val,
            val_features=val_features,
            backbone=backbone,
            weights=weights,
            preset=preset.value,
            conditioning=conditioning.value,
            feedback=feedback,
            seed=seed,
            epochs=epochs,
            resume=resume,
            overwrite=overwrite,
        )
    except KeyboardInterrupt:
        if not has_run(out):
            raise
        typer.echo("tagrank: interrupted; the same command with --resume goes on where this one stopped", err=True)
        raise typer.Exit(130) from None
    best = max(read_history(out), key=lambda epoch: epoch["val_ndcg@5"])
    typer.echo(f"{out}: validation NDCG@5 {best['val_ndcg@5']:.4f} after epoch {best['epoch']}")


@command("tagrank env")
def env() -> None:
    """Say what this machine can run, and why not what it cannot."""
    from tagrank.recurrence.environment import env as describe

    typer.echo(json.dumps(describe(), indent=2))
