"""The CUDA C++ backend for NVIDIA GPUs from compute capability 9.0 on: ``csrc/cuda``, built into ``tagrank/_C.so``.

A whole sequence is one launch. Up to 16 thread blocks, a cluster, keep U in their registers and hand the hidden states
to each other through distributed shared memory. It is there where nvcc was when tagrank was installed, and ``auto``
takes it on the GPUs that ``tagrank.kernels.verified`` names.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tagrank.kernels.verified import VERIFIED
from tagrank.recurrence import library as _lib
from tagrank.recurrence.backends.products import recurrent_products, weight_gradients
from tagrank.recurrence.backends.triton_kernels import gpu_of
from tagrank.recurrence.tracing import record

DEVICE = "cuda"
UNAVAILABLE: str | None
DTYPES = (torch.float16, torch.bfloat16)
#: 16 blocks of 32 hidden units.
MAX_HIDDEN = 512
#: The first GPUs that have clusters.
OLDEST = (9, 0)

#: Why the kernels are not there, or ``None``.
LIBRARY = _lib.load() or _lib.without_cuda()


def __getattr__(name: str) -> Any:
    # Looking for a GPU takes time and starts the driver, so not while tagrank is imported.
    if name == "UNAVAILABLE":
        return LIBRARY or (None if torch.cuda.is_available() else "no NVIDIA GPU")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def unsupported(gates_x: Tensor) -> str | None:
    """Why these gates cannot be taken, or ``None``."""
    if gates_x.device.type != DEVICE:
        return f"it runs on NVIDIA GPUs, and gates_x is on {gates_x.device}"
    hidden = gates_x.shape[-1] // 4
    reason = out_of_range(gates_x.dtype, hidden, gpu_of(gates_x.device).capability)
    if reason is None and not _fits(gates_x.device.index, hidden):
        reason = f"this GPU runs no cluster of {-(-hidden // 32)} blocks with as much shared memory as it needs"
    return reason


def out_of_range(dtype: torch.dtype, hidden: int, capability: tuple[int, int]) -> str | None:
    """Why it is not made for such a call, or ``None``; ``capability`` is the GPU's."""
    if capability < OLDEST:
        return f"it needs compute capability {OLDEST[0]}.{OLDEST[1]}, and the GPU has {capability[0]}.{capability[1]}"
    if dtype not in DTYPES:
        return f"it takes float16 and bfloat16; got {str(dtype).removeprefix('torch.')}"
    if hidden > MAX_HIDDEN:
        return f"it takes H up to {MAX_HIDDEN}, what the registers of {MAX_HIDDEN // 32} blocks hold; got {hidden}"
    return None


def unproven(gates_x: Tensor) -> str | None:
    """Why ``auto`` does not take these gates though it could, or ``None``."""
    return unverified(gpu_of(gates_x.device).capability)


def unverified(capability: tuple[int, int]) -> str | None:
    """Why ``auto`` does not take it on GPUs of this compute capability, or ``None``."""
    if all((capability, kernel, "cluster") in VERIFIED for kernel in ("forward", "backward")):
        return None
    return f"it was not verified on compute capability {capability[0]}.{capability[1]}"


@cache
def _counted(device: int, hidden: int) -> bool:
    return all(torch.ops.tagrank.active_clusters(device, hidden, backward) > 0 for backward in (False, True))


def _fits(device: int, hidden: int) -> bool:
    """Whether the GPU runs the clusters of both passes: a part of one may have too few multiprocessors for that."""
    return _counted(device, hidden)


# What torch.compiler.assume_constant_result does, which would import all of torch's compiler.
_fits._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forward(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    steps: int,
    save_gates: bool,
    save_cells: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(output, c_n, gates, cells)``, shaped as in :mod:`tagrank.recurrence.op`; what is not saved has no elements."""
    record("cluster.forward")
    with torch.cuda.device(gates_x.device):
        stream = torch.cuda.current_stream().cuda_stream
        return torch.ops.tagrank.cluster_forward(  # type: ignore[no-any-return]
            gates_x, weight_hh, h0, c0, steps, save_gates, save_cells, stream
        )


def backward(
    grad_output: Tensor,
    grad_c_n: Tensor,
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    constant: bool,
    weight_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(d_gates_x, d_weight_hh, d_h0, d_c0)``; ``gates`` without elements are computed again."""
    record("cluster.backward")
    recompute = gates.numel() == 0
    if recompute:
        gates = recurrent_products(output, weight_hh, h0)
    # Gates that were computed again are nobody else's, so that their gradients can take their place.
    d_gates = gates if recompute else torch.empty_like(gates)
    with torch.cuda.device(output.device):
        stream = torch.cuda.current_stream().cuda_stream
        d_gates_x, d_c0 = torch.ops.tagrank.cluster_backward(
            grad_output.contiguous(),
            grad_c_n,
            gates_x if recompute else None,
            weight_hh,
            c0,
            gates,
            cells,
            d_gates,
            constant,
            stream,
        )
    d_weight_hh, d_h0 = weight_gradients(d_gates, output, weight_hh, h0, weight_wanted)
    return d_gates_x if constant else d_gates, d_weight_hh, d_h0, d_c0
