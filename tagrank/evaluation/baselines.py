"""The baselines that a ranked annotator must beat: one does not see the image, three see its features.

All four learn from one number per image and tag, the rank weight (:func:`tagrank.data.targets.rank_weights`). When a
tag's gain is its rank weight, no tagger can do better than to rank by the expected rank weight. So these are strong
baselines.

Features are on the CPU. Of tags with equal scores, the tag with the lower index comes first, so that a ranking never
depends on chance. Fitting depends only on its arguments, and leaves PyTorch's global generator as it was.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagrank.data.targets import RankWeight, encode_lists, rank_weights
from tagrank.ranker.scaling import mean_and_deviation

ListsPerImage = Sequence[Sequence[Sequence[int]]]
"""For each image its ordered lists of tag indices, one list per person."""

BATCH_SIZE = 128
LEARNING_RATE = 1e-3
EPOCHS = 10
MIN_STEPS = 300
"""On a small set, training takes more than ``EPOCHS`` epochs, until it has made this many steps."""

T = TypeVar("T")


class Baseline(Protocol):
    """A tagger that is fitted to features and lists, and ranks tags by features."""

    @property
    def name(self) -> str:
        """The baseline's name in a table."""
        ...

    def fit(self, features: Tensor, lists_per_image: ListsPerImage, num_tags: int, seed: int = 0) -> None:
        """Learn from ``N`` images.

        Args:
            features: ``[N, D]``, floating point, N > 0.
            lists_per_image: for each image its ordered lists of tag indices below ``num_tags``, at least one list.
            num_tags: ``V``.
            seed: of all random draws.

        Raises:
            ValueError: the number of features is not the number of images, a feature is not finite, an image has no
                list, or a tag is out of range.
        """
        ...

    def scores(self, features: Tensor) -> Tensor:
        """A number for each image and tag, ``[N, V]``, by which tags are ranked; comparable between images.

        Args:
            features: ``[N, D]``, floating point, with the ``D`` of :meth:`fit`.

        Raises:
            RuntimeError: the baseline was not fitted.
            ValueError: the features have the wrong shape or are not finite.
        """
        ...

    def rank(self, features: Tensor, top_k: int | None = None) -> list[list[int]]:
        """The ``top_k`` best tags of each image, best first.

        Args:
            features: as for :meth:`scores`, which raises the other errors.
            top_k: how many tags; ``None``, or a number above ``V``, means all ``V``.

        Raises:
            ValueError: ``top_k`` is below 1.
        """
        ...


class _ByScores(ABC):
    """Ranks tags by their scores."""

    @abstractmethod
    def scores(self, features: Tensor) -> Tensor:
        """See :meth:`Baseline.scores`."""

    def rank(self, features: Tensor, top_k: int | None = None) -> list[list[int]]:
        """See :meth:`Baseline.rank`; of equal scores, the lower index comes first."""
        scores = self.scores(features)
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k: expected at least 1 or None, got {top_k}")
        order: list[list[int]] = scores.sort(dim=1, descending=True, stable=True).indices[:, :top_k].tolist()
        return order


class FrequencyPrior(_ByScores):
    """The same ranking for each image, by the mean rank weight over the training images."""

    name = "frequency prior"

    def __init__(self) -> None:
        self._scores: Tensor | None = None

    def fit(self, features: Tensor, lists_per_image: ListsPerImage, num_tags: int, seed: int = 0) -> None:
        """See :meth:`Baseline.fit`; the features and the seed are ignored."""
        self._scores = _rank_weights(lists_per_image, num_tags).mean(dim=0)

    def scores(self, features: Tensor) -> Tensor:
        """See :meth:`Baseline.scores`; only the number of the features matters."""
        return _fitted(self._scores).expand(len(features), -1)


class NearestNeighbours(_ByScores):
    """Vote of the ``k`` most similar training images: their rank weights, weighted by cosine similarity.

    Features are centred first, because the outputs of a ReLU all point in similar directions. If several images are
    as near as the ``k``-th, all of these vote.
    """

    name = "nearest neighbours"

    def __init__(self, k: int = 50) -> None:
        if k < 1:
            raise ValueError(f"k: expected at least 1 neighbour, got {k}")
        self.k = k
        self._memory: tuple[_Standardise, Tensor, Tensor] | None = None

    def fit(self, features: Tensor, lists_per_image: ListsPerImage, num_tags: int, seed: int = 0) -> None:
        """See :meth:`Baseline.fit`; nothing is random, so the seed is ignored."""
        _check(features, rows=len(lists_per_image))
        standardise = _Standardise(features)
        self._memory = standardise, F.normalize(standardise(features)), _rank_weights(lists_per_image, num_tags)

    def scores(self, features: Tensor) -> Tensor:
        """See :meth:`Baseline.scores`."""
        standardise, memory, weights = _fitted(self._memory)
        _check(features, columns=memory.shape[1])
        k = min(self.k, len(memory))
        scores = []
        # In parts, because the similarities of all pairs may not fit into memory.
        for queries in F.normalize(standardise(features)).split(256):
            similarity = queries @ memory.t()
            nearest = similarity >= similarity.topk(k).values[:, -1:]
            scores.append((similarity.clamp(min=0) * nearest) @ weights)
        return torch.cat(scores)


class _Classifier(_ByScores):
    """One logit per tag, trained with binary cross-entropy on rank weights: AdamW, one-cycle schedule.

    With ``members`` above 1, that many networks are trained one after the other, and their probabilities averaged.
    ``weight_decay`` replaces that of the class.

    The output layer starts at the frequency prior: its weights are 0, and its bias is the log-odds of the mean targets.
    Training then only learns how an image differs from the average image, which takes a small fraction of the steps.
    """

    weight_decay: float

    def __init__(self, members: int = 1, weight: RankWeight = "log", weight_decay: float | None = None) -> None:
        if members < 1:
            raise ValueError(f"members: expected at least 1, got {members}")
        if weight_decay is not None:
            self.weight_decay = weight_decay
        self.members = members
        self.weight: RankWeight = weight
        self._network: nn.Module | None = None
        self._dimension = 0

    @abstractmethod
    def _hidden(self, dimension: int) -> tuple[list[nn.Module], int]:
        """The layers before the output layer, and the size of their output."""

    def fit(self, features: Tensor, lists_per_image: ListsPerImage, num_tags: int, seed: int = 0) -> None:
        """See :meth:`Baseline.fit`."""
        _check(features, rows=len(lists_per_image))
        targets = _rank_weights(lists_per_image, num_tags, self.weight)
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
    def scores(self, features: Tensor) -> Tensor:
        """See :meth:`Baseline.scores`."""
        network = _fitted(self._network)
        _check(features, columns=self._dimension)
        outputs: Tensor = network(features)
        return outputs

    def log_scores(self, features: Tensor) -> Tensor:
        """The logarithm of each tag's probability, ``[N, V]``; the arguments and errors are those of :meth:`scores`."""
        outputs = self.scores(features)
        return F.logsigmoid(outputs) if self.members == 1 else outputs.log()


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


def _rank_weights(lists_per_image: ListsPerImage, num_tags: int, weight: RankWeight = "log") -> Tensor:
    """:func:`tagrank.data.targets.rank_weights` of ``N`` images, ``[N, V]``.

    Raises:
        ValueError: there is no image, an image has no list, or a tag is not in ``[0, num_tags)``.
    """
    if len(lists_per_image) == 0:
        raise ValueError("lists_per_image: expected at least one image, got none")
    for image, lists in enumerate(lists_per_image):
        if len(lists) == 0:
            raise ValueError(f"lists_per_image: expected at least one list per image, image {image} has none")
    images = len(lists_per_image)
    counts = torch.tensor([[len(lists)] for lists in lists_per_image])
    longest = max(len(tags) for lists in lists_per_image for tags in lists)
    weights = torch.zeros(images, num_tags)
    # The sum is rounded after each list. Another order or precision would change the last bit of some weights, and so
    # the published figures of the baselines.
    for n in range(int(counts.max())):
        nth = encode_lists([lists[n : n + 1] for lists in lists_per_image], end=num_tags, steps=max(1, longest))
        weights = (weights + rank_weights(nth, num_tags, images, weight, torch.float64) / counts).float()
    return weights


class _Standardise(nn.Module):
    """Subtracts the mean of the training features and divides by their deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        mean, deviation = mean_and_deviation(features)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

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
