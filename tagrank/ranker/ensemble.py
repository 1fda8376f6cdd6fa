"""RankerEnsemble: several rankers as one model. They differ only by what was drawn at random."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tagrank.data.targets import ListTargets
from tagrank.ranker.config import positive
from tagrank.ranker.reach import reach
from tagrank.ranker.tag_ranker import TagRanker


class RankerEnsemble(nn.Module):
    """``M`` rankers whose distributions are averaged; each learns from the lists by itself.

    To write a list, the ensemble draws a member at random, which writes it. Let ``r_t(m)`` be the probability that a
    list of member ``m`` reaches position ``t`` (:func:`tagrank.ranker.reach.reach`). Then the distribution at ``t`` is
    ``p_t = sum_m r_t(m) p_t(m) / sum_m r_t(m)``. If no list ended, this would be the mean over the members.

    Args:
        members: ``M``, at least 1.
        **options: arguments of :class:`tagrank.TagRanker`, the same for each member. Models with feedback cannot be
            averaged in this way, because their positions depend on each other.

    Raises:
        TypeError: an option is not known.
        ValueError: an argument is out of range.
    """

    def __init__(self, members: int, **options: Any) -> None:
        super().__init__()
        self.members = nn.ModuleList([TagRanker(**options) for _ in range(positive("members", members))])
        first = self._first
        if first.feedback:
            raise ValueError("feedback: expected False in an ensemble, got True (as with conditioning='initial')")
        self.feature_size, self.num_tags, self.steps = first.feature_size, first.num_tags, first.steps
        self.conditioning, self.feedback, self.hidden_size = first.conditioning, False, first.hidden_size

    def config(self) -> dict[str, Any]:
        """The arguments that build this model again."""
        return {"members": len(self.members), **self._first.config()}

    def standardise_by(self, features: Tensor) -> None:
        """See :meth:`tagrank.TagRanker.standardise_by`."""
        first, *others = self.rankers()
        first.standardise_by(features)
        for member in others:
            for name, buffer in first.named_buffers():
                member.get_buffer(name).copy_(buffer)

    def start_at_frequencies(self, lists: ListTargets) -> None:
        """See :meth:`tagrank.TagRanker.start_at_frequencies`."""
        for member in self.rankers():
            member.start_at_frequencies(lists)

    def loss(self, features: Tensor, lists: ListTargets, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """The mean of the members' losses, :meth:`tagrank.TagRanker.loss`.

        Each member is trained as it would be outside of an ensemble, because AdamW's steps do not depend on the scale
        of a gradient.
        """
        return torch.stack([member.loss(features, lists, reduction) for member in self.rankers()]).mean()

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """The distribution over tags and END at each position, ``[B, S, V + 1]``, for features ``[B, D]``."""
        scaled = self.scale(features)
        return mixture([member.predict_by(scaled) for member in self.rankers()])

    def scale(self, features: Tensor) -> Tensor:
        """See :meth:`tagrank.TagRanker.scale`: all members scale the features alike."""
        return self._first.scale(features)

    @property
    def _first(self) -> TagRanker:
        return self.rankers()[0]

    def rankers(self) -> list[TagRanker]:
        """The members."""
        return [member for member in self.members if isinstance(member, TagRanker)]


def mixture(distributions: Sequence[Tensor] | Tensor) -> Tensor:
    """The distributions of an ensemble from those of its members, each ``[B, S, V + 1]``."""
    if len(distributions) == 1:
        return distributions[0]
    total = torch.zeros((), device=distributions[0].device)
    for p in distributions:
        total = total + reach(p).unsqueeze(-1) * p
    return total / total.sum(-1, keepdim=True)


Ranker = TagRanker | RankerEnsemble


def build_ranker(config: dict[str, Any]) -> Ranker:
    """The untrained model of a configuration: an ensemble if it names ``members``, else a :class:`TagRanker`.

    Raises:
        TypeError: an argument is not known.
        ValueError: an argument is out of range.
    """
    return RankerEnsemble(**config) if "members" in config else TagRanker(**config)
