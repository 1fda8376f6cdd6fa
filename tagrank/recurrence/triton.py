"""The Triton backend: launches ``tagrank.kernels`` on NVIDIA GPUs, or on CPU tensors in Triton's interpreter.

Triton and the kernels are imported at the first call, so that ``import tagrank`` needs neither.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tagrank.recurrence.eager import activate, cell_dtype
from tagrank.recurrence.trace import record

if TYPE_CHECKING:
    from tagrank.kernels.choice import Kernel, Variant

DEVICE = "cuda"
UNAVAILABLE: str | None

#: The oldest GPUs that have the bfloat16 and TF32 matrix instructions, and what the tables are made for.
OLDEST = (8, 0)

_INSTALLED = find_spec("triton") is not None
_forced: "dict[Kernel, Variant]" = {}


def __getattr__(name: str) -> Any:
    # Looking for a GPU takes time and starts the driver, so not while tagrank is imported.
    if name == "UNAVAILABLE":
        return _unavailable()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _unavailable() -> str | None:
    if not _INSTALLED:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if torch.version.hip is not None:
        return "only NVIDIA GPUs are supported, and this PyTorch is built for AMD's"
    if not torch.cuda.is_available():
        return "no NVIDIA GPU (TRITON_INTERPRET=1, set before triton is imported, runs its kernels on CPUs, slowly)"
    newest = max((torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())), default=OLDEST)
    return (
        None
        if newest >= OLDEST
        else f"it needs compute capability {_dotted(OLDEST)}, and the GPU has {_dotted(newest)}"
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def unsupported(gates_x: Tensor) -> str | None:
    """Why these kernels cannot take tensors like ``gates_x``, or ``None``."""
    device = gates_x.device.type
    if device not in ("cuda", "cpu"):
        return f"it runs on NVIDIA GPUs, and gates_x is on {gates_x.device}"
    if _interpreted():
        return "Triton's interpreter multiplies bfloat16 wrongly" if gates_x.dtype == torch.bfloat16 else None
    if device == "cpu":
        return (
            "it takes CPU tensors in Triton's interpreter alone, for tests (TRITON_INTERPRET=1, set before triton is "
            f"imported), and gates_x is on {gates_x.device}"
        )
    capability = _capability(gates_x)
    if capability < OLDEST:
        return f"it needs compute capability {_dotted(OLDEST)}, and {gates_x.device} has {_dotted(capability)}"
    return None


@contextmanager
def forced(*, forward: "Variant | None" = None, backward: "Variant | None" = None) -> Iterator[None]:
    """Inside the block, launch these variants whatever the table says: for tests and measurements.

    It holds for all threads, as PyTorch runs backward passes on GPUs in one of its own.
    """
    before = dict(_forced)
    _forced.update({} if forward is None else {"forward": forward})
    _forced.update({} if backward is None else {"backward": backward})
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def forward(
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    steps: int,
    save_gates: bool,
    save_cells: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(output, c_n, gates, cells)``; what is not saved has no elements. Shapes as in ``tagrank.recurrence.op``."""
    from tagrank.kernels.forward import lstm_forward

    batch, hidden = gates_x.shape[-2], weight_hh.shape[1]
    h0 = gates_x.new_zeros(batch, hidden) if h0 is None else h0
    c0 = gates_x.new_zeros(batch, hidden) if c0 is None else c0
    variant = _variant("forward", h0)
    state = cell_dtype(gates_x.dtype)
    output = gates_x.new_empty(steps, batch, hidden)
    c_n = gates_x.new_empty(batch, hidden)
    gates = gates_x.new_empty((steps, batch, 4 * hidden) if save_gates else (0,))
    # From one launch to the next, c goes through memory: saved, or in two slots that take turns.
    slots = steps if save_cells else 0 if variant.resident else min(steps, 2)
    cells = gates_x.new_empty((slots, batch, hidden), dtype=state)
    with _guard(gates_x):
        for t0, count in _launches(variant, steps):
            lstm_forward[variant.grid(batch, hidden)](
                gates_x,
                weight_hh,
                h0,
                c0,
                output,
                c_n,
                gates,
                cells,
                t0,
                count,
                steps,
                batch,
                hidden,
                slots,
                CONSTANT=gates_x.dim() == 2,
                RESIDENT=variant.resident,
                SAVE_GATES=save_gates,
                SAVE_CELLS=slots > 0,
                **_options(variant),
            )
    return output, c_n, gates, cells if save_cells else cells.new_empty(0)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(d_gates_x, d_weight_hh, d_h0, d_c0)``. Shapes as in ``tagrank.recurrence.op``.

    The gradients of ``h`` and ``c`` go from step to step in float32 (float64 for float64), and so does the sum over
    time that is the gradient of a ``constant`` input.
    """
    from tagrank.kernels.backward import lstm_backward

    grad_output = grad_output.contiguous()
    steps, batch, hidden = output.shape
    zeros = output.new_zeros(batch, hidden)
    if gates.numel() == 0:
        h_prev = torch.cat([(zeros if h0 is None else h0).unsqueeze(0), output[:-1]])
        gates = activate(torch.matmul(h_prev, weight_hh.t()) + gates_x)
    variant = _variant("backward", grad_c_n)
    d_gates = torch.empty_like(gates)
    d_gates_x = gates.new_empty((batch, 4 * hidden) if constant else (0,))
    d_c0 = output.new_empty(batch, hidden)
    slots = 0 if variant.resident or steps == 1 else 2
    carry_c = cells.new_empty(slots, batch, hidden)
    carry_x = cells.new_empty((slots, batch, 4 * hidden) if constant else (0,))
    with _guard(gates):
        for t0, count in reversed(_launches(variant, steps)):
            lstm_backward[variant.grid(batch, hidden)](
                grad_output,
                grad_c_n,
                weight_hh,
                zeros if c0 is None else c0,
                gates,
                cells,
                d_gates,
                d_gates_x,
                d_c0,
                carry_c,
                carry_x,
                t0,
                count,
                steps,
                batch,
                hidden,
                CONSTANT=constant,
                RESIDENT=variant.resident,
                **_options(variant),
            )
    # One product over all steps and rows; h_{t-1} is h0 at the first step and the output, shifted, after it.
    d_weight_hh = d_gates[1:].flatten(0, 1).t() @ output[:-1].flatten(0, 1)
    if h0 is not None:
        d_weight_hh.addmm_(d_gates[0].t(), h0)
    d_h0 = output.new_empty(0) if h0 is None else d_gates[0] @ weight_hh
    return d_gates_x if constant else d_gates, d_weight_hh, d_h0, output.new_empty(0) if c0 is None else d_c0


def _interpreted() -> bool:
    """Whether the kernels are interpreted; Triton decided when it met their ``@triton.jit``."""
    from triton import JITFunction

    from tagrank.kernels.forward import lstm_forward

    return not isinstance(lstm_forward, JITFunction)


def _guard(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, so make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _capability(tensor: Tensor) -> tuple[int, int]:
    """The compute capability that the table is asked for; the interpreter stands for the oldest."""
    if not tensor.is_cuda:
        return OLDEST
    # Unlike torch.cuda.get_device_capability, torch.compile takes this for a constant.
    properties = torch.cuda.get_device_properties(tensor.device)
    return properties.major, properties.minor


def _variant(kernel: "Kernel", state: Tensor) -> "Variant":
    """The variant that serves tensors like ``state`` ``[B, H]``, noted in the trace."""
    from tagrank.kernels.choice import choose

    variant = _forced.get(kernel)
    if variant is None:
        batch, hidden = state.shape
        variant = choose(kernel, hidden, batch, str(state.dtype).removeprefix("torch."), _capability(state))
    record(f"triton.{kernel}.{variant.name}")
    return variant


def _launches(variant: "Variant", steps: int) -> list[tuple[int, int]]:
    """``(first step, number of steps)`` of each launch, in order of time."""
    return [(0, steps)] if variant.resident else [(t, 1) for t in range(steps)]


def _options(variant: "Variant") -> dict[str, Any]:
    # What torch.set_float32_matmul_precision sets too; its getter raises where the setting was made here.
    return {
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "BLOCK_B": variant.block_b,
        "BLOCK_H": variant.block_h,
        "BLOCK_K": variant.block_k,
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
    }
