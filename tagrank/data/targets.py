"""Lists of tag numbers as tensors that a loss can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

IGNORE = -100
"""Fills a row after END. :func:`torch.nn.functional.cross_entropy` skips it by default."""

RankWeight = Literal["log", "reciprocal"]


@dataclass(frozen=True)
class ListTargets:
    """The classes to predict, one row for each list of each image.

    Attributes:
        targets: ``[L, S]`` int64: the tags of a list in order, then END, then :data:`IGNORE`. A row that has nothing
            but :data:`IGNORE` is no list; such rows give tensors a size that is known in advance.
        image_index: ``[L]`` int64, for each list the number of its image, ascending.
    """

    targets: Tensor
    image_index: Tensor

    @property
    def there(self) -> Tensor:
        """Which rows are lists, ``[L]``."""
        return self.targets[:, 0] != IGNORE

    def present(self) -> "ListTargets":
        """Without the rows that are no lists."""
        return ListTargets(self.targets[self.there], self.image_index[self.there])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ListTargets":
        """The same targets on a device."""
        return ListTargets(
            self.targets.to(device, non_blocking=non_blocking), self.image_index.to(device, non_blocking=non_blocking)
        )


def encode_lists(lists_per_image: Sequence[Sequence[Sequence[int]]], end: int, steps: int) -> ListTargets:
    """Lay out ordered lists as targets for ``steps`` steps.

    A list of ``n < steps`` tags gives ``n`` tags and END. A longer list is cut to ``steps`` tags and has no END. An
    empty list gives only END: the annotator had nothing to say.

    Args:
        lists_per_image: for each image its lists of tag numbers in ``[0, end)``. An image may have no list.
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


def class_counts(lists: ListTargets, rows: int, classes: int) -> Tensor:
    """How many lists have each class at each position. No value is read from the device of the lists.

    Args:
        lists: ``L`` lists, with ``S`` positions.
        rows: ``B``, the number of images.
        classes: ``V + 1``.

    Returns:
        float32 ``[S, B, V + 1]``.
    """
    targets = lists.targets
    steps = targets.shape[1]
    row = lists.image_index.unsqueeze(1)
    places = (torch.arange(steps, device=targets.device) * rows + row) * classes + targets.clamp(min=0)
    counts = torch.zeros(steps * rows * classes, device=targets.device)
    counts.scatter_add_(0, places.view(-1), (targets >= 0).view(-1).to(counts.dtype))
    return counts.view(steps, rows, classes)


def rank_weights(
    lists: ListTargets,
    num_tags: int,
    images: int | None = None,
    weight: RankWeight = "log",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """How important each tag is for each image: ``1 / log2(1 + position)``, averaged over the image's lists.

    A list that does not name the tag counts as 0 in the average. Positions start at 1.

    Args:
        lists: the lists of ``B`` images.
        num_tags: ``V``.
        images: ``B``; ``None`` means that the last image with a list is the last image.
        weight: ``"log"``, or ``"reciprocal"`` for ``1 / position``, which weighs the first tag more.
        dtype: of the result.

    Returns:
        ``[B, V]``, in [0, 1]; zeros for an image without lists.
    """
    images = int(lists.image_index[-1]) + 1 if images is None else images
    targets, image = lists.targets, lists.image_index
    counts = torch.zeros(images, dtype=dtype, device=targets.device).index_add_(0, image, lists.there.to(dtype))
    positions = torch.arange(targets.shape[1], device=targets.device).to(dtype)  # from 0
    inverse = torch.log2(2 + positions) if weight == "log" else 1 + positions
    named = (targets >= 0) & (targets < num_tags)
    shares = named / (inverse * counts[image].clamp(min=1).unsqueeze(1))
    places = image.unsqueeze(1) * num_tags + targets.where(named, 0)
    weights = torch.zeros(images * num_tags, dtype=dtype, device=targets.device)
    return weights.scatter_add_(0, places.view(-1), shares.view(-1)).view(images, num_tags)
