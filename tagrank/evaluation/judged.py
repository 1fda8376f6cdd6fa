"""A trained model with the images that it is judged by, and the images that its baselines are fitted on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tagrank.annotator import Annotator
from tagrank.data.files import sha256
from tagrank.data.manifest import Manifest, read_manifest
from tagrank.decode import OutputTags
from tagrank.errors import InputError
from tagrank.evaluation.baseline_rows import evaluate_baselines
from tagrank.features.labelled import LabelledImages, load_labelled
from tagrank.features.seen import digests, read_seen
from tagrank.features.store import open_features
from tagrank.model_card import Judged, JudgedBy
from tagrank.model_files import WEIGHTS
from tagrank.model_hub import Source
from tagrank.options import BaselineOptions, JudgedOptions
from tagrank.training.splits import check_apart, training_part


class JudgedModel:
    """A model folder and a manifest, loaded and checked against each other.

    Args:
        model: the folder of a trained model.
        manifest: images with people's lists.
        options: which images judge the model, and where their features come from.
        weights: as for :meth:`Annotator.backbone`, if features must be computed.
        device: as for :meth:`Annotator.load`.
        on_error: called with the error of each image that cannot be read or has no features. The image is then left
            out. If it is None, the error is raised.

    Attributes:
        folder: the folder of the model.
        annotator: the model.
        manifest: all images of the manifest.
        images: the images that judge the model, with features.

    Raises:
        InputError: the model, the manifest or the features cannot be read or do not fit together; or the manifest has
            splits, but not ``test``, and ``options`` does not name one.
    """

    def __init__(
        self,
        model: Path,
        manifest: Path,
        options: JudgedOptions,
        weights: str | None = None,
        device: str = "cpu",
        on_error: Callable[[InputError], None] | None = None,
    ) -> None:
        self.folder = model
        self.annotator = Annotator.load(model, device)
        self.manifest = read_manifest(manifest)
        self._options = options
        self._weights = weights
        self._on_error = on_error
        splits = {example.split for example in self.manifest.examples if example.split is not None}
        if options.split is None and splits and "test" not in splits:
            raise InputError(
                f"{manifest}: has the splits {', '.join(sorted(splits))}, not 'test': say which to judge by (--split)"
            )
        self._split = options.split or ("test" if splits else None)
        self._judged = self.manifest if self._split is None else self.manifest.select(self._split)
        self.images = self._load(self._judged, options.features, options.images)
        self._digests = digests(self.images)

    @property
    def described(self) -> str:
        """Which images judge: how many, of what split of which manifest."""
        split = "" if self._split is None else f"the split {self._split!r} of "
        return f"{len(self.images)} images of {split}{self.manifest.path}"

    def model(self) -> JudgedBy:
        """Which model is judged, and by which images."""
        judged = Judged(len(self.images), self.manifest.path.name, self._split)
        return JudgedBy(sha256(self.folder / WEIGHTS), Source.of(self.folder).label, judged)

    def keep_common(self, other: "JudgedModel") -> None:
        """Judge both models by the images that are left of both."""
        names = [{example.image for example in model.images.examples} for model in (self, other)]
        for model in (self, other):
            kept = [row for row, e in enumerate(model.images.examples) if e.image in names[0] & names[1]]
            if len(kept) < len(model.images):
                model.images = model.images.take(kept)
                model._digests = digests(model.images)

    def seen(self) -> int:
        """The number of images that the model was trained or validated on (:mod:`tagrank.features.seen`)."""
        return int(np.isin(self._digests, read_seen(self.folder)).sum())

    def train_images(self, options: BaselineOptions) -> LabelledImages | None:
        """The images to fit the baselines on, with features; ``None`` if no baselines are wanted.

        Raises:
            InputError: an option is missing or lacks its companion, or an image would both train and judge baselines.
        """
        features = options.train_features
        if not options.baselines:
            if options.train is not None or features is not None:
                raise InputError("--train and --train-features go with --baselines")
            return None
        if options.train is None and self._split is None:
            raise InputError("--baselines needs --train: the manifest has no splits, so all of its images judge")
        part = training_part(self.manifest if options.train is None else read_manifest(options.train))
        check_apart(part, self._judged)
        judged_features = self._options.features
        if features is None and judged_features is not None:
            stored = open_features(judged_features)
            if options.train is None or all(example.image in stored for example in part.examples):
                features = judged_features
            elif self.annotator.backbone_spec is None:
                raise InputError(f"{judged_features}: does not have the images of {part.path}: give --train-features")
        images = self._load(part, features, self._options.images if options.train is None else None)
        both = np.isin(self._digests, digests(images))
        if both.any():
            image = self.images.examples[int(both.argmax())].image
            raise InputError(f"{self.manifest.path}: {image} is among the images to train on, in {part.path}")
        return images

    def baseline_rows(self, train_images: LabelledImages | None, output: OutputTags, seed: int) -> list[dict[str, Any]]:
        """The rows of the baselines, fitted on ``train_images``; none if there are no such images."""
        if train_images is None:
            return []
        return evaluate_baselines(self.annotator, train_images, self.images, output=output, seed=seed)

    def _load(self, manifest: Manifest, features: Path | None, images: Path | None) -> LabelledImages:
        backbone = None if features is not None else self.annotator.backbone(self._weights)
        labelled = load_labelled(manifest, features=features, backbone=backbone, images=images, on_error=self._on_error)
        labelled.check(self.annotator.ranker.feature_size, self.annotator.backbone_spec)
        return labelled
