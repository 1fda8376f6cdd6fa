"""The CUDA C++ backend for NVIDIA GPUs from compute capability 9.0 on: ``csrc/cuda``, built into ``tagrank/_C.so``.

A whole sequence is one launch. Up to 16 thread blocks, a cluster, keep U in their registers and exchange the hidden
states through distributed shared memory. The library has these kernels if nvcc was there when tagrank was installed,
and ``auto`` takes them on the GPUs that ``tagrank.kernels.verified`` names, for the calls for which
``tagrank.kernels.choice`` puts them before Triton's.
"""

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tagrank.kernels.choice import backend_for
from tagrank.kernels.verified import VERIFIED
from tagrank.recurrence import library
from tagrank.recurrence.backends.base import Backend, BackwardInputs, Gradients, Outputs
from tagrank.recurrence.backends.gpu import dotted, gpu_of
from tagrank.recurrence.backends.products import gates_and_place_for_gradients, weight_and_state_gradients
from tagrank.recurrence.dtypes import dtype_name
from tagrank.recurrence.tracing import record

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu

#: 16 blocks of 32 hidden units.
MAX_HIDDEN = 512
#: The first GPUs that have clusters.
OLDEST = (9, 0)


class Cluster(Backend):
    name = "cluster"
    device = "cuda"
    dtypes = (torch.float16, torch.bfloat16)

    def __init__(self) -> None:
        #: Why the library has no such kernels, or ``None``.
        self.not_built = library.load() or library.without_cuda()

    def unavailable(self) -> str | None:
        # Not in __init__: to look for a GPU takes time and starts the driver, so `import tagrank` must not.
        return self.not_built or (None if torch.cuda.is_available() else "no NVIDIA GPU")

    def unsupported(self, gates_x: Tensor, gpu: "Gpu | None" = None) -> str | None:
        device, dtype, hidden = gates_x.device, gates_x.dtype, gates_x.shape[-1] // 4
        if device.type != self.device:
            return f"it runs on NVIDIA GPUs, and gates_x is on {device}"
        capability = (gpu or gpu_of(device)).capability
        if capability < OLDEST:
            return f"it needs compute capability {dotted(OLDEST)}, and the GPU has {dotted(capability)}"
        if dtype not in self.dtypes:
            return f"it takes float16 and bfloat16; got {dtype_name(dtype)}"
        if hidden > MAX_HIDDEN:
            return f"it takes H up to {MAX_HIDDEN}, what the registers of {MAX_HIDDEN // 32} blocks hold; got {hidden}"
        if gpu is None and not _fits(device.index, hidden):
            return f"this GPU runs no cluster of {-(-hidden // 32)} blocks with as much shared memory as it needs"
        return None

    def unproven(self, gates_x: Tensor, gpu: "Gpu | None" = None) -> str | None:
        batch, hidden, dtype = gates_x.shape[-2], gates_x.shape[-1] // 4, dtype_name(gates_x.dtype)
        taken, refusals = backend_for(hidden, batch, dtype, gpu or gpu_of(gates_x.device), VERIFIED)
        return None if taken == self.name else refusals["cluster"]

    def forward(
        self,
        gates_x: Tensor,
        weight_hh: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        steps: int,
        save_gates: bool,
        save_cells: bool,
    ) -> Outputs:
        record("cluster.forward")
        with torch.cuda.device(gates_x.device):
            stream = torch.cuda.current_stream().cuda_stream
            return torch.ops.tagrank.cluster_forward(  # type: ignore[no-any-return]
                gates_x, weight_hh, h0, c0, steps, save_gates, save_cells, stream
            )

    def backward(self, inputs: BackwardInputs) -> Gradients:
        record("cluster.backward")
        gates, d_gates = gates_and_place_for_gradients(inputs)
        with torch.cuda.device(inputs.output.device):
            stream = torch.cuda.current_stream().cuda_stream
            d_gates_x, d_c0 = torch.ops.tagrank.cluster_backward(
                inputs.grad_output.contiguous(),
                inputs.grad_c_n,
                inputs.gates_x if inputs.recompute else None,
                inputs.weight_hh,
                inputs.c0,
                gates,
                inputs.cells,
                d_gates,
                inputs.constant,
                stream,
            )
        d_weight_hh, d_h0 = weight_and_state_gradients(d_gates, inputs)
        return d_gates_x if inputs.constant else d_gates, d_weight_hh, d_h0, d_c0


@cache
def _counted(device: int, hidden: int) -> bool:
    return all(torch.ops.tagrank.active_clusters(device, hidden, backward) > 0 for backward in (False, True))


def _fits(device: int, hidden: int) -> bool:
    """Whether the GPU runs the clusters of both passes: a partition of a GPU may have too few multiprocessors."""
    return _counted(device, hidden)


# What torch.compiler.assume_constant_result does, which would import all of torch's compiler.
_fits._dynamo_marked_constant = True  # type: ignore[attr-defined]
