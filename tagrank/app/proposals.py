"""What the page shows of a photograph: its list, which a person and a model make together, and each position of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tagrank.annotator import Annotator
from tagrank.decode import RankedTag, Suggestion, TagList

if TYPE_CHECKING:
    from torch import Tensor

MOST = 12
"""So many tags are proposed: those that the model puts on the list, and after them what it would name next."""
SHARES = 4
"""So many tags are shown at each position."""


@dataclass(frozen=True)
class Share:
    """A tag at a position: the probability that people name it there, and whether it is there on this list."""

    tag: str
    probability: float
    here: bool


@dataclass(frozen=True)
class Position:
    """What people name at a position of a list if they named the tags before it.

    Attributes:
        number: 1 for the first.
        shares: the most likely tags, and the tag that is there, if that is known.
        end: the probability that the list has ended.
        others: the probability of all other tags.
    """

    number: int
    shares: tuple[Share, ...]
    end: float
    others: float


@dataclass(frozen=True)
class Proposal:
    """The list of a photograph.

    Attributes:
        accepted: the tags that a person chose, in their order.
        listed: how the list goes on, by the model. Ranks go on after the accepted tags.
        further: what the model would name after its own list.
        positions: of the accepted tags, the listed ones, and the one after them.
        unlike: how unlike the training photographs the photograph is; None if the model does not know.
        unknown: whether it is so unlike that its tags mean little.
        reads_accepted: whether the model reads the accepted tags. If not, it only leaves them out.
    """

    accepted: tuple[str, ...]
    listed: tuple[RankedTag, ...]
    further: tuple[RankedTag, ...]
    positions: tuple[Position, ...]
    unlike: float | None
    unknown: bool
    reads_accepted: bool


def propose(
    annotator: Annotator, features: "Tensor", accepted: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> Proposal:
    """Go on with the list of a photograph.

    Without accepted tags it is the list that ``tagrank annotate`` writes; with some, that of ``annotate --given``.

    Args:
        annotator: the model.
        features: of the photograph, ``[D]``.
        accepted: the beginning of the list.
        options: of :meth:`Annotator.rank` without ``top_k``, such as :meth:`Annotator.rank_options` returns.

    Raises:
        InputError: as for :meth:`Annotator.rank` and :meth:`Annotator.complete`.
    """
    rows, options = features.unsqueeze(0), dict(options or {})

    def go_on(top_k: int | None) -> Sequence[RankedTag]:
        if accepted:
            return annotator.complete(rows, list(accepted), top_k=top_k, **options)[0]
        (ranking,) = annotator.rank(rows, top_k=top_k, **options)
        return annotator.tags(ranking, options.get("output"))

    listed, more = go_on(None), go_on(MOST)
    on_list = {tag.tag for tag in listed}
    further = [tag for tag in more if tag.tag not in on_list][: max(0, MOST - len(listed))]
    named = [*accepted, *(tag.tag for tag in listed)]
    # As many positions as the longest list has; what a person adds beyond that has no distribution.
    count = min(len(named) + 1, annotator.ranker.steps)
    beginnings = [named[:number] for number in range(count)]
    told = annotator.complete(rows.expand(count, -1), beginnings, top_k=SHARES, **options)
    tags = TagList(listed, float(annotator.unlike(rows)[0]))
    return Proposal(
        accepted=tuple(accepted),
        listed=tuple(listed),
        further=tuple(tag._replace(rank=len(named) + number) for number, tag in enumerate(further, 1)),
        positions=tuple(position(one, named[n] if n < len(named) else None) for n, one in enumerate(told)),
        unlike=None if math.isnan(tags.unlike) else tags.unlike,
        unknown=tags.unknown,
        reads_accepted=annotator.reads_given,
    )


def position(told: Suggestion, here: str | None) -> Position:
    """A position after a beginning.

    Args:
        told: what the model says of the tag after the beginning.
        here: the tag that is there on the list; None if the list has ended.
    """
    shares = tuple(Share(tag.tag, tag.probability, tag.tag == here) for tag in told.next)
    others = max(0.0, 1.0 - told.end - sum(share.probability for share in shares))
    return Position(len(told.given) + 1, shares, told.end, others)
