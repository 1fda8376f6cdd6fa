"""Images and their lists in batches, in an order that the seed determines."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tagrank.data.targets import IGNORE, ListTargets, encode_lists
from tagrank.ranker.stacked import Span

SPAN = 64
"""What a span of a batch costs beside its products, as so many positions of a list."""
SHARE = 0.5
"""Images stay on a GPU if they take no more than this part of its free memory."""


class Batch(NamedTuple):
    """``B`` images, those with the longest lists first.

    Attributes:
        inputs: features ``[B, D]`` or pixels ``[B, 3, h, w]``.
        targets: ``[B, K, S]``, the ``K`` lists of each image as in :class:`ListTargets`; an image with fewer has rows
            that are no lists.
        spans: which rows need how many positions.
    """

    inputs: Tensor
    targets: Tensor
    spans: tuple[Span, ...]

    def lists(self) -> ListTargets:
        """The lists of the images, some of them none, so that their number does not depend on the images."""
        images, most, steps = self.targets.shape
        index = torch.arange(images, device=self.targets.device).unsqueeze(1).expand(images, most)
        return ListTargets(self.targets.reshape(-1, steps).long(), index.reshape(-1))


class ListDataset:
    """Images with ordered lists of tags, all in the memory of one device.

    Args:
        inputs: ``[N, ...]``, features or pixels, of any floating dtype.
        lists: for each image its lists of tag indices.
        end: the class END.
        steps: ``S`` of the model.
    """

    def __init__(self, inputs: Tensor, lists: Sequence[Sequence[Sequence[int]]], end: int, steps: int) -> None:
        encoded = encode_lists(lists, end, steps)
        counts = torch.tensor([len(image) for image in lists])
        nth = torch.arange(len(encoded.image_index)) - (counts.cumsum(0) - counts)[encoded.image_index]
        dtype = torch.int16 if end <= torch.iinfo(torch.int16).max else torch.int32
        self.targets = torch.full((len(lists), int(counts.max()), steps), IGNORE, dtype=dtype)
        self.targets[encoded.image_index, nth] = encoded.targets.to(dtype)
        self.lengths = (self.targets != IGNORE).sum(2).amax(1).numpy()
        self.inputs = inputs
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> None:
        """Make batches on a device. The images are kept there if it has the room."""
        self.device = device
        if device.type == "cuda" and self.inputs.nbytes < SHARE * torch.cuda.mem_get_info(device)[0]:
            self.inputs = self.inputs.to(device)
        self.targets = self.targets.to(device)
        self.device = self.targets.device  # with its number, if the argument has none

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Batch, list[int]]]:
        """The images with these numbers, ``size`` at a time, each batch with the numbers of its images."""
        parts = [part[np.argsort(-self.lengths[part], kind="stable")] for part in map(np.asarray, order.split(size))]
        on_device = torch.from_numpy(np.concatenate(parts)).to(self.device).split(size)
        for part, numbers in zip(parts, on_device, strict=True):
            # On a GPU a kernel for all rows takes less time than several for fewer.
            of_rows = self.lengths[part] if self.device.type == "cpu" else None
            spans = (Span(len(part), self.targets.shape[2]),) if of_rows is None else spans_of(of_rows.tolist())
            inputs = self.inputs[numbers if self.inputs.device == self.device else torch.from_numpy(part)]
            yield Batch(inputs.to(self.device).float(), self.targets[numbers], spans), part.tolist()


def spans_of(lengths: Sequence[int]) -> tuple[Span, ...]:
    """Divide rows where the length falls, so that rows times steps, and :data:`SPAN` for each span, are fewest.

    Args:
        lengths: how many positions each row needs, in descending order.
    """
    best: dict[int, tuple[int, tuple[Span, ...]]] = {0: (0, ())}
    for end in range(1, len(lengths) + 1):
        if end < len(lengths) and lengths[end] == lengths[end - 1]:
            continue
        ways = []
        for start, (cost, spans) in best.items():
            span = Span(end - start, max(1, lengths[start]))
            ways.append((cost + span.rows * span.steps + SPAN, (*spans, span)))
        best[end] = min(ways)
    return best[len(lengths)][1]


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """A shuffle of ``count`` images that depends only on the seed and the epoch: a resumed run sees the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(seed, epoch)))


def mix(seed: int, count: int) -> int:
    """A seed for the epoch or step number ``count`` of a run."""
    return (seed * 1_000_003 + count) % 2**63
