"""The CUDA C++ backend for NVIDIA GPUs from compute capability 9.0 on: ``csrc/cuda``, built into ``tagrank/_C.so``.

A whole sequence is one launch. Up to 16 thread blocks, a cluster, keep U in their registers and exchange the hidden
states through distributed shared memory. The library has these kernels if nvcc was there when tagrank was installed,
and ``auto`` takes them on the GPUs that ``tagrank.kernels.verified`` names, for the calls for which
``tagrank.kernels.choice`` puts them before Triton's.
"""

from functools import cache
from typing import TYPE_CHECKING

import torch

from tagrank.kernels.choice import backend_for
from tagrank.kernels.verified import VERIFIED
from tagrank.recurrence import library
from tagrank.recurrence.backends.base import BackwardCall, ForwardCall, GatesLike
from tagrank.recurrence.backends.compiled import Compiled
from tagrank.recurrence.backends.gpu import current_stream, dotted, gpu_of, no_gpu
from tagrank.recurrence.dtypes import dtype_name
from tagrank.recurrence.precision import precision
from tagrank.recurrence.tracing import record

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu

#: The largest H. Clusters have up to 16 blocks of 32 hidden units each. In float32, a block's share of U fits in its
#: registers only if H is at most 256.
MAX_HIDDEN = {torch.float16: 512, torch.bfloat16: 512, torch.float32: 256}
#: The first GPUs that have clusters.
OLDEST = (9, 0)


class Cluster(Compiled):
    name = "cluster"
    device = "cuda"
    dtypes = tuple(MAX_HIDDEN)

    def __init__(self) -> None:
        #: Why the library has no such kernels, or ``None``.
        self.not_built = library.load() or library.without_cuda()

    def unavailable(self) -> str | None:
        # Not in __init__: to look for a GPU takes time and starts the driver, so `import tagrank` must not.
        return self.not_built or no_gpu() or _driver_too_old()

    def unsupported(self, gates_x: GatesLike, gpu: "Gpu | None" = None) -> str | None:
        device, dtype, hidden = gates_x.device, gates_x.dtype, gates_x.shape[-1] // 4
        if device.type != self.device:
            return f"it runs on NVIDIA GPUs, and gates_x is on {device}"
        capability = (gpu or gpu_of(device)).capability
        if capability < OLDEST:
            return f"it needs compute capability {dotted(OLDEST)}, and the GPU has {dotted(capability)}"
        if dtype not in self.dtypes:
            return f"it takes {', '.join(map(dtype_name, self.dtypes))}; got {dtype_name(dtype)}"
        if hidden > (most := MAX_HIDDEN[dtype]):
            held = f"what the registers of {most // 32} blocks hold in {dtype_name(dtype)}"
            return f"it takes H up to {most}, {held}; got {hidden}"
        if gpu is None and not _fits(device.index, hidden, dtype == torch.float32):
            return f"this GPU runs no cluster of {-(-hidden // 32)} blocks with as much shared memory as it needs"
        return None

    def unproven(self, gates_x: GatesLike, gpu: "Gpu | None" = None) -> str | None:
        batch, hidden, dtype = gates_x.shape[-2], gates_x.shape[-1] // 4, dtype_name(gates_x.dtype)
        taken, refusals = backend_for(hidden, batch, dtype, gpu or gpu_of(gates_x.device), VERIFIED)
        return None if taken == self.name else refusals["cluster"]

    def launch(self, call: ForwardCall | BackwardCall) -> list[int]:
        record("cluster.forward" if isinstance(call, ForwardCall) else "cluster.backward")
        return [current_stream(call.device), precision(call.dtype) == "tf32", 0]


@cache
def _counted(device: int, hidden: int, float32: bool) -> bool:
    active = torch.ops.tagrank.active_clusters
    return all(active(device, hidden, float32, backward) > 0 for backward in (False, True))


def _fits(device: int, hidden: int, float32: bool) -> bool:
    """Whether the GPU runs the clusters of both passes: a partition of a GPU may have too few multiprocessors."""
    return _counted(device, hidden, float32)


@cache
def _driver_too_old() -> str | None:
    """What is wrong with the driver, or ``None``. The library may be built for a later CUDA than torch."""
    try:
        torch.ops.tagrank.active_clusters(0, 1, False, False)
    except RuntimeError as error:
        if "driver version is insufficient" in str(error):
            return "the driver of the GPU is for an earlier CUDA than the one that tagrank's C++ library was built with"
    return None


# What torch.compiler.assume_constant_result does, which would import all of torch's compiler.
_driver_too_old._dynamo_marked_constant = True  # type: ignore[attr-defined]
_fits._dynamo_marked_constant = True  # type: ignore[attr-defined]
