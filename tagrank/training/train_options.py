"""The options of a training run, declared once for Python and for the command line. Needs no torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

from tagrank.errors import InputError
from tagrank.options import BACKBONE, DEVICE, FEATURES, IMAGES, MAX_SEED, SEED, WEIGHTS, option
from tagrank.ranker.config import Conditioning
from tagrank.ranker.presets import PRESETS, Preset

Strategy = Literal["auto", "ddp"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of :func:`tagrank.training.run.train`.

    Attributes:
        features: feature store or ``.npz`` of the manifest's images; ``None``: the backbone computes the features.
        images: the folder of the images, if it is not the manifest's.
        val: a manifest to validate on; ``None``: the manifest's split ``val``, or a tenth drawn with the seed if it has
            no such split.
        val_features: features of ``val``; ``None``: ``features`` has them.
        backbone: what computes, or computed, the features; ``small_cnn`` is trained with the ranker.
        weights: of the backbone, as for :func:`tagrank.features.backbones.load_backbone`.
        device: where the backbone computes features and the model is trained, as for
            :func:`tagrank.features.devices.find_device`.
        devices: how many processes train together on this machine, each on a GPU of its own if there are GPUs;
            ``None``: one, or those that torchrun started.
        num_nodes: on how many machines, each with its command started by torchrun; ``None``: as torchrun says.
        strategy: how several processes share the work: ``"ddp"``, a part of each batch for each; ``"auto"`` is the
            same.
        preset: a name in :data:`tagrank.ranker.presets.PRESETS`.
        conditioning: as for :class:`tagrank.TagRanker`.
        feedback: as for :class:`tagrank.TagRanker`.
        completion: whether the model learns to go on with lists that people began, if the preset says so.
        epochs: passes over the training images; ``None``: the preset's.
        seed: of all random draws.
        resume: continue an interrupted run that began with the same settings.
        overwrite: replace an existing model.
        progress: show progress bars, on stderr.
    """

    features: str | Path | None = option(None, FEATURES, type=Path | None)
    images: str | Path | None = option(None, IMAGES, type=Path | None)
    val: str | Path | None = option(
        None, "Manifest to validate on. Default: the split 'val', or a tenth if there is none.", type=Path | None
    )
    val_features: str | Path | None = option(None, "Features of --val.", type=Path | None)
    backbone: str | None = option(None, f"{BACKBONE}, or small_cnn (trained with the ranker).")
    weights: str | Path | None = option(None, WEIGHTS, type=str | None)
    device: str = option("auto", DEVICE)
    devices: int | None = option(
        None,
        "Processes on this machine that train together, each on a GPU if there are GPUs. Default: 1, or torchrun's.",
        min=1,
    )
    num_nodes: int | None = option(None, "Machines that train together, under torchrun. Default: torchrun's.", min=1)
    strategy: Strategy = option("auto", "How processes share the work: ddp, a part of each batch for each.")
    preset: str = option("default", "Hyper-parameters by name.", type=Literal[tuple(PRESETS)])
    conditioning: Conditioning = option("every_step", "At which steps the image enters.")
    feedback: bool = option(False, "Read the previous tag at each step.", flag="--feedback")
    completion: bool = option(
        True,
        "Learn to go on with lists that people began (annotate --given), if the preset says so.",
        flag="--completion/--no-completion",
    )
    epochs: int | None = option(None, "Passes over the training images, instead of the preset's.", min=1)
    seed: int = option(0, SEED, min=0, max=MAX_SEED)
    resume: bool = option(False, "Continue an interrupted run.", flag="--resume")
    overwrite: bool = option(False, "Replace an existing model.", flag="--overwrite")
    progress: bool = True

    def hyper_parameters(self) -> Preset:
        """The preset with the changes that these options make.

        Raises:
            InputError: the preset is not known, or ``epochs`` is out of range.
        """
        if self.preset not in PRESETS:
            raise InputError(f"preset: expected one of {', '.join(PRESETS)}; got {self.preset!r}")
        preset = replace(PRESETS[self.preset], conditioning=self.conditioning, feedback=self.feedback)
        # A model that reads its own tags needs no second one.
        reads = self.feedback or self.conditioning == "initial"
        preset = replace(preset, completer=preset.completer and self.completion and not reads)
        if self.epochs is None:
            return preset
        if self.epochs < 1:
            raise InputError(f"epochs: expected at least 1, got {self.epochs}")
        return replace(preset, epochs=self.epochs)


class TrainKeywords(TypedDict, total=False):
    """The fields of :class:`TrainOptions` as keyword arguments, for type checkers."""

    features: str | Path | None
    images: str | Path | None
    val: str | Path | None
    val_features: str | Path | None
    backbone: str | None
    weights: str | Path | None
    device: str
    devices: int | None
    num_nodes: int | None
    strategy: Strategy
    preset: str
    conditioning: Conditioning
    feedback: bool
    completion: bool
    epochs: int | None
    seed: int
    resume: bool
    overwrite: bool
    progress: bool
