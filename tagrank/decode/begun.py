"""A model with feedback that goes on with a list that a person began."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tagrank.decode.reader import Reader


class BegunState(NamedTuple):
    """The state of the model, and the tag ``[N]`` that it has still to read: the last given one, before the first step.

    Attributes:
        state: of the model.
        tag: ``None`` if the next step is told which tag comes before it.
    """

    state: Any
    tag: Tensor | None

    def take(self, rows: Tensor) -> "BegunState":
        """The states of the given rows, in the given order; a row may occur more than once."""
        return BegunState(self.state.take(rows), None if self.tag is None else self.tag[rows])


class Begun:
    """A model whose lists begin as given. For decoders it is a model whose first position is the one after these tags.

    A person's list has no tag twice, so the given tags have no probability any more; the others and END are divided by
    what is left.

    Args:
        reader: the model.
        given: the beginning, the same for all images. Each place has the tags of the vocabulary that are shown under
            one name, mostly a single tag. The model reads the one that it finds most likely there.
    """

    def __init__(self, reader: Reader, given: Sequence[Sequence[int]]) -> None:
        self._reader = reader
        self._given = given
        self._used = torch.zeros(reader.num_tags + 1, dtype=torch.bool)
        self._used[[tag for tags in given for tag in tags]] = True

    @property
    def num_tags(self) -> int:
        """``V``."""
        return self._reader.num_tags

    @property
    def steps(self) -> int:
        """The positions after the beginning; at least one."""
        return max(1, self._reader.steps - len(self._given))

    def start(self, features: Tensor) -> BegunState:
        """The state after the beginning, for features ``[B, D]``."""
        state, tag = self._reader.start(features), None
        for tags in self._given:
            log_p, state = self._reader.step(state, tag)
            names = torch.tensor(tags, device=log_p.device)
            tag = names[log_p[:, names].argmax(1)]
        return BegunState(state, tag)

    def step(self, state: BegunState, tag: Tensor | None) -> tuple[Tensor, BegunState]:
        """Log probabilities ``[N, V + 1]`` and the state of one position: see :meth:`tagrank.TagRanker.step`."""
        log_p, after = self._reader.step(state.state, state.tag if tag is None else tag)
        used = self._used.to(log_p.device)
        return log_p.masked_fill(used, -torch.inf).log_softmax(-1), BegunState(after, None)
