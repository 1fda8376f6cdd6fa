"""Runs a backbone fast on the device that it is on, a batch at a time, in the channels-last format.

On NVIDIA GPUs it runs under float16 autocast. A batch is copied and computed while the caller prepares the next one. On
CPUs it runs in float32, each batch on one core: cores that share a batch wait for each other in every layer.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tagrank.errors import InputError
from tagrank.features.backbones import Backbone

Finish = Callable[[], list[Tensor]]
"""Waits for a batch, and gives the feature of each image: float32 ``[D]`` on the CPU."""

LARGEST_BATCH = 256
BYTES_PER_IMAGE = 64 << 20
"""A generous share of a GPU's free memory for an image; VGG-16 takes about 30 MB in float16."""
CPU_BATCH = 4
"""Its activations stay small: glibc gives larger ones back to the system after each layer, and fetches them anew."""


class Computation:
    """A backbone that computes features of batches.

    Args:
        backbone: runs on the device of its parameters. It must be in evaluation mode while it computes.
        batch_size: how many images go through it at a time; by default what suits the device.
        executor: threads with one core each, for batches on the CPU. If left out, the caller's thread computes, with
            as many cores as PyTorch takes.
        workers: how many threads these are.

    Attributes:
        batch_size: the same. It is halved whenever a GPU's memory does not suffice.
        ahead: how many batches may be started before the first of them is finished.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int | None = None,
        executor: Executor | None = None,
        workers: int = 0,
    ) -> None:
        self._backbone = backbone
        self._device = next(backbone.parameters()).device
        self._executor = executor
        self.batch_size = batch_size or default_batch_size(self._device)
        self.ahead = {"cuda": 2, "cpu": workers + 1}.get(self._device.type, 1)
        backbone.network.to(memory_format=torch.channels_last)
        if self._device.type == "cuda":
            self._copies = torch.cuda.Stream(self._device)

    def start(self, pixels: Sequence[Tensor]) -> Finish:
        """Begin to compute the features of transformed images, each float32 ``[3, h, w]`` on the CPU."""
        if self._device.type == "cuda":
            return self._start_on_gpu(pixels)
        if self._device.type == "cpu" and self._executor is not None:
            return self._executor.submit(self._compute, pixels).result
        finished = self._compute(pixels)
        return lambda: finished

    def _compute(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            images = torch.stack(list(pixels)).to(self._device).contiguous(memory_format=torch.channels_last)
            features = self._backbone(images).float().cpu()
        return rows(features)

    def _start_on_gpu(self, pixels: Sequence[Tensor]) -> Finish:
        try:
            return self._launch(pixels)
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                message = f"{self._device}: not enough memory for one image of {list(pixels[0].shape)}"
                raise InputError(message) from None
        # Outside the handler, whose traceback keeps what was allocated.
        torch.cuda.empty_cache()
        half = (len(pixels) + 1) // 2
        self.batch_size = min(self.batch_size, half)
        finished = [row for part in (pixels[:half], pixels[half:]) for row in self._start_on_gpu(part)()]
        return lambda: finished

    def _launch(self, pixels: Sequence[Tensor]) -> Finish:
        """Copy and compute on streams of the GPU, which this does not wait for."""
        with torch.inference_mode(), torch.cuda.device(self._device):
            shape = (len(pixels), *pixels[0].shape)
            # PyTorch keeps pinned memory and uses it again.
            staged = torch.empty(shape, dtype=pixels[0].dtype, pin_memory=True)
            torch.stack(list(pixels), out=staged)
            compute = torch.cuda.current_stream()
            with torch.cuda.stream(self._copies):
                images = staged.to(self._device, non_blocking=True)
            compute.wait_stream(self._copies)
            images.record_stream(compute)
            with autocast(self._device):
                features = self._backbone(images.contiguous(memory_format=torch.channels_last)).float()
            host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            host.copy_(features, non_blocking=True)
            done = torch.cuda.Event()
            done.record()

        def finish() -> list[Tensor]:
            done.synchronize()
            if host.isfinite().all():
                return rows(host)
            # Numbers beyond float16's range. Those beyond float32's are not finite again.
            with torch.inference_mode():
                return rows(self._backbone(images).float().cpu())

        return finish


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """The precision in which backbones run on a device."""
    return torch.autocast("cuda", torch.float16) if device.type == "cuda" else nullcontext()


def default_batch_size(device: torch.device) -> int:
    """How many images a device computes at a time: on a GPU a power of two that its free memory allows."""
    if device.type == "cpu":
        return CPU_BATCH
    if device.type != "cuda":
        return 32
    fit = torch.cuda.mem_get_info(device)[0] // BYTES_PER_IMAGE
    return min(LARGEST_BATCH, 1 << max(0, fit.bit_length() - 1))


def rows(features: Tensor) -> list[Tensor]:
    """The rows, each with memory of its own.

    They are cloned outside inference mode: autograd may save them, and none keeps the whole batch in memory.
    """
    return [feature.clone() for feature in features]
