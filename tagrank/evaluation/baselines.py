"""What a ranked annotator has to beat: one tagger that does not see the image, and three that see its features.

All four learn from the same number per image and tag, its rank weight: the mean over the image's lists of
``1 / log2(1 + position)``, 0 where a list does not name the tag. Ranking tags by the expected rank weight is the best
that a tagger can do when its gain per tag is that weight, so these are strong for what they are.

Features are on the CPU. Ties are broken by the tag's index, the lower first, so that a ranking never depends on chance.
Fitting depends on its arguments and ``seed`` alone, and leaves PyTorch's global generator as it was.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ListsPerImage = Sequence[Sequence[Sequence[int]]]
"""For each image its ordered lists of tag indices, one list per person."""

RankWeight = Literal["log", "reciprocal"]

BATCH_SIZE = 128
LEARNING_RATE = 1e-3
EPOCHS = 10
MIN_STEPS = 300
"""A small set is gone through more than ``EPOCHS`` times, until it has seen so many steps."""

T = TypeVar("T")


class Baseline(Protocol):
    """A tagger that is fitted to features and lists, and ranks tags by features."""

    @property
    def name(self) -> str:
        """What the baseline is called in a table."""
        ...

    def fit(self, features: Tensor, lists_per_image: ListsPerImage, num_tags: int, seed: int = 0) -> None:
        """Learn from ``N`` images.

        Args:
            features: ``[N, D]``, floating point, N > 0.
            lists_per_image: for each image its ordered lists of tag indices below ``num_tags``, at least one list.
            num_tags: ``V``.
            seed: decides all that is drawn at random.

        Raises:
            ValueError: the features do not fit the lists or are not finite, an image has no list, or a tag is out of
                range.
        """
        ...

    def rank(self, features: Tensor, top_k: int | None = None) -> list[list[int]]:
        """The ``top_k`` best tags of each image, the best first.

        Args:
            features: ``[N, D]``, floating point, with the ``D`` of :meth:`fit`.
            top_k: how many tags; all ``V`` where left out or larger.

        Raises:
            RuntimeError: called before :meth:`fit`.
            ValueError: the features are not of the right shape or not finite, or ``top_k`` is below 1.
        """
        ...


class FrequencyPrior:
    """The same ranking for each image, by the mean rank weight over the training images."""

    name = "frequency prior"

    def __init__(self) -> None:
        self._scores: Tensor | None = None

    def fit(self, features: Tensor, lists_per_image: ListsPerImage, num_tags: int, seed: int = 0) -> None:
        """See :meth:`Baseline.fit`; the features and the seed play no part."""
        self._scores = rank_weights(lists_per_image, num_tags).mean(dim=0)

    def rank(self, features: Tensor, top_k: int | None = None) -> list[list[int]]:
        """See :meth:`Baseline.rank`; of the features only their number plays a part."""
        return _order(_fitted(self._scores).expand(len(features), -1), top_k)


class NearestNeighbours:
    """Vote of the ``k`` most similar training images: their rank weights, weighted by cosine similarity.

    The features are centred before, as those that come after a ReLU are all similar to each other. Images as near as
    the ``k``-th all vote.
    """

    name = "nearest neighbours"

    def __init__(self, k: int = 50) -> None:
        if k < 1:
            raise ValueError(f"k: expected at least 1 neighbour, got {k}")
        self.k = k
        self._memory: tuple[_Standardise, Tensor, Tensor] | None = None

    def fit(self, features: Tensor, lists_per_image: ListsPerImage, num_tags: int, seed: int = 0) -> None:
        """See :meth:`Baseline.fit`; nothing is drawn, so the seed plays no part."""
        _check(features, rows=len(lists_per_image))
        standardise = _Standardise(features)
        self._memory = standardise, F.normalize(standardise(features)), rank_weights(lists_per_image, num_tags)

    def rank(self, features: Tensor, top_k: int | None = None) -> list[list[int]]:
        """See :meth:`Baseline.rank`."""
        standardise, memory, weights = _fitted(self._memory)
        _check(features, columns=memory.shape[1])
        k = min(self.k, len(memory))
        scores = []
        # In parts, as the similarities of all pairs may not fit into memory.
        for queries in F.normalize(standardise(features)).split(256):
            similarity = queries @ memory.t()
            nearest = similarity >= similarity.topk(k).values[:, -1:]
            scores.append((similarity.clamp(min=0) * nearest) @ weights)
        return _order(torch.cat(scores), top_k)


class _Classifier(ABC):
    """One logit per tag, trained with binary cross-entropy on rank weights: AdamW, one-cycle schedule.

    With ``members`` above 1 the mean probability of as many networks, trained one after the other.

    The output layer starts at the frequency prior: no weights, and the log-odds of the mean targets as its bias. What
    is left to learn is how an image differs from the average one, which takes a small fraction of the steps.
    """

    weight_decay: float

    def __init__(self, members: int = 1, weight: RankWeight = "log") -> None:
        if members < 1:
            raise ValueError(f"members: expected at least 1, got {members}")
        self.members = members
        self.weight: RankWeight = weight
        self._network: nn.Module | None = None
        self._dimension = 0

    @abstractmethod
    def _hidden(self, dimension: int) -> tuple[list[nn.Module], int]:
        """The layers before the output layer, and how many features they give it."""

    def fit(self, features: Tensor, lists_per_image: ListsPerImage, num_tags: int, seed: int = 0) -> None:
        """See :meth:`Baseline.fit`."""
        _check(features, rows=len(lists_per_image))
        targets = rank_weights(lists_per_image, num_tags, self.weight)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            networks = [self._fitted_network(features, targets) for _ in range(self.members)]
        network = networks[0] if self.members == 1 else _MeanProbability(networks)
        self._network, self._dimension = network.eval(), features.shape[1]

    def _fitted_network(self, features: Tensor, targets: Tensor) -> nn.Sequential:
        hidden, size = self._hidden(features.shape[1])
        output = nn.Linear(size, targets.shape[1])
        with torch.no_grad():
            output.weight.zero_()
            output.bias.copy_(targets.mean(dim=0).logit(eps=1e-5))
        network = nn.Sequential(_Standardise(features), *hidden, output)
        self._train(network, features, targets)
        return network

    def _train(self, network: nn.Sequential, features: Tensor, targets: Tensor) -> None:
        batches = math.ceil(len(features) / BATCH_SIZE)
        epochs = max(EPOCHS, math.ceil(MIN_STEPS / batches))
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=LEARNING_RATE, weight_decay=self.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=epochs * batches)
        for _ in range(epochs):
            for index in torch.randperm(len(features)).split(BATCH_SIZE):
                loss = F.binary_cross_entropy_with_logits(network(features[index]), targets[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    @torch.no_grad()
    def rank(self, features: Tensor, top_k: int | None = None) -> list[list[int]]:
        """See :meth:`Baseline.rank`."""
        network = _fitted(self._network)
        _check(features, columns=self._dimension)
        return _order(network(features), top_k)


class LinearClassifier(_Classifier):
    """One logit per tag, linear in the features; see :class:`_Classifier` for how it is trained."""

    name = "linear classifier"
    weight_decay = 0.1

    def _hidden(self, dimension: int) -> tuple[list[nn.Module], int]:
        return [], dimension


class MLPClassifier(_Classifier):
    """One logit per tag from two layers; see :class:`_Classifier` for how it is trained."""

    name = "two-layer classifier"
    weight_decay = 0.3

    def _hidden(self, dimension: int) -> tuple[list[nn.Module], int]:
        return [nn.Linear(dimension, 512), nn.ReLU(), nn.Dropout(0.5)], 512


class _MeanProbability(nn.Module):
    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([network(features).sigmoid() for network in self.networks]).mean(dim=0)


def rank_weights(lists_per_image: ListsPerImage, num_tags: int, weight: RankWeight = "log") -> Tensor:
    """The mean over each image's lists of ``1 / log2(1 + position)``, 0 where a list does not name the tag.

    Args:
        lists_per_image: for each of ``N`` images its ordered lists of tag indices, at least one list.
        num_tags: ``V``.
        weight: ``"log"``, or ``"reciprocal"`` for ``1 / position``, which weighs the first tag more.

    Returns:
        ``[N, V]``, float32, in [0, 1].

    Raises:
        ValueError: there is no image, an image has no list, or a tag is not in ``0..num_tags - 1``.
    """
    if len(lists_per_image) == 0:
        raise ValueError("lists_per_image: expected at least one image, got none")
    weights = np.zeros((len(lists_per_image), num_tags), dtype=np.float32)
    for image, lists in enumerate(lists_per_image):
        if len(lists) == 0:
            raise ValueError(f"lists_per_image: expected at least one list per image, image {image} has none")
        for ranked in lists:
            tags = np.asarray(ranked, dtype=np.int64)
            if ((tags < 0) | (tags >= num_tags)).any():
                raise ValueError(f"lists_per_image: expected tags 0..{num_tags - 1}, image {image} has {list(ranked)}")
            positions = np.arange(1.0, len(tags) + 1)
            weights[image, tags] += 1 / (positions if weight == "reciprocal" else np.log2(1 + positions)) / len(lists)
    return torch.from_numpy(weights)


class _Standardise(nn.Module):
    """Subtract each feature's mean, divide all features by one common deviation.

    A deviation per feature would blow up the features that are nearly always zero.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        variance, mean = torch.var_mean(features.float(), dim=0, correction=0)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", variance.mean().sqrt().clamp(min=1e-12))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


def _check(features: Tensor, rows: int | None = None, columns: int | None = None) -> None:
    wrong = features.dim() != 2 or rows not in (None, len(features)) or columns not in (None, features.shape[1])
    if wrong or features.shape[1] == 0:
        shape = f"[{rows or 'N'}, {columns or 'D'}]"
        raise ValueError(f"features: expected shape {shape}, got {list(features.shape)}")
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"features: expected finite numbers, row {int(finite.int().argmin())} has NaN or infinity")


def _fitted(state: T | None) -> T:
    if state is None:
        raise RuntimeError("rank was called before fit")
    return state


def _order(scores: Tensor, top_k: int | None) -> list[list[int]]:
    """Tags by score, the highest first, among equals the lower index first."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1 or None, got {top_k}")
    order: list[list[int]] = scores.sort(dim=1, descending=True, stable=True).indices[:, :top_k].tolist()
    return order
