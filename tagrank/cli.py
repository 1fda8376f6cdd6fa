"""The command line: options in, results on stdout, progress and errors on stderr.

Exit codes: 0, done; 1, some photographs could not be read; 2, bad input; 130, Ctrl-C.
"""

import csv
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagrank.errors import InputError

if TYPE_CHECKING:
    from tagrank.data.labelled import LabelledImages
    from tagrank.data.manifest import Manifest
    from tagrank.decode import RankedTag

app = typer.Typer(
    name="tagrank",
    help="Rank the tags of a photograph: what a person would mention first comes first.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


class Preset(str, Enum):
    """Names of :data:`tagrank.presets.PRESETS`."""

    default = "default"
    paper = "paper"
    scenes = "scenes"


class Decoder(str, Enum):
    """Names of :data:`tagrank.decode.DECODERS`."""

    headline = "headline"
    expected_gain = "expected_gain"
    greedy = "greedy"
    assignment = "assignment"


class Conditioning(str, Enum):
    """Of :class:`tagrank.TagRanker`."""

    every_step = "every_step"
    initial = "initial"


class Format(str, Enum):
    """Of the output of ``annotate``."""

    text = "text"
    jsonl = "jsonl"
    csv = "csv"


Model = Annotated[Path, typer.Argument(help="Folder of a trained model.", show_default=False)]
ManifestFile = Annotated[Path, typer.Argument(help="JSON lines: image, and tags or lists.", show_default=False)]
FeaturesOption = Annotated[
    Path | None, typer.Option("--features", help="Features of the images: a store or .npz; else they are computed.")
]
ImagesOption = Annotated[
    Path | None, typer.Option("--images", help="Folder of the images, where it is not the manifest's.")
]
SplitOption = Annotated[
    str | None, typer.Option(help="Judge by this split; else by 'test' where there is one, else by all.")
]
BaselinesOption = Annotated[bool, typer.Option("--baselines", help="Fit the baselines, and put them in the table.")]
TrainOption = Annotated[
    Path | None, typer.Option("--train", help="Manifest to fit the baselines on; else MANIFEST, less what is judged.")
]
TrainFeaturesOption = Annotated[Path | None, typer.Option("--train-features", help="Features of --train.")]
DecoderOption = Annotated[Decoder | None, typer.Option(help="How a list is chosen; else what suits the model.")]
BackboneOption = Annotated[
    str | None,
    typer.Option(help="vgg16, any classifier of torchvision, efficientnet_lite0, or small_cnn (trained with it)."),
]
WeightsOption = Annotated[
    str | None, typer.Option(help="Of the backbone: a .pth or .safetensors file, or a name of torchvision's.")
]
SeedOption = Annotated[int, typer.Option(help="Decides all that is drawn at random.", min=0, max=2**32 - 1)]


@contextmanager
def _exit_codes() -> Iterator[None]:
    # Pillow warns of pictures that are merely large; those that are too large are errors.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=Warning)
    try:
        yield
    except InputError as error:
        typer.echo(f"tagrank: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("tagrank: interrupted", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # Whoever read our output has had enough. Python would complain once more when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:
        typer.echo(f"tagrank: {error}", err=True)
        raise typer.Exit(2) from error


def _command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with an example in its help, whose errors become exit codes."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            with _exit_codes():
                function(*args, **kwargs)

        app.command(epilog=f"Example: `{example}`")(run)
        return run

    return register


@_command("tagrank demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, model and report.")] = Path("runs/demo"),
    scenes: Annotated[int, typer.Option(help="How many pictures to draw.", min=100)] = 4000,
    seed: SeedOption = 0,
) -> None:
    """Draw scenes, train on them end to end, compare with the baselines, and write a report."""
    from tagrank.demo import run_demo
    from tagrank.tables import print_rows

    rows, report = run_demo(out, scenes=scenes, seed=seed)
    print_rows(rows)
    typer.echo(f"report: {report}")


@_command("tagrank features photos/ --backbone efficientnet_lite0 --out features/")
def features(
    paths: Annotated[list[Path], typer.Argument(help="Images, folders of them, or a manifest.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The feature store; one that is there is added to.", show_default=False)],
    backbone: BackboneOption = "vgg16",
    weights: WeightsOption = None,
) -> None:
    """Compute the features of images, once and for all.

    Images are stored under their paths relative to the manifest or folder given.
    """
    from tagrank.backbones import load_backbone
    from tagrank.data.labelled import named_images, write_features

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


@_command("tagrank train photos.jsonl --backbone efficientnet_lite0 --out models/photos")
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
    from tagrank.runs import read_history
    from tagrank.runs import train as run

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
        typer.echo("tagrank: interrupted; the same command with --resume goes on from the last whole epoch", err=True)
        raise typer.Exit(130) from None
    best = max(read_history(out), key=lambda epoch: epoch["val_ndcg@5"])
    typer.echo(f"{out}: validation NDCG@5 {best['val_ndcg@5']:.4f} after epoch {best['epoch']}")


@_command("tagrank evaluate models/photos test.jsonl --baselines --train photos.jsonl --json scores.json")
def evaluate(
    model: Model,
    manifest: ManifestFile,
    features: FeaturesOption = None,
    images: ImagesOption = None,
    split: SplitOption = None,
    decoder: DecoderOption = None,
    baselines: BaselinesOption = False,
    train: TrainOption = None,
    train_features: TrainFeaturesOption = None,
    weights: WeightsOption = None,
    seed: SeedOption = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table to this file too.")] = None,
) -> None:
    """Compare the model's lists with people's, and the model with baselines."""
    from tagrank.tables import print_rows, write_rows

    judged = _Judged(model, manifest, features, images, split, weights)
    rows = judged.rows(decoder, baselines, train, train_features, seed)
    if json_file is not None:
        write_rows(json_file, rows)
    print_rows(rows)


@_command("tagrank annotate models/photos holiday/ --top-k 5 --format jsonl")
def annotate(
    model: Model,
    paths: Annotated[
        list[str], typer.Argument(help="Images, folders of them, or - for paths on stdin.", show_default=False)
    ],
    top_k: Annotated[
        int | None, typer.Option(help="This many tags; else as many as the model sees fit.", min=1)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Tags at least this likely to be on a person's list.", min=0, max=1)
    ] = None,
    format: Annotated[Format, typer.Option(help="Of the output.")] = Format.text,
    decoder: DecoderOption = None,
    weights: WeightsOption = None,
) -> None:
    """Write the ranked tags of photographs.

    A photograph that cannot be read is reported on stderr; the others are annotated, and the exit code is 1.
    """
    from tagrank.annotator import Annotator
    from tagrank.data.images import find_images
    from tagrank.progress import track

    lines = (line.rstrip("\r\n") for line in sys.stdin) if "-" in paths else ()
    found = find_images([path for path in [*(p for p in paths if p != "-"), *lines] if path])
    annotator = Annotator.load(model)
    annotator.backbone(weights)
    write = _writer(format)
    failed = False
    results = annotator.annotate(found, decoder=decoder and decoder.value, top_k=top_k, threshold=threshold)
    # A bar and results on one terminal would write over each other.
    for path, tags in track(results, "annotating", sys.stderr.isatty() and not sys.stdout.isatty(), len(found)):
        if isinstance(tags, InputError):
            failed = True
            typer.echo(f"tagrank: {tags}", err=True)
        else:
            write(path, tags)
    if failed:
        raise typer.Exit(1)


@_command("tagrank report models/photos test.jsonl --out report.html")
def report(
    model: Model,
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option(help="The HTML file.", show_default=False)],
    features: FeaturesOption = None,
    images: ImagesOption = None,
    split: SplitOption = None,
    decoder: DecoderOption = None,
    baselines: BaselinesOption = False,
    train: TrainOption = None,
    train_features: TrainFeaturesOption = None,
    weights: WeightsOption = None,
    examples: Annotated[int, typer.Option(help="How many photographs to show.", min=0)] = 48,
    seed: SeedOption = 0,
) -> None:
    """Write one HTML file: photographs with ranked tags beside people's, the table, the learning curves."""
    from tagrank.demo import write_model_report
    from tagrank.runs import read_history

    judged = _Judged(model, manifest, features, images, split, weights)
    root = images or manifest.parent
    if not any((root / example.image).is_file() for example in judged.images.examples):
        typer.echo(f"tagrank: no photograph is in {root}, so none is shown (--images)", err=True)
    write_model_report(
        out,
        judged.annotator,
        judged.images,
        judged.rows(decoder, baselines, train, train_features, seed),
        read_history(model),
        root=root,
        decoder=decoder and decoder.value,
        examples=examples,
    )
    typer.echo(out)


@_command("tagrank env")
def env() -> None:
    """Say what this machine can run, and why not what it cannot."""
    from tagrank.recurrence.environment import env as describe

    typer.echo(json.dumps(describe(), indent=2))


class _Judged:
    """A model and the images it is judged by, as ``evaluate`` and ``report`` take them."""

    def __init__(
        self,
        model: Path,
        manifest: Path,
        features: Path | None,
        images: Path | None,
        split: str | None,
        weights: str | None,
    ) -> None:
        from tagrank.annotator import Annotator
        from tagrank.data.manifest import read_manifest

        self.annotator: Annotator = Annotator.load(model)
        self.weights, self.features, self.root = weights, features, images
        self.manifest: Manifest = read_manifest(manifest)
        splits = {example.split for example in self.manifest.examples if example.split is not None}
        if split is None and splits and "test" not in splits:
            raise InputError(f"{manifest}: has the splits {', '.join(sorted(splits))}: say which to judge by (--split)")
        self.split = split or ("test" if splits else None)
        self.judged = self.manifest if self.split is None else self.manifest.select(self.split)
        self.images: LabelledImages = self._load(self.judged, features, images)

    def rows(
        self, decoder: Decoder | None, baselines: bool, train: Path | None, train_features: Path | None, seed: int
    ) -> list[dict[str, Any]]:
        """The model's row, then the baselines' where they are asked for."""
        from tagrank.evaluation import evaluate, evaluate_baselines

        rows = [evaluate(self.annotator, self.images, decoder and decoder.value)]
        if baselines:
            rows += evaluate_baselines(
                self.annotator, self._train_images(train, train_features), self.images, seed=seed
            )
        elif train is not None or train_features is not None:
            raise InputError("--train and --train-features go with --baselines")
        return rows

    def _train_images(self, train: Path | None, features: Path | None) -> "LabelledImages":
        from tagrank.data.manifest import read_manifest
        from tagrank.runs import check_apart, training_part

        if train is None and self.split is None:
            raise InputError("--baselines needs --train: the manifest has no split to keep apart from the one judged")
        part = training_part(self.manifest if train is None else read_manifest(train))
        check_apart(part, self.judged)
        if train is None:
            return self._load(part, features or self.features, self.root)
        return self._load(part, features, None)

    def _load(self, manifest: "Manifest", features: Path | None, images: Path | None) -> "LabelledImages":
        from tagrank.data.labelled import load_labelled

        backbone = None if features is not None else self.annotator.backbone(self.weights)
        labelled = load_labelled(manifest, features=features, backbone=backbone, images=images)
        labelled.check(self.annotator.ranker.feature_size, self.annotator.backbone_spec)
        return labelled


def _writer(format: Format) -> Callable[[Path, Sequence["RankedTag"]], None]:
    """Writes one photograph's tags to stdout, at once."""
    if format is Format.text:
        return lambda path, tags: print(f"{path}: {', '.join(f'{t.tag} ({t.score:.2f})' for t in tags)}", flush=True)
    if format is Format.jsonl:
        return lambda path, tags: print(
            json.dumps({"image": str(path), "tags": [_rounded(t) for t in tags]}), flush=True
        )
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["image", "rank", "tag", "score"])

    def write(path: Path, tags: Sequence["RankedTag"]) -> None:
        rows.writerows([str(path), t.rank, t.tag, _rounded(t)["score"]] for t in tags)
        sys.stdout.flush()

    return write


def _rounded(tag: "RankedTag") -> dict[str, Any]:
    """As a dictionary, with a score to six places: what is beyond them depends on the batch."""
    return tag._asdict() | {"score": round(tag.score, 6)}
