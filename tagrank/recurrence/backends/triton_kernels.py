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

from tagrank.recurrence.backends.eager import cell_dtype
from tagrank.recurrence.backends.products import recurrent_products, weight_gradients
from tagrank.recurrence.tracing import record

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu, Kernel, Name, Variant

DEVICE = "cuda"
UNAVAILABLE: str | None

#: The oldest GPUs that have the bfloat16 and TF32 matrix instructions, and what the tables are made for.
OLDEST = (8, 0)

_INSTALLED = find_spec("triton") is not None
_forced: "dict[Kernel, Variant | Name]" = {}
#: For each device and stream, the counters of its barriers.
_counters: dict[tuple[torch.device, int], Tensor] = {}


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
    return too_old(gpu_of(gates_x.device), gates_x.device)


def too_old(gpu: "Gpu", device: torch.device) -> str | None:
    """Why a GPU is too old for these kernels, or ``None``."""
    if gpu.capability >= OLDEST:
        return None
    return f"it needs compute capability {_dotted(OLDEST)}, and {device} has {_dotted(gpu.capability)}"


@contextmanager
def forced(*, forward: "Variant | Name | None" = None, backward: "Variant | Name | None" = None) -> Iterator[None]:
    """Inside the block, launch these variants whatever ``tagrank.kernels.verified`` says: for tests and measurements.

    A name (``"resident"``, ``"grouped"``, ``"step"``) leaves the tile sizes to the table; a call that none of them
    serves is a ``ValueError``. It holds for all threads, as PyTorch runs backward passes on GPUs in one of its own.
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
    from tagrank.kernels.variants import alignment

    batch, hidden = gates_x.shape[-2], weight_hh.shape[1]
    variant = _variant("forward", gates_x, batch, hidden)
    launches = _launches(variant, steps)
    output = gates_x.new_empty(steps, batch, hidden)
    c_n = gates_x.new_empty(batch, hidden)
    gates = gates_x.new_empty((steps, batch, 4 * hidden) if save_gates else (0,))
    # From one launch to the next, c goes through memory: saved, or in two slots that take turns.
    slots = steps if save_cells else min(len(launches), 2) if len(launches) > 1 else 0
    cells = gates_x.new_empty((slots, batch, hidden), dtype=cell_dtype(gates_x.dtype))
    grid = variant.grid(batch, hidden)
    with _guard(gates_x):
        counters = _zeroed_counters(variant, gates_x, grid[0])
        for t0, count in launches:
            lstm_forward[grid](
                gates_x,
                weight_hh,
                h0,
                c0,
                output,
                c_n,
                gates,
                cells,
                counters,
                t0,
                count,
                steps,
                batch,
                hidden // alignment(hidden),
                slots,
                CONSTANT=gates_x.dim() == 2,
                SAVE_GATES=save_gates,
                SAVE_CELLS=slots > 0,
                **_options(variant, hidden),
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
    weight_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(d_gates_x, d_weight_hh, d_h0, d_c0)``. Shapes as in ``tagrank.recurrence.op``.

    The gradients of ``h`` and ``c`` go from step to step in float32 (float64 for float64), and so does the sum over
    time that is the gradient of a ``constant`` input.
    """
    from tagrank.kernels.backward import lstm_backward
    from tagrank.kernels.variants import alignment

    grad_output = grad_output.contiguous()
    steps, batch, hidden = output.shape
    recompute = gates.numel() == 0
    if recompute:
        gates = recurrent_products(output, weight_hh, h0)
    variant = _variant("backward", output, batch, hidden)
    launches = _launches(variant, steps)
    # Gates that were computed again are nobody else's, so that their gradients can take their place.
    d_gates = gates if recompute else torch.empty_like(gates)
    d_gates_x = gates.new_empty((batch, 4 * hidden) if constant else (0,))
    d_c0 = output.new_empty((0,) if c0 is None else (batch, hidden))
    slots = 0 if len(launches) == 1 else 2
    carry_c = cells.new_empty(slots, batch, hidden)
    carry_x = cells.new_empty((slots, batch, 4 * hidden) if constant else (0,))
    grid = variant.grid(batch, hidden)
    with _guard(gates):
        counters = _zeroed_counters(variant, gates, grid[0])
        for t0, count in reversed(launches):
            lstm_backward[grid](
                grad_output,
                grad_c_n,
                weight_hh,
                c0,
                gates,
                gates_x,
                cells,
                d_gates,
                d_gates_x,
                d_c0,
                carry_c,
                carry_x,
                counters,
                t0,
                count,
                steps,
                batch,
                hidden // alignment(hidden),
                CONSTANT=constant,
                RECOMPUTE=recompute,
                **_options(variant, hidden),
            )
    d_weight_hh, d_h0 = weight_gradients(d_gates, output, weight_hh, h0, weight_wanted)
    return d_gates_x if constant else d_gates, d_weight_hh, d_h0, d_c0


def _interpreted() -> bool:
    """Whether the kernels are interpreted; Triton decided when it met their ``@triton.jit``."""
    from triton import JITFunction

    from tagrank.kernels.forward import lstm_forward

    return not isinstance(lstm_forward, JITFunction)


def _guard(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, so make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def gpu_of(device: torch.device) -> "Gpu":
    """What the table is asked for; the interpreter stands for the oldest GPU."""
    from tagrank.kernels.variants import Gpu

    if device.type != "cuda":
        return Gpu(OLDEST, 108)
    # Unlike torch.cuda.get_device_capability, torch.compile takes this for a constant.
    properties = torch.cuda.get_device_properties(device)
    return Gpu((properties.major, properties.minor), properties.multi_processor_count)


def _variant(kernel: "Kernel", tensor: Tensor, batch: int, hidden: int) -> "Variant":
    """The variant that serves tensors like this one, noted in the trace."""
    from tagrank.kernels.choice import choose
    from tagrank.kernels.variants import Variant

    variant = _forced.get(kernel)
    if not isinstance(variant, Variant):
        dtype = str(tensor.dtype).removeprefix("torch.")
        variant = choose(kernel, hidden, batch, dtype, gpu_of(tensor.device), name=variant)
    record(f"triton.{kernel}.{variant.name}")
    return variant


def _launches(variant: "Variant", steps: int) -> list[tuple[int, int]]:
    """``(first step, number of steps)`` of each launch, in order of time."""
    return [(t, 1) for t in range(steps)] if variant.name == "step" else [(0, steps)]


def _zeroed_counters(variant: "Variant", tensor: Tensor, tiles: int) -> Tensor:
    """The counter of each batch tile's barrier: zero, as launches of one stream follow each other and leave zeros."""
    size = tiles if variant.cooperative else 0
    # In a CUDA graph, whose replays may run on any streams, the counters are the graph's own.
    if size == 0 or not tensor.is_cuda or torch.cuda.is_current_stream_capturing():
        return tensor.new_zeros(size, dtype=torch.int32)
    key = (tensor.device, torch.cuda.current_stream(tensor.device).cuda_stream)
    if key not in _counters or len(_counters[key]) < size:
        _counters[key] = tensor.new_zeros(max(size, 256), dtype=torch.int32)
    return _counters[key]


def _options(variant: "Variant", hidden: int) -> dict[str, Any]:
    from tagrank.kernels.variants import alignment

    return {
        "VARIANT": variant.name,
        # What torch.set_float32_matmul_precision sets too; its getter raises where the setting was made here.
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "ALIGN": alignment(hidden),
        "BLOCK_B": variant.block_b,
        "BLOCK_H": variant.block_h,
        "BLOCK_K": variant.block_k,
        "CHUNKS": variant.chunks(hidden),
        **variant.launch_options(),
    }
