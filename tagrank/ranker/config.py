"""The hyper-parameters of a ranker, declared and checked once. Needs no torch."""

import operator
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, TypedDict

Conditioning = Literal["every_step", "initial"]
Activation = Literal["relu"]


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """The sizes and options of a :class:`tagrank.TagRanker`. The defaults are the paper's model.

    Attributes:
        embedding_size: ``d`` of equation (1), the size of the embedding of an image and of a tag.
        hidden_size: ``H`` of equations (2)-(7), the size of the hidden state.
        bias: whether the gates have biases; equations (2)-(5) have none.
        activation: of the image's embedding: ``"relu"``, or ``None`` as in (1).
        dropout: probability of dropout on the embedding and on the hidden states, in training.
        hidden_dropout: probability of dropout on the hidden states, if it differs from ``dropout``.
        skip: whether the classifier reads the embedding too: ``z_t = W_z h_t + W_s I + b_z`` instead of (8).
        auxiliary: weight, in training, of the loss of a second classifier, which reads only the embedding: the binary
            cross-entropy of each tag with its rank weight (:func:`tagrank.data.targets.rank_weights`), summed over the
            tags. This loss shapes the embedding; no list is read from the second classifier.
        signed_root: whether each entry ``x`` of the feature is replaced by ``sign(x) sqrt(|x|)``
            (:func:`tagrank.ranker.scaling.signed_root`).
        standardise: whether the mean over the training images is then subtracted, and all entries are divided by one
            common deviation; :meth:`tagrank.TagRanker.standardise_by` measures both.

    Raises:
        ValueError: a value is out of range.
    """

    embedding_size: int = 512
    hidden_size: int = 512
    bias: bool = False
    activation: Activation | None = None
    dropout: float = 0.0
    hidden_dropout: float | None = None
    skip: bool = False
    auxiliary: float = 0.0
    signed_root: bool = False
    standardise: bool = False

    def __post_init__(self) -> None:
        for name in ("bias", "skip", "signed_root", "standardise"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r:.60}")
        for name in ("dropout", "hidden_dropout", "auxiliary"):
            value = getattr(self, name)
            if type(value) is int or (name == "hidden_dropout" and value is None):
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ValueError(f"{name}: expected a number, got {value!r:.60}")
            # config.json takes no other numbers, such as NumPy's.
            object.__setattr__(self, name, float(value))
        for name in ("embedding_size", "hidden_size"):
            object.__setattr__(self, name, positive(name, getattr(self, name)))
        if self.activation not in (None, "relu"):
            raise ValueError(f"activation: expected None or 'relu', got {self.activation!r}")
        for name, rate in {"dropout": self.dropout, "hidden_dropout": self.hidden_dropout or 0.0}.items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name}: expected a probability in [0, 1), got {rate!r}")
        if not 0 <= self.auxiliary < float("inf"):
            raise ValueError(f"auxiliary: expected a finite weight of at least 0, got {self.auxiliary!r}")

    def ranker_options(self) -> dict[str, Any]:
        """The fields of this class by name, without the fields of a subclass: keyword arguments of a ranker."""
        return {field.name: getattr(self, field.name) for field in fields(RankerConfig)}


class RankerOptions(TypedDict, total=False):
    """The fields of :class:`RankerConfig` as keyword arguments, for type checkers."""

    embedding_size: int
    hidden_size: int
    bias: bool
    activation: Activation | None
    dropout: float
    hidden_dropout: float | None
    skip: bool
    auxiliary: float
    signed_root: bool
    standardise: bool


def positive(name: str, size: Any) -> int:
    """A size as an int. It may be any positive integer, NumPy's too.

    Raises:
        ValueError: it is something else.
    """
    try:
        number = 0 if isinstance(size, bool) else operator.index(size)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name}: expected a positive int, got {size!r:.60}")
    return number


def check_positive(**sizes: Any) -> None:
    """:func:`positive` for sizes that are given by name.

    Raises:
        ValueError: one is no positive integer.
    """
    for name, size in sizes.items():
        positive(name, size)
