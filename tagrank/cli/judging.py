"""``evaluate`` and ``report``: a model against people's lists."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagrank.cli.app import (
    BaselinesOption,
    BeamsOption,
    DecoderOption,
    ExcludeOption,
    FeaturesOption,
    ImagesOption,
    IncludeOption,
    ManifestFile,
    Model,
    SamplesOption,
    SeedOption,
    SplitOption,
    SynonymsOption,
    ThresholdOption,
    ThresholdsOption,
    TrainFeaturesOption,
    TrainOption,
    WeightsOption,
    check_target,
    command,
    list_options,
)
from tagrank.errors import InputError

if TYPE_CHECKING:
    from tagrank.data.manifest import Manifest
    from tagrank.decode import OutputTags
    from tagrank.features.labelled import LabelledImages


@command("tagrank evaluate models/photos test.jsonl --baselines --train photos.jsonl --json scores.json")
def evaluate(
    model: Model,
    manifest: ManifestFile,
    features: FeaturesOption = None,
    images: ImagesOption = None,
    split: SplitOption = None,
    decoder: DecoderOption = None,
    beams: BeamsOption = 8,
    samples: SamplesOption = 64,
    threshold: ThresholdOption = None,
    thresholds: ThresholdsOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    synonyms: SynonymsOption = None,
    baselines: BaselinesOption = False,
    train: TrainOption = None,
    train_features: TrainFeaturesOption = None,
    against: Annotated[
        Path | None, typer.Option(help="Another model, to say by how much the two differ, and whether by chance.")
    ] = None,
    against_features: Annotated[
        Path | None, typer.Option(help="Features for --against, where it has another backbone.")
    ] = None,
    retrieval: Annotated[bool, typer.Option("--retrieval", help="Judge search too: see docs/search.md.")] = False,
    weights: WeightsOption = None,
    seed: SeedOption = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the tables to this file too.")] = None,
) -> None:
    """Compare the model's lists with people's, and the model with baselines or another model."""
    from tagrank.evaluation.judgement import judge
    from tagrank.evaluation.tables import print_comparison, print_retrieval, print_rows, retrieval_rows, write_rows
    from tagrank.metrics.significance import compare

    if against is None and against_features is not None:
        raise InputError("--against-features goes with --against")
    if json_file is not None:
        check_target("--json", json_file)
    judged = _Judged(model, manifest, features, images, split, weights)
    train_images = judged.train_images(baselines, train, train_features)
    judged.warn()
    chosen = (decoder, beams, samples, threshold, thresholds, include, exclude, synonyms)
    options = list_options(judged.annotator, *chosen)
    ours = judge(judged.annotator, judged.images, **options)
    rows, comparison, found = [ours.row()], None, None
    if against is not None:
        rival = _Judged(against, manifest, against_features or features, images, split, weights)
        rival.warn()
        other = judge(rival.annotator, rival.images, name=str(against), **list_options(rival.annotator, *chosen))
        rows.append(other.row())
        comparison = compare(ours.per_image, other.per_image, seed=seed)
    if retrieval:
        from tagrank.retrieval.ndcg import evaluate_retrieval

        found = retrieval_rows(evaluate_retrieval(judged.annotator, judged.images, seed))
    rows += judged.baselines(train_images, options["output"], seed)
    print_rows(rows)
    if comparison is not None:
        print_comparison(comparison, str(against))
    if found is not None:
        print_retrieval(found)
    if json_file is not None:
        write_rows(json_file, rows, comparison=comparison, retrieval=found)


@command("tagrank report models/photos test.jsonl --out report.html")
def report(
    model: Model,
    manifest: ManifestFile,
    out: Annotated[Path, typer.Option(help="The HTML file.", show_default=False)],
    features: FeaturesOption = None,
    images: ImagesOption = None,
    split: SplitOption = None,
    decoder: DecoderOption = None,
    beams: BeamsOption = 8,
    samples: SamplesOption = 64,
    threshold: ThresholdOption = None,
    thresholds: ThresholdsOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    synonyms: SynonymsOption = None,
    baselines: BaselinesOption = False,
    train: TrainOption = None,
    train_features: TrainFeaturesOption = None,
    weights: WeightsOption = None,
    examples: Annotated[int, typer.Option(help="How many photographs to show.", min=0)] = 48,
    worst: Annotated[int, typer.Option(help="How many of those with the worst lists to show.", min=0)] = 12,
    seed: SeedOption = 0,
) -> None:
    """Write one HTML file: the table, learning curves, mistakes, and photographs with ranked tags beside people's.

    A photograph that cannot be read is reported on stderr and shown without its picture; the exit code is 1.
    """
    from tagrank.demo import write_model_report
    from tagrank.evaluation.judgement import judge
    from tagrank.training.run_folder import read_history

    check_target("--out", out, make_folder=True)
    judged = _Judged(model, manifest, features, images, split, weights)
    train_images = judged.train_images(baselines, train, train_features)
    judged.warn()
    root = images or manifest.parent
    if not any((root / example.image).is_file() for example in judged.images.examples):
        typer.echo(f"tagrank: no photograph is in {root}, so none is shown (--images)", err=True)
    options = list_options(judged.annotator, decoder, beams, samples, threshold, thresholds, include, exclude, synonyms)
    ours = judge(judged.annotator, judged.images, **options)
    failed: dict[Path, InputError] = {}
    write_model_report(
        out,
        judged.annotator,
        judged.images,
        ours,
        judged.baselines(train_images, options["output"], seed),
        read_history(model),
        root=root,
        examples=examples,
        worst=worst,
        on_error=failed.__setitem__,
        **options,
    )
    typer.echo(out)
    for error in failed.values():
        typer.echo(f"tagrank: {error}", err=True)
    if failed:
        raise typer.Exit(1)


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
        from tagrank.features.seen import digests

        self.folder = model
        self.annotator: Annotator = Annotator.load(model)
        self.weights, self.features, self.root = weights, features, images
        self.manifest: Manifest = read_manifest(manifest)
        splits = {example.split for example in self.manifest.examples if example.split is not None}
        if split is None and splits and "test" not in splits:
            raise InputError(f"{manifest}: has the splits {', '.join(sorted(splits))}: say which to judge by (--split)")
        self.split = split or ("test" if splits else None)
        self.judged = self.manifest if self.split is None else self.manifest.select(self.split)
        self.images: LabelledImages = self._load(self.judged, features, images)
        self.digests = digests(self.images)

    def warn(self) -> None:
        """Say on stderr how many of the images the model has seen, where it has any."""
        import numpy as np

        from tagrank.features.seen import read_seen

        known = int(np.isin(self.digests, read_seen(self.folder)).sum())
        if known:
            what = f"{known} of the {len(self.images)} images that it is judged by"
            typer.echo(f"tagrank: {self.folder}: was trained or validated on {what}", err=True)

    def baselines(self, train_images: "LabelledImages | None", output: "OutputTags", seed: int) -> list[dict[str, Any]]:
        """The baselines' rows, where there are images to fit them on."""
        from tagrank.evaluation.judgement import evaluate_baselines

        if train_images is None:
            return []
        return evaluate_baselines(self.annotator, train_images, self.images, output=output, seed=seed)

    def train_images(self, wanted: bool, train: Path | None, features: Path | None) -> "LabelledImages | None":
        """What to fit the baselines on, where they are asked for."""
        import numpy as np

        from tagrank.data.manifest import read_manifest
        from tagrank.features.seen import digests
        from tagrank.features.store import open_features
        from tagrank.training.splits import check_apart, training_part

        if not wanted:
            if train is not None or features is not None:
                raise InputError("--train and --train-features go with --baselines")
            return None
        if train is None and self.split is None:
            raise InputError("--baselines needs --train: the manifest has no split to keep apart from the one judged")
        part = training_part(self.manifest if train is None else read_manifest(train))
        check_apart(part, self.judged)
        if features is None and self.features is not None:
            stored = open_features(self.features)
            if train is None or all(example.image in stored for example in part.examples):
                features = self.features
            elif self.annotator.backbone_spec is None:
                raise InputError(f"{self.features}: does not have the images of {part.path}: give --train-features")
        images = self._load(part, features, self.root if train is None else None)
        both = np.isin(self.digests, digests(images))
        if both.any():
            image = self.images.examples[int(both.argmax())].image
            raise InputError(f"{self.manifest.path}: {image} is among the images to train on, in {part.path}")
        return images

    def _load(self, manifest: "Manifest", features: Path | None, images: Path | None) -> "LabelledImages":
        from tagrank.features.labelled import load_labelled

        backbone = None if features is not None else self.annotator.backbone(self.weights)
        labelled = load_labelled(manifest, features=features, backbone=backbone, images=images)
        labelled.check(self.annotator.ranker.feature_size, self.annotator.backbone_spec)
        return labelled
