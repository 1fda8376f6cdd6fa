"""The options of a training run, declared once for Python and for the command line. Needs no torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from tagrank.errors import InputError
from tagrank.ranker.config import Conditioning
from tagrank.ranker.presets import PRESETS, Preset


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of :func:`tagrank.training.run.train`.

    Attributes:
        features: feature store or ``.npz`` of the manifest's images; ``None``: the backbone computes the features.
        val: a manifest to validate on; ``None``: the manifest's split ``val``, or a tenth drawn with the seed if it has
            no such split.
        val_features: features of ``val``; ``None``: ``features`` has them.
        backbone: what computes, or computed, the features; ``small_cnn`` is trained with the ranker.
        weights: of the backbone, as for :func:`tagrank.features.backbones.load_backbone`.
        preset: a name in :data:`tagrank.ranker.presets.PRESETS`.
        conditioning: as for :class:`tagrank.TagRanker`.
        feedback: as for :class:`tagrank.TagRanker`.
        epochs: passes over the training images; ``None``: the preset's.
        seed: of all random draws.
        resume: continue an interrupted run that began with the same settings.
        overwrite: replace an existing model.
        progress: show progress bars, on stderr.
    """

    features: str | Path | None = None
    val: str | Path | None = None
    val_features: str | Path | None = None
    backbone: str | None = None
    weights: str | Path | None = None
    preset: str = "default"
    conditioning: Conditioning = "every_step"
    feedback: bool = False
    epochs: int | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    progress: bool = True

    def hyper_parameters(self) -> Preset:
        """The preset with the changes that these options make.

        Raises:
            InputError: the preset is not known, or ``epochs`` is out of range.
        """
        if self.preset not in PRESETS:
            raise InputError(f"preset: expected one of {', '.join(PRESETS)}; got {self.preset!r}")
        preset = replace(PRESETS[self.preset], conditioning=self.conditioning, feedback=self.feedback)
        if self.epochs is None:
            return preset
        if self.epochs < 1:
            raise InputError(f"epochs: expected at least 1, got {self.epochs}")
        return replace(preset, epochs=self.epochs)


class TrainKeywords(TypedDict, total=False):
    """The fields of :class:`TrainOptions` as keyword arguments, for type checkers."""

    features: str | Path | None
    val: str | Path | None
    val_features: str | Path | None
    backbone: str | None
    weights: str | Path | None
    preset: str
    conditioning: Conditioning
    feedback: bool
    epochs: int | None
    seed: int
    resume: bool
    overwrite: bool
    progress: bool
