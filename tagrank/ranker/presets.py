"""Hyper-parameters by name."""

from dataclasses import dataclass, replace
from typing import Literal

from tagrank.ranker.config import Conditioning, RankerConfig


@dataclass(frozen=True, kw_only=True)
class Preset(RankerConfig):
    """How a ranker is built and trained: the fields of :class:`RankerConfig`, and these.

    If a backbone is trained with the ranker, ``signed_root`` and ``standardise`` are ignored; with
    ``conditioning="initial"``, ``skip`` is ignored.

    The names, the order and the values of all fields are written to ``settings.json`` and ``config.json``.

    Attributes:
        start: of the output layer: ``"frequencies"`` (:meth:`tagrank.TagRanker.start_at_frequencies`) or ``"random"``.
        members: rankers in the ensemble (:class:`~tagrank.ranker.ensemble.RankerEnsemble`). A model that reads its
            own tags is always a single ranker.
        optimizer: ``"adamw"`` or ``"sgd"``.
        learning_rate: the highest rate of the schedule.
        weight_decay: of the optimizer.
        schedule: ``"one_cycle"`` (Smith and Topin, 2018) or ``"constant"``.
        batch_size: images (not lists) per step.
        epochs: passes over the training images.
        patience: training stops after this many epochs without a better validation NDCG@5.
        flip: whether half of the pictures are mirrored when a backbone is trained with the ranker.
        conditioning: as for :class:`tagrank.TagRanker`.
        feedback: as for :class:`tagrank.TagRanker`.
        completer: whether a second ranker, a single one with feedback, is trained beside the first, to go on with lists
            that people began. A model that reads its own tags does that itself.
    """

    start: Literal["frequencies", "random"] = "random"
    members: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    batch_size: int = 128
    epochs: int = 10
    patience: int = 10
    flip: bool = False
    conditioning: Conditioning = "every_step"
    feedback: bool = False
    completer: bool = False


# The preset that measures best on the validation part of Flickr8k.
_DEFAULT = Preset(
    embedding_size=512,
    hidden_size=128,
    bias=True,
    activation="relu",
    dropout=0.5,
    hidden_dropout=0.2,
    skip=True,
    auxiliary=1.0,
    signed_root=True,
    standardise=True,
    start="frequencies",
    members=5,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=0.3,
    schedule="one_cycle",
    batch_size=128,
    epochs=10,
    patience=10,
    completer=True,
)

PRESETS: dict[str, Preset] = {
    "default": _DEFAULT,
    # Yan, Wang and Liao (2016): equations (1)-(10) as printed, SGD, no regulariser. The paper gives neither sizes nor
    # learning rates.
    "paper": Preset(
        embedding_size=512,
        hidden_size=512,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="constant",
        batch_size=32,
        epochs=60,
        patience=10,
    ),
    # A small backbone is trained with the ranker, on drawn scenes.
    "scenes": replace(
        _DEFAULT,
        embedding_size=128,
        dropout=0.2,
        signed_root=False,
        standardise=False,
        members=1,
        learning_rate=2e-3,
        weight_decay=0.05,
        batch_size=32,
        epochs=16,
        patience=16,
        flip=True,
    ),
}
