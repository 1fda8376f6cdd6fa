"""Baselines for the next tag of a list that a person began. All are tuned on a tenth of the training images.

- The two-layer classifier, on rooted features: ``p(v) ~ s(v)^a`` of its probabilities ``s``, without the given tags.
- The same, times powers of how often tags occur together in people's lists.
- Nearest neighbours: a vote of the training images' lists that begin alike or have the given tags.

The exponents of a position are those with the least negative log-likelihood: a convex problem, solved exactly.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tagrank.data.targets import encode_lists
from tagrank.evaluation.baselines import ListsPerImage, MLPClassifier
from tagrank.ranker.scaling import mean_and_deviation, signed_root
from tagrank.training.splits import hold_out

LAST_TUNED = 4
"""Positions 2 to 4 are tuned; later ones take the values of the last."""
SMOOTHING = (3.0, 10.0, 30.0, 100.0)
"""Pseudo-counts of co-occurrence that are tried."""
WIDTHS = (0.04, 0.06, 0.09)
"""Widths of the neighbours' kernel that are tried, in cosines."""
BACK_OFF = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Pseudo-counts of the back-off from one kind of neighbour to the next that are tried."""


class Beginnings(NamedTuple):
    """``N`` lists before one position.

    Attributes:
        image: int64 ``[N]``, ascending.
        given: int64 ``[N, t - 1]``, the tags before the position.
        following: int64 ``[N]``, the tag at the position.
    """

    image: Tensor
    given: Tensor
    following: Tensor


def beginnings_of(lists: Sequence[Sequence[Sequence[int]]], position: int) -> Beginnings:
    """The lists of images that have a tag at a position; the first position is 1."""
    found = [(i, tags[:position]) for i, image in enumerate(lists) for tags in image if len(tags) >= position]
    tags = torch.tensor([tags for _, tags in found], dtype=torch.int64).view(-1, position)
    return Beginnings(torch.tensor([i for i, _ in found], dtype=torch.int64), tags[:, :-1], tags[:, -1])


class Together(NamedTuple):
    """How often tags occur together in lists, each ``[V, V]``: given the first tag, the second.

    Attributes:
        next: directly after it.
        after: anywhere after it.
        both: before or after it.
    """

    next: Tensor
    after: Tensor
    both: Tensor

    @classmethod
    def counted(cls, lists: ListsPerImage, num_tags: int) -> "Together":
        """Count in the lists of all images."""
        following, after = torch.zeros(2, num_tags, num_tags)
        for tags in (tags for image in lists for tags in image):
            for place, tag in enumerate(tags[:-1]):
                following[tag, tags[place + 1]] += 1
                after[tag, tags[place + 1 :]] += 1
        return cls(following, after, after + after.t())

    def lifts(self, smoothing: float) -> "Together":
        """``log p(second | first) - log p(second)``, with so many pseudo-counts drawn from ``p(second)``."""

        def lift(counts: Tensor) -> Tensor:
            prior = counts.sum(0) + 0.5
            prior = prior / prior.sum()
            smoothed = (counts + smoothing * prior) / (counts.sum(1, keepdim=True) + smoothing)
            return smoothed.log() - prior.log()

        return Together(*map(lift, self))


class ClassifierNext:
    """A classifier; reweighted by co-occurrence if it has lifts.

    Args:
        log_scores: from features ``[B, D]`` to the logarithm of each tag's probability ``[B, V]``.
        exponents: for each number of given tags, from 1 on, those of :func:`clues`.
        lifts: for each number of given tags; empty if only the classifier counts.
    """

    def __init__(
        self, log_scores: Callable[[Tensor], Tensor], exponents: Sequence[Tensor], lifts: Sequence[Together] = ()
    ) -> None:
        self.name = "two-layer classifier" + (", reweighted by co-occurrence" if lifts else ", given tags removed")
        self._log_scores = log_scores
        self._exponents = exponents
        self._lifts = lifts

    def log_p(self, features: Tensor, image: Tensor, given: Tensor) -> Tensor:
        """See :class:`tagrank.evaluation.next_tag_judgement.NextTags`."""
        position = min(given.shape[1], len(self._exponents)) - 1
        lifts = self._lifts[position] if self._lifts else None
        scores = clues(self._log_scores(features)[image], given, lifts)
        return without(scores @ self._exponents[position], given)


def clues(log_scores: Tensor, given: Tensor, lifts: Together | None) -> Tensor:
    """What a power is taken of, ``[N, V, K]``: the classifier's scores, then lifts by the last and by earlier tags."""
    columns = [log_scores]
    if lifts is not None:
        columns += [lift[given[:, -1]] for lift in lifts]
        if given.shape[1] > 1:
            columns += [lift[given[:, :-1]].sum(1) for lift in (lifts.after, lifts.both)]
    return torch.stack(columns, dim=2)


def best_exponents(clue: Tensor, given: Tensor, following: Tensor) -> tuple[Tensor, float]:
    """The exponents ``[K]`` with the least mean negative log-likelihood, which is convex in them, and its value."""
    exponents = torch.zeros(clue.shape[2])
    exponents[0] = 1.0
    exponents.requires_grad_()
    optimizer = torch.optim.LBFGS([exponents], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.nll_loss(without(clue @ exponents, given), following)
        value.backward()
        return value

    optimizer.step(loss)
    return exponents.detach(), float(loss().detach())


class NeighboursNext:
    """A vote of training lists, each weighted by ``exp(cosine / width)`` of its image's similarity.

    Lists that begin with the given tags vote for their next tag. Where they are few, lists that have the given tags in
    any order vote for their other tags, then all lists for all their tags, then the frequencies of tags.
    """

    name = "nearest neighbours' lists"

    def __init__(self, features: Tensor, lists: ListsPerImage, num_tags: int) -> None:
        encoded = encode_lists(lists, num_tags, 1 + max(len(tags) for image in lists for tags in image))
        self._num_tags = num_tags
        self._targets, self._image = encoded.targets.masked_fill(encoded.targets == num_tags, -1), encoded.image_index
        self._scale = mean_and_deviation(signed_root(features))
        self._memory = self._directions(features)
        there = self._targets >= 0
        self._has = torch.zeros(len(self._targets), num_tags)
        self._has[there.nonzero()[:, 0], self._targets[there]] = 1
        self._all = torch.zeros(len(features), num_tags).index_add_(0, self._image, self._has)
        self.settings: list[tuple[float, float, float]] = []

    def log_p(self, features: Tensor, image: Tensor, given: Tensor) -> Tensor:
        """See :class:`tagrank.evaluation.next_tag_judgement.NextTags`."""
        width, *back_off = self.settings[min(given.shape[1], len(self.settings)) - 1]
        return self.combined(*self.votes(features, image, given, width), given, *back_off)

    def votes(self, features: Tensor, image: Tensor, given: Tensor, width: float) -> tuple[Tensor, Tensor, Tensor]:
        """The votes ``[N, V]`` of lists that begin alike, of lists that have the given tags, and of all lists."""
        cosine = self._directions(features) @ self._memory.t()
        weights = ((cosine - cosine.max(1, keepdim=True).values) / width).exp()
        alike, having = torch.zeros(2, len(given), self._num_tags)
        t = given.shape[1]
        for beginning in given.unique(dim=0):
            rows = (given == beginning).all(1).nonzero().flatten()
            of_rows = weights[image[rows]]
            lists = ((self._targets[:, :t] == beginning).all(1) & (self._targets[:, t] >= 0)).nonzero().flatten()
            named = F.one_hot(self._targets[lists, t], self._num_tags).float()
            alike[rows] = of_rows[:, self._image[lists]] @ named
            lists = self._has[:, beginning].all(1).nonzero().flatten()
            having[rows] = of_rows[:, self._image[lists]] @ self._has[lists]
        anything = (weights @ self._all)[image]
        return tuple(votes.scatter(1, given, 0.0) for votes in (alike, having, anything))  # type: ignore[return-value]

    def combined(
        self, alike: Tensor, having: Tensor, anything: Tensor, given: Tensor, first: float, second: float
    ) -> Tensor:
        """Log probabilities of votes with back-off: each kind gets so many pseudo-votes of the next kind."""
        prior = self._all.sum(0) + 0.5
        p = 0.98 * anything / anything.sum(1, keepdim=True).clamp(min=1e-30) + 0.02 * prior / prior.sum()
        p = (having + second * p) / (having.sum(1, keepdim=True) + second)
        p = (alike + first * p) / (alike.sum(1, keepdim=True) + first)
        return without(p.log(), given)

    def _directions(self, features: Tensor) -> Tensor:
        mean, deviation = self._scale
        return F.normalize((signed_root(features) - mean) / deviation)


def tune_exponents(log_scores: Tensor, lists: ListsPerImage, counted: Together | None) -> list[tuple[Tensor, float]]:
    """The best exponents of :func:`clues` and the best smoothing, for each number of given tags from 1 on.

    Args:
        log_scores: ``[B, V]``, of the images that tune.
        lists: of these images.
        counted: in the lists of other images; None if only the classifier counts.

    Returns:
        A pair for each position from 2 to ``LAST_TUNED`` that a list reaches.
    """
    tuned = []
    for position in range(2, LAST_TUNED + 1):
        image, given, following = beginnings_of(lists, position)
        if not len(image):
            break
        tried = []
        for smoothing in SMOOTHING[:1] if counted is None else SMOOTHING:
            lifts = None if counted is None else counted.lifts(smoothing)
            exponents, loss = best_exponents(clues(log_scores[image], given, lifts), given, following)
            tried.append((loss, exponents, smoothing))
        _, exponents, smoothing = min(tried, key=lambda found: found[0])
        tuned.append((exponents, smoothing))
    return tuned


def tune_neighbours(neighbours: NeighboursNext, features: Tensor, lists: ListsPerImage) -> None:
    """Give the neighbours the best width and back-off for each number of given tags.

    Args:
        neighbours: of images other than those that tune.
        features: ``[B, D]``, of the images that tune.
        lists: of these images.
    """
    settings = []
    for position in range(2, LAST_TUNED + 1):
        image, given, following = beginnings_of(lists, position)
        if not len(image):
            break
        losses = {}
        for width in WIDTHS:
            votes = neighbours.votes(features, image, given, width)
            for first in BACK_OFF:
                for second in BACK_OFF:
                    log_p = neighbours.combined(*votes, given, first, second)
                    losses[width, first, second] = float(F.nll_loss(log_p, following))
        settings.append(min(losses, key=losses.__getitem__))
    neighbours.settings = settings


def fit_next_tag_baselines(
    features: Tensor, lists: ListsPerImage, num_tags: int, seed: int = 0
) -> list[ClassifierNext | NeighboursNext]:
    """Fit and tune the baselines.

    Args:
        features: ``[N, D]`` of the training images.
        lists: the lists of each training image. Images without a list are left out.
        num_tags: ``V``.
        seed: draws the tenth that tunes, and is the classifier's seed.

    Returns:
        The classifier, the classifier reweighted by co-occurrence, and the neighbours' lists.
    """
    there = [i for i, image in enumerate(lists) if image]
    features, lists = features[there], [lists[i] for i in there]
    kept, held_out = hold_out(len(lists), seed)
    kept_lists, held_lists = [lists[i] for i in kept], [lists[i] for i in held_out]
    trial = MLPClassifier()
    trial.fit(signed_root(features[kept]), kept_lists, num_tags, seed)
    log_scores = trial.log_scores(signed_root(features[held_out]))
    alone = tune_exponents(log_scores, held_lists, None)
    together = tune_exponents(log_scores, held_lists, Together.counted(kept_lists, num_tags))
    tried = NeighboursNext(features[kept], kept_lists, num_tags)
    tune_neighbours(tried, features[held_out], held_lists)
    classifier = MLPClassifier()
    classifier.fit(signed_root(features), lists, num_tags, seed)
    counted = Together.counted(lists, num_tags)
    neighbours = NeighboursNext(features, lists, num_tags)
    neighbours.settings = tried.settings

    def rooted(features: Tensor) -> Tensor:
        return classifier.log_scores(signed_root(features))

    return [
        ClassifierNext(rooted, [exponents for exponents, _ in alone]),
        ClassifierNext(rooted, [e for e, _ in together], [counted.lifts(smoothing) for _, smoothing in together]),
        neighbours,
    ]


def without(scores: Tensor, given: Tensor) -> Tensor:
    """Log probabilities ``[N, V]`` of scores, for all tags but those ``[N, t]``, which get ``-inf``."""
    return scores.scatter(1, given, -torch.inf).log_softmax(1)
