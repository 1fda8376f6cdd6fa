"""The Triton backend: launches ``tagrank.kernels`` on NVIDIA GPUs, or on CPU tensors in Triton's interpreter.

Triton and the kernels are imported at the first call, so that ``import tagrank`` needs neither.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tagrank.recurrence.backends.base import Backend, BackwardInputs, Gradients, Outputs
from tagrank.recurrence.backends.gpu import dotted, gpu_of
from tagrank.recurrence.backends.products import gates_and_place_for_gradients, weight_and_state_gradients
from tagrank.recurrence.dtypes import DTYPES, cell_dtype, dtype_name
from tagrank.recurrence.precision import float32_precision
from tagrank.recurrence.tracing import record

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu, Kernel, Name, Variant

#: The oldest GPUs that have the bfloat16 and TF32 matrix instructions; the table of tiles is made for these and later.
OLDEST = (8, 0)

_INSTALLED = find_spec("triton") is not None


class Triton(Backend):
    name = "triton"
    device = "cuda"
    dtypes = DTYPES

    def __init__(self) -> None:
        self._forced: dict[Kernel, Variant | Name] = {}
        #: For each device and stream, the counters of its barriers.
        self._counters: dict[tuple[torch.device, int], Tensor] = {}

    def unavailable(self) -> str | None:
        # Not in __init__: to look for a GPU takes time and starts the driver, so `import tagrank` must not.
        if not _INSTALLED:
            return "triton is not installed"
        if self.interpreted():
            return None
        if torch.version.hip is not None:
            return "only NVIDIA GPUs are supported, and this PyTorch is built for AMD's"
        if not torch.cuda.is_available():
            return "no NVIDIA GPU (TRITON_INTERPRET=1, set before triton is imported, runs its kernels on CPUs, slowly)"
        newest = max((torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())), default=OLDEST)
        if newest < OLDEST:
            return f"it needs compute capability {dotted(OLDEST)}, and the GPU has {dotted(newest)}"
        return None

    def unsupported(self, gates_x: Tensor, gpu: "Gpu | None" = None) -> str | None:
        device = gates_x.device
        if device.type not in ("cuda", "cpu"):
            return f"it runs on NVIDIA GPUs, and gates_x is on {device}"
        if gpu is None and _kernels_are_interpreted():
            if gates_x.dtype == torch.bfloat16:
                return "Triton's interpreter multiplies bfloat16 wrongly"
        elif device.type == "cpu":
            return (
                "it takes CPU tensors in Triton's interpreter only, for tests (TRITON_INTERPRET=1, set before triton "
                f"is imported), and gates_x is on {device}"
            )
        elif (there := gpu or gpu_of(device)).capability < OLDEST:
            return f"it needs compute capability {dotted(OLDEST)}, and {device} has {dotted(there.capability)}"
        return self._forced_unsupported(gates_x, gpu) if self._forced else None

    def _forced_unsupported(self, gates_x: Tensor, gpu: "Gpu | None") -> str | None:
        """Why a variant that is forced by name serves no such gates, or ``None``."""
        try:
            for kernel in self._forced:
                self._choose(kernel, gates_x, gates_x.shape[-2], gates_x.shape[-1] // 4, gpu)
        except ValueError as error:
            return str(error)
        return None

    def explain(self, gates_x: Tensor, steps: int, gpu: "Gpu | None" = None) -> Iterator[str]:
        """For each kernel its rules up to the rule that serves, without those of other dtypes."""
        from tagrank.kernels.choice import consider

        batch, hidden, dtype = gates_x.shape[0], gates_x.shape[1] // 4, dtype_name(gates_x.dtype)
        kernels: tuple[Kernel, ...] = ("forward", "backward")
        for kernel in kernels:
            for rule, reason in consider(kernel, hidden, batch, dtype, gpu or _gpu(gates_x.device)):
                if reason is None:
                    tiles, slices = rule.variant.grid(batch, hidden)
                    launches = len(_launches(rule.variant, steps))
                    many = "launch" if launches == 1 else "launches"
                    yield f"{kernel}: {rule.variant}, {launches} {many} of {tiles} x {slices} programs; {rule.why}"
                    break
                if dtype in rule.dtypes:
                    yield f"{kernel}: not {rule.variant}, as {reason}"

    def interpreted(self) -> bool:
        return os.environ.get("TRITON_INTERPRET") == "1"

    def variants(self) -> Mapping[str, Callable[[], AbstractContextManager[object]]]:
        names: tuple[Name, ...] = ("resident", "grouped", "step")
        return {name: partial(self.forced, forward=name, backward=name) for name in names}

    @contextmanager
    def forced(
        self, *, forward: "Variant | Name | None" = None, backward: "Variant | Name | None" = None
    ) -> Iterator[None]:
        """Inside the block, launch these variants whatever ``tagrank.kernels.verified`` says.

        A name (``"resident"``, ``"grouped"``, ``"step"``) leaves the tile sizes to the table; gates that no entry of
        this name serves are then not supported. It holds for all threads, because PyTorch runs backward passes on GPUs
        in a thread of its own.
        """
        before = self._forced
        given: dict[Kernel, Variant | Name | None] = {"forward": forward, "backward": backward}
        self._forced = before | {kernel: variant for kernel, variant in given.items() if variant is not None}
        try:
            yield
        finally:
            self._forced = before

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
        from tagrank.kernels.forward import lstm_forward
        from tagrank.kernels.variants import alignment

        batch, hidden = gates_x.shape[-2], weight_hh.shape[1]
        variant = self._variant("forward", gates_x, batch, hidden)
        launches = _launches(variant, steps)
        output = gates_x.new_empty(steps, batch, hidden)
        c_n = gates_x.new_empty(batch, hidden)
        gates = gates_x.new_empty((steps, batch, 4 * hidden) if save_gates else (0,))
        # From one launch to the next, c goes through memory: saved, or in two slots that take turns.
        slots = steps if save_cells else min(len(launches), 2) if len(launches) > 1 else 0
        cells = gates_x.new_empty((slots, batch, hidden), dtype=cell_dtype(gates_x.dtype))
        grid = variant.grid(batch, hidden)
        with _guard(gates_x):
            counters = self._zeroed_counters(variant, gates_x, grid[0])
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

    def backward(self, inputs: BackwardInputs) -> Gradients:
        """The gradients.

        Those of ``h`` and ``c`` go from step to step in float32 (float64 for float64), and so does the sum over time
        that is the gradient of a ``constant`` input.
        """
        from tagrank.kernels.backward import lstm_backward
        from tagrank.kernels.variants import alignment

        grad_output, constant, c0 = inputs.grad_output.contiguous(), inputs.constant, inputs.c0
        steps, batch, hidden = inputs.output.shape
        gates, d_gates = gates_and_place_for_gradients(inputs)
        variant = self._variant("backward", inputs.output, batch, hidden)
        launches = _launches(variant, steps)
        d_gates_x = gates.new_empty((batch, 4 * hidden) if constant else (0,))
        d_c0 = gates.new_empty((0,) if c0 is None else (batch, hidden))
        slots = 0 if len(launches) == 1 else 2
        carry_c = inputs.cells.new_empty(slots, batch, hidden)
        carry_x = inputs.cells.new_empty((slots, batch, 4 * hidden) if constant else (0,))
        grid = variant.grid(batch, hidden)
        with _guard(gates):
            counters = self._zeroed_counters(variant, gates, grid[0])
            for t0, count in reversed(launches):
                lstm_backward[grid](
                    grad_output,
                    inputs.grad_c_n,
                    inputs.weight_hh,
                    c0,
                    gates,
                    inputs.gates_x,
                    inputs.cells,
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
                    RECOMPUTE=inputs.recompute,
                    **_options(variant, hidden),
                )
        d_weight_hh, d_h0 = weight_and_state_gradients(d_gates, inputs)
        return d_gates_x if constant else d_gates, d_weight_hh, d_h0, d_c0

    def _variant(self, kernel: "Kernel", tensor: Tensor, batch: int, hidden: int) -> "Variant":
        """The variant that is launched for tensors like this one; it is recorded in the trace."""
        variant = self._choose(kernel, tensor, batch, hidden)
        record(f"triton.{kernel}.{variant.name}")
        return variant

    def _choose(self, kernel: "Kernel", tensor: Tensor, batch: int, hidden: int, gpu: "Gpu | None" = None) -> "Variant":
        from tagrank.kernels.choice import choose
        from tagrank.kernels.variants import Variant

        forced = self._forced.get(kernel)
        if isinstance(forced, Variant):
            return forced
        return choose(kernel, hidden, batch, dtype_name(tensor.dtype), gpu or _gpu(tensor.device), name=forced)

    def _zeroed_counters(self, variant: "Variant", tensor: Tensor, tiles: int) -> Tensor:
        """The counter of each batch tile's barrier.

        All are zero, because the launches of a stream follow each other and each leaves zeros.
        """
        size = tiles if variant.cooperative else 0
        # A CUDA graph has counters of its own, because its replays may run on any streams.
        if size == 0 or not tensor.is_cuda or torch.cuda.is_current_stream_capturing():
            return tensor.new_zeros(size, dtype=torch.int32)
        key = (tensor.device, torch.cuda.current_stream(tensor.device).cuda_stream)
        if key not in self._counters or len(self._counters[key]) < size:
            self._counters[key] = tensor.new_zeros(max(size, 256), dtype=torch.int32)
        return self._counters[key]


def _kernels_are_interpreted() -> bool:
    """Triton decided when it came to their ``@triton.jit``."""
    from triton import JITFunction

    from tagrank.kernels.forward import lstm_forward

    return not isinstance(lstm_forward, JITFunction)


def _gpu(device: torch.device) -> "Gpu":
    """The GPU that the table of tiles is for; the oldest for the interpreter."""
    from tagrank.kernels.variants import Gpu

    return gpu_of(device) if device.type == "cuda" else Gpu(OLDEST, 108)


def _guard(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's device the current one, because Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _launches(variant: "Variant", steps: int) -> list[tuple[int, int]]:
    """``(first step, number of steps)`` of each launch, in order of time."""
    return [(t, 1) for t in range(steps)] if variant.name == "step" else [(0, steps)]


def _options(variant: "Variant", hidden: int) -> dict[str, Any]:
    from tagrank.kernels.variants import alignment

    return {
        "VARIANT": variant.name,
        "PRECISION": float32_precision(),
        "ALIGN": alignment(hidden),
        "BLOCK_B": variant.block_b,
        "BLOCK_H": variant.block_h,
        "BLOCK_K": variant.block_k,
        "CHUNKS": variant.chunks(hidden),
        **variant.launch_options(),
    }
