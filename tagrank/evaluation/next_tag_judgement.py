"""Lists that people began: what a model says of their next tag, judged by the tag that they named.

The true beginning of a person's list is given. The model's distribution over the tags that the beginning lacks is
compared with the next tag, at positions 2, 3 and 4. A list that ends before a position does not count there: whether a
list goes on is another question, which a classifier cannot answer.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tagrank.annotator import Annotator
from tagrank.data.targets import ListTargets
from tagrank.evaluation.next_tag_baselines import beginnings_of, fit_next_tag_baselines, without
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import FloatArray, bootstrap_intervals, evaluate_next_tags, summarise
from tagrank.ranker.tag_ranker import TagRanker

POSITIONS = (2, 3, 4)
BATCH = 2048
"""So many lists are computed at a time."""


class NextTags(Protocol):
    """What says which tag comes next."""

    @property
    def name(self) -> str:
        """The name of its row."""
        ...

    def log_p(self, features: Tensor, image: Tensor, given: Tensor) -> Tensor:
        """Log probabilities of the next tag, ``[N, V]``, given that one comes; ``-inf`` for the given tags.

        Args:
            features: ``[B, D]``.
            image: ``[N]``, the row of each list's image.
            given: ``[N, t - 1]``, the beginnings of the lists.
        """
        ...


class ReadsGiven:
    """A model with feedback, which reads the given tags."""

    def __init__(self, ranker: TagRanker, name: str = "tagrank, reads the given tags") -> None:
        self.name = name
        self._ranker = ranker

    def log_p(self, features: Tensor, image: Tensor, given: Tensor) -> Tensor:
        """See :class:`NextTags`."""
        weight = next(self._ranker.parameters())
        rows = []
        for numbers, tags in zip(image.split(BATCH), given.split(BATCH), strict=True):
            of_batch, row = numbers.unique(return_inverse=True)
            # The last column only makes the model take one more step.
            targets = torch.cat([tags, tags[:, -1:]], dim=1).to(weight.device)
            p = self._ranker.follow(features[of_batch].to(weight), ListTargets(targets, row.to(weight.device)))
            rows.append(p[:, -1, :-1].log().cpu())
        return without(torch.cat(rows), given)


class LeavesOutGiven:
    """A model without feedback: the distribution of the position, without the given tags."""

    name = "tagrank, leaves the given tags out"

    def __init__(self, annotator: Annotator) -> None:
        self._annotator = annotator

    def log_p(self, features: Tensor, image: Tensor, given: Tensor) -> Tensor:
        """See :class:`NextTags`."""
        p = self._annotator.probabilities(features)
        tiny = torch.finfo(p.dtype).tiny
        return without(p[image, min(given.shape[1], p.shape[1] - 1), :-1].clamp(min=tiny).log(), given)


def judge_next_tags(who: NextTags, features: Tensor, lists: Sequence[Sequence[Sequence[int]]]) -> dict[str, FloatArray]:
    """The measures of :func:`tagrank.metrics.evaluate_next_tags` at each position.

    Args:
        who: the model or baseline.
        features: ``[B, D]``.
        lists: people's lists of each image.

    Returns:
        Arrays ``[B]`` under keys such as ``hit@1/2``, for position 2. Positions that no list reaches are left out.
    """
    measures = {}
    for position in POSITIONS:
        image, given, following = beginnings_of(lists, position)
        if len(image):
            log_p = who.log_p(features, image, given)
            found = evaluate_next_tags(log_p, following, image, len(lists))
            measures.update({f"{name}/{position}": values for name, values in found.items()})
    return measures


def completion_rows(
    annotator: Annotator, images: LabelledImages, train_images: LabelledImages | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """A row of means and intervals for the model and, if there are images to fit them on, for the baselines.

    People's lists are taken in the model's own tags, without those that it does not have.

    Args:
        annotator: the model. If it has a completer or feedback, its row reads the given tags. A ranker without feedback
            has a row that leaves them out.
        images: the images that judge, with features.
        train_images: the images to fit the baselines on.
        seed: of the baselines.
    """
    everyone: list[NextTags] = []
    reader = annotator.completer or annotator.ranker
    if isinstance(reader, TagRanker) and reader.feedback:
        everyone.append(ReadsGiven(reader))
    if not annotator.ranker.feedback:
        everyone.append(LeavesOutGiven(annotator))
    if train_images is not None:
        train_lists = train_images.lists(annotator.vocabulary)
        everyone += fit_next_tag_baselines(train_images.inputs.float(), train_lists, len(annotator.vocabulary), seed)
    rows = []
    lists = images.lists(annotator.vocabulary)
    for who in everyone:
        measures = judge_next_tags(who, images.inputs.float(), lists)
        if measures:
            rows.append({"name": who.name, **summarise(measures), "intervals": bootstrap_intervals(measures)})
    return rows
