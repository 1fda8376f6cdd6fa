"""The C++ backend for CPUs: ``csrc/``, built into ``tagrank/_C.so``.

The whole sequence is one native call: at each step a matrix product of torch's, then one fused, vectorised pass over
the cell. It computes in float32 (float64 for float64); bfloat16 is a storage type. It uses AVX-512 or AVX2 where the
CPU has them; the environment variable ``TAGRANK_CPU_CAPABILITY`` (``portable``, ``avx2`` or ``avx512``), read once,
holds it to less.
"""

import torch
from torch import Tensor

from tagrank.recurrence import _lib
from tagrank.recurrence.trace import record

DEVICE = "cpu"
UNAVAILABLE = _lib.load()
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
#: The steps from which packing weight_hh for oneDNN pays. Backward packs its transpose, which takes twice as long.
PACKED_FORWARD, PACKED_BACKWARD = 5, 10


def unsupported(gates_x: Tensor) -> str | None:
    """Why these gates cannot be taken, or ``None``."""
    if gates_x.device.type != DEVICE:
        return f"it runs on the CPU, and gates_x is on {gates_x.device}"
    if gates_x.dtype not in DTYPES:
        return f"it takes float32, float64 and bfloat16 (CPUs have no fast float16 product); got {gates_x.dtype}"
    return None


def forward(
    gates_x: Tensor, weight_hh: Tensor, h0: Tensor, c0: Tensor, steps: int, save_gates: bool, save_cells: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(output, c_n, gates, cells)``, shaped as in :mod:`tagrank.recurrence.op`; what is not saved has no elements."""
    record("native.forward")
    packed = packs(h0, steps, PACKED_FORWARD)
    return torch.ops.tagrank.native_forward(  # type: ignore[no-any-return]
        gates_x, weight_hh, h0, c0, steps, save_gates, save_cells, packed
    )


def backward(
    grad_output: Tensor, grad_c_n: Tensor, weight_hh: Tensor, c0: Tensor, gates: Tensor, cells: Tensor, constant: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(d_gates, d_gates_x, d_h0, d_c0)``; ``d_gates_x`` is the sum of ``d_gates`` over time for constant gates."""
    record("native.backward")
    packed = packs(c0, gates.shape[0], PACKED_BACKWARD)
    d_gates, d_sum, d_h0, d_c0 = torch.ops.tagrank.native_backward(
        grad_output, grad_c_n, weight_hh, c0, gates, cells, constant, packed
    )
    return d_gates, d_sum if constant else d_gates, d_h0, d_c0


def packs(state: Tensor, steps: int, worthwhile: int) -> bool:
    """Whether to pack ``weight_hh`` before the time loop, for a state ``[B, H]`` and from ``worthwhile`` steps on.

    A packed product is faster by a third or more where H is at least 512. For a smaller H it is not, nor for a single
    row, which reads the weight once either way; and bfloat16 products go through oneDNN as they are.
    """
    batch, hidden = state.shape
    if state.dtype != torch.float32 or batch == 1 or hidden < 512 or steps < worthwhile:
        return False
    return torch.backends.mkldnn.is_available()  # type: ignore[no-any-return]
