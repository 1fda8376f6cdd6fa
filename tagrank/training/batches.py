"""Images and their lists in batches, in an order that the seed determines."""

from collections.abc import Iterator, Sequence, Sized
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tagrank.data.targets import ListTargets, encode_lists


class Batch(NamedTuple):
    """``B`` images.

    Attributes:
        inputs: features ``[B, D]`` or pixels ``[B, 3, h, w]``.
        lists: the lists of these images.
        numbers: ``[B]``, the number of each image in its data set.
    """

    inputs: Tensor
    lists: ListTargets
    numbers: Tensor


class ListDataset(Dataset[int]):
    """Images with ordered lists of tags; :meth:`collate` reads a batch.

    Args:
        inputs: ``[N, ...]``, features or pixels, of any floating dtype.
        lists: for each image its lists of tag indices.
        end: the class END.
        steps: ``S`` of the model.
    """

    def __init__(self, inputs: Tensor, lists: Sequence[Sequence[Sequence[int]]], end: int, steps: int) -> None:
        self.inputs = inputs
        self.lists = lists
        self.end = end
        self.steps = steps

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: Sequence[int]) -> Batch:
        """The images with these numbers as a batch."""
        lists = encode_lists([self.lists[i] for i in indices], self.end, self.steps)
        numbers = torch.tensor(indices)
        return Batch(self.inputs[numbers].float(), lists, numbers)


class EpochSampler(Sampler[int]):
    """A shuffle that depends only on the seed and the epoch, so that a resumed run sees the same order."""

    def __init__(self, data: Sized, seed: int) -> None:
        self.data = data
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        return iter(torch.randperm(len(self.data), generator=generator).tolist())


def mix(seed: int, count: int) -> int:
    """A seed for the epoch or step number ``count`` of a run."""
    return (seed * 1_000_003 + count) % 2**63
