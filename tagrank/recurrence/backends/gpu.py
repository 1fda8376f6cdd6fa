"""What the backends for NVIDIA GPUs know of the GPU that a tensor is on."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu


def no_gpu() -> str | None:
    """Why there is no NVIDIA GPU to run on, or ``None`` if there is one. Looking for it starts the driver."""
    if torch.version.hip is not None:
        return "only NVIDIA GPUs are supported, and this PyTorch is built for AMD's"
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    return None if torch.cuda.is_available() else "no NVIDIA GPU"


def gpu_of(device: torch.device) -> "Gpu":
    """The GPU behind a CUDA device, as the tables of kernels describe it."""
    from tagrank.kernels.variants import Gpu

    # torch.compile takes this for a constant, unlike torch.cuda.get_device_capability.
    properties = torch.cuda.get_device_properties(device)
    return Gpu((properties.major, properties.minor), properties.multi_processor_count)


def dotted(capability: tuple[int, int]) -> str:
    """``"9.0"`` for the compute capability ``(9, 0)``."""
    return ".".join(map(str, capability))


def newest_capability() -> tuple[int, int] | None:
    """The highest compute capability of the GPUs here, or ``None`` if there is none."""
    return max((torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())), default=None)


# What torch.compiler.assume_constant_result does, which would import all of torch's compiler.
newest_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def elsewhere(device: torch.device) -> bool:
    """Whether this is a GPU that is not the current device, on which kernels are launched."""
    return device.type == "cuda" and torch._C._cuda_getDevice() != device.index


def current_stream(device: torch.device) -> int:
    """The handle of PyTorch's current stream on a device, as ``torch.cuda.current_stream(device).cuda_stream``."""
    stream: int = torch._C._cuda_getCurrentRawStream(device.index)
    return stream
