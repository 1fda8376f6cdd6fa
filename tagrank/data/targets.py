"""Lists of tag numbers as tensors that a loss can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

IGNORE = -100
"""What fills a row after END: :func:`torch.nn.functional.cross_entropy` skips it by default."""


@dataclass(frozen=True)
class ListTargets:
    """The classes to predict, one row for each list of each image.

    Attributes:
        targets: ``[L, S]`` int64: the tags of a list in order, then END, then :data:`IGNORE`.
        image_index: ``[L]`` int64, the image that a list is about, ascending.
        weights: ``[L]`` float32, how much each list counts; 1 for all where left out.
    """

    targets: Tensor
    image_index: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ListTargets":
        """The same targets on a device."""
        parts = (self.targets, self.image_index, self.weights)
        return ListTargets(*(None if part is None else part.to(device, non_blocking=non_blocking) for part in parts))

    def count(self) -> Tensor:
        """``[L]``: :attr:`weights`, or as many ones."""
        return torch.ones(len(self.targets), device=self.targets.device) if self.weights is None else self.weights

    def mix(self, order: Tensor, share: float) -> "ListTargets":
        """The lists of mixed images: each has its own, with the weight ``share``, and another's, with the rest.

        Args:
            order: ``[B]`` int64, a permutation: image ``i`` has the lists of image ``order[i]`` too.
            share: from 0 to 1.
        """
        image_index = torch.cat([self.image_index, order.argsort()[self.image_index]])
        rows = image_index.argsort(stable=True)
        weights = torch.cat([self.count() * share, self.count() * (1 - share)])
        return ListTargets(torch.cat([self.targets, self.targets])[rows], image_index[rows], weights[rows])


def encode_lists(lists_per_image: Sequence[Sequence[Sequence[int]]], end: int, steps: int) -> ListTargets:
    """Lay out ordered lists as targets for ``steps`` steps.

    A list of ``n`` tags gives ``n`` tags and END; one of ``steps`` tags or more is cut to ``steps`` tags, and has no
    END. An empty list is END alone: the annotator had nothing to say.

    Args:
        lists_per_image: for each image its lists of tag numbers in ``[0, end)``. An image may have none.
        end: the class END, which is the size of the vocabulary.
        steps: ``S``, the number of steps of the model.

    Raises:
        ValueError: ``steps`` is below 1, or a tag number is not in ``[0, end)``.
    """
    import numpy as np

    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    lists = [tags for image in lists_per_image for tags in image]
    lists_of = np.array([len(image) for image in lists_per_image], dtype=np.int64)
    image_index = np.repeat(np.arange(len(lists_per_image), dtype=np.int64), lists_of)
    lengths = np.array([len(tags) for tags in lists], dtype=np.int64)
    values = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=int(lengths.sum()))
    rows = np.repeat(np.arange(len(lists)), lengths)
    columns = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)

    outside = np.flatnonzero((values < 0) | (values >= end))
    if outside.size:
        first = outside[0]
        raise ValueError(
            f"lists_per_image: expected tag numbers in [0, {end}), "
            f"got {values[first]} in a list of image {image_index[rows[first]]}"
        )
    targets = np.full((len(lists), steps), IGNORE, dtype=np.int64)
    kept = columns < steps
    targets[rows[kept], columns[kept]] = values[kept]
    ended = np.flatnonzero(lengths < steps)
    targets[ended, lengths[ended]] = end
    return ListTargets(torch.from_numpy(targets), torch.from_numpy(image_index))


def rank_weights(lists: ListTargets, num_tags: int, images: int | None = None) -> Tensor:
    """The mean over each image's lists of ``1 / log2(1 + position)``, 0 where a list does not name the tag.

    Args:
        lists: the lists of ``B`` images; a weighted mean where they have weights.
        num_tags: ``V``.
        images: ``B``; one more than the last image with a list where left out.

    Returns:
        ``[B, V]``, float32, in [0, 1]; zeros for an image without lists.
    """
    images = int(lists.image_index[-1]) + 1 if images is None else images
    count = lists.count()
    total = torch.zeros(images, device=count.device).index_add_(0, lists.image_index, count)
    rows, positions = ((lists.targets >= 0) & (lists.targets < num_tags)).nonzero(as_tuple=True)
    image, tag = lists.image_index[rows], lists.targets[rows, positions]
    weights = torch.zeros(images, num_tags, device=lists.targets.device)
    share = torch.where(count > 0, count / total[lists.image_index], 0.0)
    return weights.index_put_((image, tag), share[rows] / torch.log2(2.0 + positions), accumulate=True)
