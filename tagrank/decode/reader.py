"""What decoders need of a model that reads the tags of its list, one after the other."""

from typing import Any, Protocol

from torch import Tensor


class Reader(Protocol):
    """A model with feedback: a :class:`tagrank.TagRanker`, or :class:`tagrank.decode.begun.Begun`, which wraps one.

    A state has a method ``take(rows)``, which gives the states of the given rows.
    """

    @property
    def num_tags(self) -> int:
        """``V``, the size of the vocabulary."""
        ...

    @property
    def steps(self) -> int:
        """``S``, the number of positions."""
        ...

    def start(self, features: Tensor) -> Any:
        """The state before the first position, for features ``[B, D]``."""
        ...

    def step(self, state: Any, tag: Tensor | None) -> tuple[Tensor, Any]:
        """Log probabilities ``[N, V + 1]`` and the state of one position, after the tags ``[N]`` before it."""
        ...
