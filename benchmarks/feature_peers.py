"""What people use instead of ``tagrank features``: loops over a network, written as PyTorch's tutorials write them."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tagrank.cores import cores
from tagrank.exporting.preprocessing import preprocessing_of
from tagrank.features.backbones import Backbone
from tagrank.features.backbones.backbone import LARGEST_ASPECT
from tagrank.features.computing import autocast

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
        """Compute what :func:`run_batches` does."""
        run_batches(self._backbone, self._loader, self._device)


class DecodedOnDevice:
    """JPEG files that the backbone's device decodes, resizes and crops; threads only read them.

    A candidate for tagrank's own pipeline. It decodes whole photographs where tagrank takes fractions of their
    resolution, and resizes with torchvision's filter, which rounds otherwise than Pillow's.

    Raises:
        RuntimeError: torchvision was built without the device's decoder.
        InputError: the backbone's preprocessing is of a kind that is not known here.
    """

    def __init__(self, backbone: Backbone, paths: Sequence[Path]) -> None:
        self._backbone, self._paths = backbone, list(paths)
        self._device = next(backbone.parameters()).device
        self._steps = preprocessing_of(backbone, LARGEST_ASPECT)
        self._divide = torch.tensor(self._steps.divide, device=self._device).view(3, 1, 1)
        self._subtract = torch.tensor(self._steps.subtract, device=self._device).view(3, 1, 1)
        self._batch(self._paths[:1])

    def features(self) -> Tensor:
        """Features of all photographs, ``[N, D]`` on the CPU."""
        size = BATCH[self._device.type]
        starts = range(0, len(self._paths), size)
        return torch.cat([self._batch(self._paths[start : start + size]) for start in starts]).cpu()

    def _batch(self, paths: Sequence[Path]) -> Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        with ThreadPoolExecutor(cores()) as pool:
            files = list(pool.map(read_file, map(str, paths)))
        decoded = decode_jpeg(files, ImageReadMode.RGB, device=self._device)
        images = torch.stack([self._transform(image) for image in decoded])
        with torch.inference_mode(), autocast(self._device):
            return self._backbone(images.contiguous(memory_format=torch.channels_last)).float()

    def _transform(self, image: Tensor) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode, functional

        height, width = image.shape[1:]
        (width, height), (left, top) = self._steps.geometry(width, height)
        filter = InterpolationMode(self._steps.resample)
        image = functional.resize(image.float(), [height, width], filter, antialias=True)
        if self._steps.crop is not None:
            image = functional.crop(image, top, left, self._steps.crop, self._steps.crop)
        return (image.clamp(0, 255).round() - self._subtract) / self._divide


def run_batches(network: nn.Module, batches: Iterable[Tensor], device: torch.device) -> None:
    """Compute, on a GPU as it is advised there: pinned memory, the channels-last format, and autocast."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    with torch.inference_mode(), autocast(device):
        for images in batches:
            network(images.to(device, non_blocking=True).contiguous(memory_format=layout)).float().cpu()


def timm_name(backbone: str) -> str | None:
    """What timm calls the network of a backbone. None if it is not installed, or does not have it."""
    name = backbone.removeprefix("timm:")
    if find_spec("timm") is None:
        return None
    import timm

    return name if timm.is_model(name.partition(".")[0]) else None


class Timm:
    """timm's network of a name, with random weights, and its own loader, which prefetches to a GPU."""

    def __init__(self, name: str, paths: Sequence[Path], device: torch.device) -> None:
        import timm

        on_gpu = device.type == "cuda"
        self.network = timm.create_model(name, pretrained=False, num_classes=0).eval().to(device)
        if on_gpu:
            self.network.to(memory_format=torch.channels_last)
        self._device = device
        data = timm.data.resolve_model_data_config(self.network)
        self._loader = timm.data.create_loader(
            WithLabels(paths),
            data["input_size"],
            BATCH[device.type],
            use_prefetcher=on_gpu,
            num_workers=cores(),
            pin_memory=on_gpu,
            persistent_workers=True,
            device=device,
            **{name: data[name] for name in ("interpolation", "mean", "std", "crop_pct")},
        )

    def features(self) -> None:
        """Compute what :func:`run_batches` does."""
        run_batches(self.network, (images for images, _ in self._loader), self._device)


class WithLabels(Dataset[Any]):
    """Photographs as timm takes them: it sets how they are transformed, and wants a label with each."""

    transform: Callable[[Image.Image], Any]

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.open(self._paths[index]).convert("RGB")), 0
