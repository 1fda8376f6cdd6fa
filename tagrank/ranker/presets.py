"""Hyper-parameters by name."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """How a ranker is built and trained.

    Attributes:
        embedding_size: ``d`` of equation (1).
        hidden_size: ``H`` of equations (2)-(7).
        bias: whether the gates have biases.
        activation: of the embedding.
        dropout: probability, on the embedding and the hidden states.
        hidden_dropout: on the hidden states, where it differs.
        skip: whether the classifier reads the embedding too; with the image at every step alone.
        auxiliary: weight of the auxiliary loss on the embedding.
        signed_root: of the features, as for :class:`tagrank.TagRanker`; not where a backbone is trained.
        standardise: the features; not where a backbone is trained.
        start: of the output layer: ``"frequencies"`` (:meth:`tagrank.TagRanker.start_at_frequencies`) or ``"random"``.
        members: rankers in the ensemble (:class:`~tagrank.ranker.ensemble.RankerEnsemble`); one if they have feedback.
        optimizer: ``"adamw"`` or ``"sgd"``.
        learning_rate: the highest of the schedule.
        weight_decay: of the optimizer.
        schedule: ``"one_cycle"`` (Smith and Topin, 2018) or ``"constant"``.
        batch_size: images (not lists) per step.
        epochs: passes over the training images.
        patience: epochs without a better validation NDCG@5 before training stops.
        flip: mirror half of the pictures, where a backbone is trained with the ranker.
    """

    embedding_size: int = 512
    hidden_size: int = 128
    bias: bool = True
    activation: Literal["relu"] | None = "relu"
    dropout: float = 0.5
    hidden_dropout: float | None = 0.2
    skip: bool = True
    auxiliary: float = 1.0
    signed_root: bool = True
    standardise: bool = True
    start: Literal["frequencies", "random"] = "frequencies"
    members: int = 5
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.3
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    batch_size: int = 128
    epochs: int = 10
    patience: int = 10
    flip: bool = False


_DEFAULT = Preset()

PRESETS: dict[str, Preset] = {
    # What measures best on the validation part of Flickr8k.
    "default": _DEFAULT,
    # Yan, Wang and Liao (2016): equations (1)-(10) as printed, SGD, no regulariser. The paper gives neither sizes nor
    # rates.
    "paper": replace(
        _DEFAULT,
        hidden_size=512,
        bias=False,
        activation=None,
        dropout=0.0,
        hidden_dropout=None,
        skip=False,
        auxiliary=0.0,
        signed_root=False,
        standardise=False,
        start="random",
        members=1,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=0.0,
        schedule="constant",
        batch_size=32,
        epochs=60,
        patience=10,
    ),
    # A small backbone trained with the ranker, on drawn scenes.
    "scenes": replace(
        _DEFAULT,
        embedding_size=128,
        hidden_size=128,
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
