"""``demo``, ``features``, ``train`` and ``env``: the commands up to a trained model."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tagrank.cli.app import (
    CompileOption,
    DeviceOption,
    ExcludeOption,
    ImagesOption,
    ManifestFile,
    SeedOption,
    SkipUnreadable,
    WeightsOption,
    check_inputs,
    check_target,
    chosen_device,
    command,
)
from tagrank.cli.engine import AddressOption, Engine, EngineOption, check_engine, start_engine
from tagrank.cli.terminal import SHOWN, Complaints, complain
from tagrank.errors import InputError
from tagrank.options import BACKBONE
from tagrank.training.train_options import TrainOptions

DEMO_TITLE = """\
Judged by the images of the split 'test'; all were tuned on the same validation images. Left: how well tags are ranked.
Middle: which tags are on lists that end at a threshold (F1), and by how many tags they are too long or short. Right:
how often the tag in this place of a person's list is found, given the tags before it."""


@command("tagrank demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, model and report.")] = Path("runs/demo"),
    scenes: Annotated[int, typer.Option(help="How many pictures to draw.", min=100)] = 5000,
    seed: SeedOption = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the table to this JSON file.")] = None,
) -> None:
    """Draw scenes, train on them end to end, compare with the baselines, and write a report."""
    if json_file is not None:
        check_target("--json", json_file)
    from tagrank.demo import run_demo
    from tagrank.evaluation.tables import CONTEST_COLUMNS, print_rows, write_rows

    rows, report = run_demo(out, scenes=scenes, seed=seed)
    print_rows(rows, title=DEMO_TITLE, all_measures=True, columns=CONTEST_COLUMNS)
    if json_file is not None:
        write_rows(json_file, rows)
    typer.echo(f"report: {report}")


@command("tagrank features photos/ --backbone efficientnet_lite0 --out features/")
def features(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Images, folders of them, a manifest, or WebDataset shards (.tar).", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option(help="The feature store; images are added to an existing store.", show_default=False)
    ],
    backbone: Annotated[
        str,
        typer.Option(help=f"{BACKBONE}, or small_cnn (with its weights)."),
    ] = "vgg16",
    images: ImagesOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    compile: CompileOption = False,
    exclude_folder: ExcludeOption = None,
    engine: EngineOption = Engine.local,
    address: AddressOption = None,
) -> None:
    """Compute the features of images once, and keep them in a feature store.

    The name of an image in the store is its path relative to the given manifest, folder or shard. What cannot be read
    is reported on stderr; the others are added, and the exit code is 1.
    """
    if backbone == "small_cnn" and weights is None:
        raise InputError("backbone: small_cnn is trained with a ranker; without trained weights it has no features")
    check_inputs(images, *(path for path in paths if path.suffix == ".jsonl"))
    check_engine(engine, address, compile)
    from tagrank.engines.jobs import FeatureJob
    from tagrank.features.backbones import load_backbone
    from tagrank.features.labelled import named_images, write_features

    if engine is Engine.local:
        device = chosen_device(device)
    unread, failed = Complaints(), Complaints()
    named = named_images(paths, images, exclude_folders=exclude_folder or (), on_error=unread)
    network = load_backbone(backbone, weights).to(device if engine is Engine.local else "cpu")
    if compile:
        network.compile_network()
    with start_engine(engine, address, device) as run:
        computed = write_features(
            network,
            named,
            out,
            extract=lambda network, images: run(FeatureJob(network), images),
            on_error=lambda _, error: failed(error),
        )
    there = len(named) - computed - failed.count
    typer.echo(f"{out}: {computed} images added, {there} were there, {unread.count + failed.count} failed")
    unread.exit()
    failed.exit()


@command("tagrank train photos.jsonl --backbone efficientnet_lite0 --out models/photos")
def train(
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option(help="Folder for the model.", show_default=False)],
    options: TrainOptions,
    skip_unreadable: SkipUnreadable = True,
) -> None:
    """Train a ranker on images with ordered lists of tags."""
    if "RANK" not in os.environ:  # where torchrun starts helpers, the files need not be
        check_inputs(manifest, options)
    from tagrank.training.processes import LostError
    from tagrank.training.run import train as run
    from tagrank.training.run_folder import has_run, read_history
    from tagrank.training.starting import rank

    if (number := rank()) > 0:  # started by torchrun, to help process 0, which reads, writes and speaks
        try:
            run(manifest, out, options=options)
        except LostError:
            if number > 1:
                raise typer.Exit(2) from None
            raise
        except InputError:
            raise typer.Exit(2) from None
        return
    check_inputs(manifest, options)
    options = replace(options, device=chosen_device(options.device))
    failed = Complaints(SHOWN)
    try:
        run(manifest, out, options=options, on_error=failed if skip_unreadable else None)
    except KeyboardInterrupt:
        if not has_run(out):
            raise
        complain("interrupted; the same command with --resume goes on where this one stopped")
        raise typer.Exit(130) from None
    finally:
        failed.close()
    best = max(read_history(out), key=lambda epoch: epoch["val_ndcg@5"])
    typer.echo(f"{out}: validation NDCG@5 {best['val_ndcg@5']:.4f} after epoch {best['epoch']}")
    failed.exit()


@command("tagrank env")
def env() -> None:
    """Print which backends this machine can run, and why it cannot run the others."""
    from tagrank.recurrence.environment import env as describe

    typer.echo(json.dumps(describe(), indent=2))
