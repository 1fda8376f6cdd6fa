"""The C++ backend for CPUs: ``csrc/``, built into ``tagrank/_C.so``.

The whole sequence is one native call on PyTorch's threads: weights packed once, then at each step a matrix product
whose tiles go through the cell while they are in registers. It computes in float32 (float64 for float64); bfloat16 is a
storage type. It uses AVX-512 or AVX2 where the CPU has them, and for batches of 32 rows and more the matrix unit of
Intel's AMX. The environment variable ``TAGRANK_CPU_CAPABILITY`` (``portable``, ``avx2``, ``avx512`` or ``amx``), read
once, holds it to less; any other value, or more than the CPU has, is an error of each call that would run here.
"""

import torch
from torch import Tensor

from tagrank.recurrence import library as _lib
from tagrank.recurrence.tracing import record

DEVICE = "cpu"
_MISSING = _lib.load()
MISSET = _lib.misset() if _MISSING is None else None
UNAVAILABLE = _MISSING or MISSET
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
#: The threads of a call wait for each other, so they have to run at the same time: OpenMP's do.
CONCURRENT = torch.backends.openmp.is_available()


def unsupported(gates_x: Tensor) -> str | None:
    """Why these gates cannot be taken, or ``None``."""
    if gates_x.device.type != DEVICE:
        return f"it runs on the CPU, and gates_x is on {gates_x.device}"
    if gates_x.dtype not in DTYPES:
        return f"it takes float32, float64 and bfloat16 (CPUs have no fast float16 product); got {gates_x.dtype}"
    return None


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
    record("native.forward")
    return torch.ops.tagrank.native_forward(  # type: ignore[no-any-return]
        gates_x, weight_hh, h0, c0, steps, save_gates, save_cells, CONCURRENT
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
    record("native.backward")
    # Transposed (batch_first) or expanded (the gradient of a sum) it is read as it is.
    if grad_output.stride(-1) not in (0, 1):
        grad_output = grad_output.contiguous()
    if len(output) == 1 and h0 is not None and gates.numel() and gates.dtype != torch.bfloat16:
        # To pack the weight for one step's product would take longer than the product. Without h0 there is none.
        d_gates_x, _, _, d_c0 = torch.ops.tagrank.native_backward(
            grad_output, grad_c_n, gates_x, weight_hh, None, c0, output, gates, cells, True, False, CONCURRENT
        )
        d_weight_hh = d_gates_x.t() @ h0 if weight_wanted else h0.new_empty(0)
        return d_gates_x if constant else d_gates_x.unsqueeze(0), d_weight_hh, d_gates_x @ weight_hh, d_c0
    return torch.ops.tagrank.native_backward(  # type: ignore[no-any-return]
        grad_output, grad_c_n, gates_x, weight_hh, h0, c0, output, gates, cells, constant, weight_wanted, CONCURRENT
    )
