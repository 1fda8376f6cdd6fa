"""What people use instead of ``tagrank features``: loops over a network, written as PyTorch's tutorials write them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tagrank.features.backbones import Backbone
from tagrank.features.computing import autocast
from tagrank.features.devices import cores

BATCH = {"cpu": 32, "cuda": 64}
"""A DataLoader's processes hand batches over in shared memory, of which containers have little."""


def plain_loop(backbone: Backbone, paths: Sequence[Path]) -> None:
    """Open, transform, stack, compute; one after another."""
    device = next(backbone.parameters()).device
    size = BATCH[device.type]
    with torch.inference_mode():
        for start in range(0, len(paths), size):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + size]]
            backbone(torch.stack([backbone.transform(image) for image in images]).to(device)).cpu()


class Photographs(Dataset[Tensor]):
    """Photographs, transformed."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self._paths, self._transform = list(paths), transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        return self._transform(Image.open(self._paths[index]).convert("RGB"))


class Loader:
    """A ``DataLoader`` with a process for each core, which are started before anything is timed."""

    def __init__(self, backbone: Backbone, paths: Sequence[Path], workers: int | None = None) -> None:
        self._backbone = backbone
        self._device = next(backbone.parameters()).device
        self._loader = DataLoader(
            Photographs(paths, backbone.transform),
            batch_size=BATCH[self._device.type],
            num_workers=workers or cores(),
            persistent_workers=True,
            pin_memory=self._device.type == "cuda",
        )

    def read(self) -> None:
        """Read, and compute nothing."""
        for _ in self._loader:
            pass

    def features(self) -> None:
        """On a GPU as it is advised there: pinned memory, the channels-last format, and autocast."""
        for _ in self._features():
            pass

    def _features(self) -> Iterator[Tensor]:
        on_gpu = self._device.type == "cuda"
        layout = torch.channels_last if on_gpu else torch.contiguous_format
        with torch.inference_mode(), autocast(self._device):
            for images in self._loader:
                there = images.to(self._device, non_blocking=True).contiguous(memory_format=layout)
                yield self._backbone(there).float().cpu()
