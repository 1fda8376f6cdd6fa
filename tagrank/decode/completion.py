"""The rest of lists that people began: what comes next, and how the list goes on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from tagrank.data.files import first_repeated
from tagrank.decode.begun import Begun
from tagrank.decode.feedback import decode_feedback
from tagrank.decode.output import OutputTags
from tagrank.decode.positions import decode
from tagrank.decode.ranking import RankedTag, Ranking, TagList
from tagrank.errors import InputError
from tagrank.ranker.ensemble import Ranker
from tagrank.ranker.tag_ranker import TagRanker

NEXT = 5
"""So many tags that may come next are listed, if the caller does not say how many."""


class NextTag(NamedTuple):
    """A tag, and the probability that a person who began a list names it next."""

    tag: str
    probability: float


class Suggestion(TagList):
    """The rest of a list that a person began, the most important tag first.

    The ranks go on after the tags that were given. A tag's score is the probability that it is in the rest of a
    person's list. The list is empty if the person's list is more likely to end than to go on.

    Attributes:
        given: the beginning.
        next: what may come next, the most likely first, by the names that are shown.
        end: the probability that the list ends here.
        reads_given: whether the model reads the given tags. If it does not, they are only left out.
        unlike: as for :class:`TagList`.
    """

    def __init__(
        self,
        tags: Iterable[RankedTag],
        unlike: float,
        *,
        given: Sequence[str],
        next: Sequence[NextTag],
        end: float,
        reads_given: bool,
    ) -> None:
        super().__init__(tags, unlike)
        self.given = list(given)
        self.next = list(next)
        self.end = end
        self.reads_given = reads_given


class Completion(NamedTuple):
    """The rest of one image's list: ``rest`` with the probability that each tag is in it, ``next`` and ``end``."""

    rest: Ranking
    next: Ranking
    end: float


def check_beginning(given: object, output: OutputTags) -> list[int]:
    """The indices that stand for the tags of a beginning. Tags that are not shown may be in it.

    Raises:
        InputError: it is no list of tags, has a tag twice, or has one that the model lacks.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(tag, str) for tag in given):
        raise InputError(f"given: expected a list of tags such as ['dog', 'ball'], got {given!r:.60}")
    numbers = [output.index("given", tag) for tag in given]
    if len(set(numbers)) < len(numbers):
        twice = output.vocabulary.tag(first_repeated(numbers))
        raise InputError(f"given: expected each tag once, got {twice!r} twice")
    return numbers


def is_one_for_each(given: object) -> bool:
    """Whether these are beginnings, one for each image, and not the tags of one beginning for all."""
    return isinstance(given, Sequence) and any(not isinstance(tag, str) for tag in given)


def one_for_each(given: Sequence[str] | Sequence[Sequence[str]], images: int) -> list[Sequence[str]]:
    """A beginning for each image.

    Raises:
        InputError: there are beginnings, but for another number of images.
    """
    if not is_one_for_each(given):
        return [cast(Sequence[str], given)] * images
    if len(given) != images:
        raise InputError(f"given: expected a list of tags for each of {images} images, got {len(given)}")
    return [*given]


def complete_lists(
    ranker: Ranker,
    features: Tensor,
    beginnings: Sequence[Sequence[int]],
    decoder: str,
    *,
    output: OutputTags,
    top_k: int | None = None,
    threshold: float | None = None,
    beams: int = 8,
    samples: int = 64,
    batch_size: int = 256,
) -> list[Completion]:
    """Go on with a list for each image.

    A model with feedback reads the beginning. For another, the rest has the distributions of the positions after it,
    from which the given tags are removed.

    Args:
        ranker: the model, in evaluation mode.
        features: ``[B, D]``, of any floating dtype, on any device.
        beginnings: for each image the beginning of its list, as :func:`check_beginning` returns it.
        decoder: writes the rest: as for :func:`tagrank.decode.decode_model`.
        output: which tags may come, and their thresholds.
        top_k: so many tags in the rest and in ``next``. If left out, the model chooses the length of the rest, which is
            0 if END is more likely than all tags together, and ``next`` has :data:`NEXT` tags.
        threshold: as for :func:`tagrank.decode.decode_model`, for the tags of the rest.
        beams: as for :func:`tagrank.decode.decode_model`.
        samples: as for :func:`tagrank.decode.decode_model`.
        batch_size: number of images computed at a time.

    Raises:
        ValueError: an argument is out of range, or the decoder is not one for this kind of model.
        InputError: no probabilities are left, because the features or the weights are too large.
    """
    options: dict[str, Any] = {"top_k": top_k, "threshold": threshold}
    completions: dict[int, Completion] = {}
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, beginning in enumerate(beginnings):
        rows_of.setdefault(tuple(beginning), []).append(row)
    weight = next(ranker.parameters())
    for given, rows in rows_of.items():
        for batch in torch.tensor(rows).split(batch_size):
            of_batch = features[batch].to(weight)
            found = _complete(ranker, of_batch, given, decoder, output, beams, samples, options)
            completions.update(zip(batch.tolist(), found, strict=True))
    return [completions[row] for row in range(len(beginnings))]


@torch.no_grad()
def _complete(
    ranker: Ranker,
    features: Tensor,
    given: Sequence[int],
    decoder: str,
    output: OutputTags,
    beams: int,
    samples: int,
    options: Mapping[str, Any],
) -> list[Completion]:
    """:func:`complete_lists` for images that have the same beginning."""
    names = [np.flatnonzero(output.stands_for == tag).tolist() for tag in given]
    left = output.without(given)
    shown = output if left is None else left
    if isinstance(ranker, TagRanker) and ranker.feedback:
        begun = Begun(ranker, names)
        first = begun.step(begun.start(features), None)[0].double().exp()
        check_finite(first)
        rest = decode_feedback(begun, features, decoder, shown, beams=beams, samples=samples, **options)
    else:
        p = positions_after(ranker.predict(features).double(), names)
        check_finite(p)
        first = p[:, 0]
        rest = decode(p, decoder, output=shown, **options)
    chances = shown.merge(first.cpu().numpy())
    top_k = options["top_k"]
    order = np.argsort(-chances[:, :-1], axis=1, kind="stable")[:, : NEXT if top_k is None else top_k]
    completions = []
    for ranking, p_next, classes in zip(rest, chances, order, strict=True):
        end = float(p_next[-1])
        following = Ranking([int(shown.tags[g]) for g in classes], [float(p_next[g]) for g in classes])
        nothing = Ranking([], [])
        if left is None:
            completions.append(Completion(nothing, nothing, end))
        else:
            completions.append(Completion(nothing if top_k is None and end > 0.5 else ranking, following, end))
    return completions


def positions_after(p: Tensor, given: Sequence[Sequence[int]]) -> Tensor:
    """The distributions of a model without feedback at the positions after a beginning, without its tags.

    Args:
        p: ``[B, S, V + 1]``, from its ``predict``.
        given: for each given name the tags that it stands for.

    Returns:
        ``[B, S', V + 1]``: the positions after the beginning; the last one if the beginning is longer than any list.
    """
    p = p[:, min(len(given), p.shape[1] - 1) :].clone()
    for tags in given:
        p[:, :, tags] = 0
    # If the model expected nothing but the given tags, the list ends.
    p[..., -1] = torch.where(p.sum(-1) > 0, p[..., -1], 1.0)
    return p / p.sum(-1, keepdim=True)


def check_finite(p: Tensor) -> None:
    """Raise an :class:`~tagrank.errors.InputError` if a model's probabilities are no numbers."""
    if not p.isfinite().all():
        raise InputError("the model gives no probabilities for these features: its weights, or they, are too large")
