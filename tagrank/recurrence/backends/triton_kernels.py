"""The Triton backend: launches ``tagrank.kernels`` on NVIDIA GPUs, or on CPU tensors in Triton's interpreter.

Triton and the kernels are imported at the first call, so that ``import tagrank`` needs neither.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tagrank.kernels.variants import alignment
from tagrank.recurrence import library
from tagrank.recurrence.backends.base import (
    BackwardCall,
    BackwardInputs,
    ForwardCall,
    GatesLike,
    Gradients,
    Outputs,
)
from tagrank.recurrence.backends.compiled import Compiled
from tagrank.recurrence.backends.gpu import current_stream, dotted, gpu_of, newest_capability, no_gpu
from tagrank.recurrence.backends.products import gates_and_place_for_gradients, weight_and_state_gradients
from tagrank.recurrence.dtypes import DTYPES, cell_dtype, dtype_name
from tagrank.recurrence.precision import precision
from tagrank.recurrence.tracing import record

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu, Kernel, Name, Variant

#: The oldest GPUs that have the bfloat16 and TF32 matrix instructions; the table of tiles is made for these and later.
OLDEST = (8, 0)

_INSTALLED = find_spec("triton") is not None


class Triton(Compiled):
    name = "triton"
    device = "cuda"
    dtypes = DTYPES

    def __init__(self) -> None:
        self._forced: dict[Kernel, Variant | Name] = {}
        #: What :meth:`launch` made, by the calls that it is for, the precision, and the variant that was forced.
        self._made: dict[Any, _Made] = {}
        self._has_library = library.load() is None
        #: For each device and stream, the counters of its barriers.
        self._counters: dict[tuple[torch.device, int], Tensor] = {}

    def unavailable(self) -> str | None:
        # Not in __init__: to look for a GPU takes time and starts the driver, so `import tagrank` must not.
        reason = None if self.interpreted() else no_gpu()
        if reason is not None:
            return f"{reason} (TRITON_INTERPRET=1, set before triton is imported, runs its kernels on CPUs, slowly)"
        if not _INSTALLED:
            return "triton is not installed (torch's CUDA wheels bring it): pip install 'tagrank[triton]'"
        if self.interpreted():
            return None
        newest = newest_capability()
        if newest is not None and newest < OLDEST:
            return f"it needs compute capability {dotted(OLDEST)}, and the GPU has {dotted(newest)}"
        return None

    def unsupported(self, gates_x: GatesLike, gpu: "Gpu | None" = None) -> str | None:
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

    def _forced_unsupported(self, gates_x: GatesLike, gpu: "Gpu | None") -> str | None:
        """Why a variant that is forced by name serves no such gates, or ``None``."""
        try:
            for kernel in self._forced:
                self._choose(kernel, gates_x, gates_x.shape[-2], gates_x.shape[-1] // 4, gpu)
        except ValueError as error:
            return str(error)
        return None

    def explain(self, gates_x: GatesLike, steps: int, gpu: "Gpu | None" = None) -> Iterator[str]:
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
        names: tuple[Name, ...] = ("resident", "grouped", "step", "product")
        return {name: partial(self.forced, forward=name, backward=name) for name in names}

    @contextmanager
    def forced(
        self, *, forward: "Variant | Name | None" = None, backward: "Variant | Name | None" = None
    ) -> Iterator[None]:
        """Inside the block, launch these variants whatever ``tagrank.kernels.verified`` says.

        A name (``"resident"``, ``"grouped"``, ``"step"``, ``"product"``) leaves the tile sizes to the table; gates that
        no entry of this name serves are then not supported. It holds for all threads, because PyTorch runs backward
        passes on GPUs in a thread of its own.
        """
        before = self._forced
        given: dict[Kernel, Variant | Name | None] = {"forward": forward, "backward": backward}
        self._forced = before | {kernel: variant for kernel, variant in given.items() if variant is not None}
        try:
            yield
        finally:
            self._forced = before

    def by_library(self) -> bool:
        return self._has_library and not self.interpreted()

    def launch(self, call: ForwardCall | BackwardCall) -> list[int]:
        """The numbers for ``csrc/operators/gpu.cpp``, whose enum Place has their meaning.

        They are made once for all calls that are alike, when Triton compiles the kernel.
        """
        kernel: Kernel = "forward" if isinstance(call, ForwardCall) else "backward"
        # Of the number of steps, the kernels are compiled for whether it is 1. Others may share what was made.
        key = (call._replace(steps=min(call.steps, 2)), precision(call.dtype), self._forced.get(kernel))
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(kernel, call)
        record(f"triton.{kernel}.{made.variant.name}")
        stream = current_stream(call.device)
        counters = self._counters_on(call.device, stream, made.tiles) if made.variant.cooperative else None
        address = 0 if counters is None else counters.data_ptr()
        return [stream, *made.before_counters, address, *made.after_counters]

    def _make(self, kernel: "Kernel", call: ForwardCall | BackwardCall) -> "_Made":
        """Compile a kernel for calls like this one."""
        variant = self._choose(kernel, call, call.batch, call.hidden)
        tiles, slices = variant.grid(call.batch, call.hidden)
        with torch.cuda.device(call.device):
            compiled = _compile(variant, call)
            function = _load(compiled, call.device.index)
        metadata = compiled.metadata
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise RuntimeError(
                "Triton's instrumentation of kernels is not supported; unset the variables that ask for it"
            )
        names = [name for name in compiled.src.fn.arg_names if compiled.src.signature[name] != "constexpr"]
        places = [compiled.src.fn.arg_names.index(name) for name in names]
        stride = call.grad_stride if isinstance(call, BackwardCall) else None
        after = [
            variant.stepwise,
            variant.name == "product",
            alignment(call.hidden),
            1 if stride is None else stride,
            *places,
            *_NULL_PLACES,
        ]
        threads = metadata.num_warps * 32
        tf32 = precision(call.dtype) == "tf32"
        before = [tf32, 1, function, tiles, slices, threads, metadata.shared, variant.cooperative]
        return _Made(variant, tiles, list(map(int, before)), list(map(int, after)))

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
        if self.by_library():
            return super().forward(gates_x, weight_hh, h0, c0, steps, save_gates, save_cells)
        from tagrank.kernels.forward import lstm_forward

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
        options = _forward_options(gates_x.dim() == 2, "none", save_gates, slots > 0)
        with _guard(gates_x):
            counters = self._zeroed_counters(variant, gates_x, grid[0])
            for t0, count in launches:
                h_prev = output[t0 - 1] if t0 > 0 else h0
                products = _product(variant, h_prev, weight_hh.t(), cells)
                lstm_forward[grid](
                    gates_x,
                    None,
                    weight_hh,
                    h0,
                    c0,
                    output,
                    None,
                    c_n,
                    gates,
                    cells,
                    products,
                    counters,
                    t0,
                    count,
                    steps,
                    batch,
                    hidden // alignment(hidden),
                    slots,
                    **options,
                    **_options(variant, hidden, gates_x.dtype),
                )
        return output, c_n, gates, cells if save_cells else cells.new_empty(0)

    def backward(self, inputs: BackwardInputs) -> Gradients:
        """The gradients.

        Those of ``h`` and ``c`` go from step to step in float32 (float64 for float64), and so does the sum over time
        that is the gradient of a ``constant`` input.
        """
        if self.by_library():
            return super().backward(inputs)
        from tagrank.kernels.backward import lstm_backward

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
        options = _backward_options(1, constant, constant, inputs.recompute)
        with _guard(gates):
            counters = self._zeroed_counters(variant, gates, grid[0])
            for t0, count in reversed(launches):
                d_next = d_gates[t0 + count] if t0 + count < steps else None
                products = _product(variant, d_next, inputs.weight_hh, carry_c)
                lstm_backward[grid](
                    grad_output,
                    None,
                    inputs.grad_c_n,
                    inputs.weight_hh,
                    c0,
                    gates,
                    inputs.gates_x,
                    inputs.cells,
                    d_gates,
                    d_gates_x,
                    None if c0 is None else d_c0,
                    carry_c,
                    carry_x,
                    products,
                    counters,
                    batch * hidden // alignment(hidden),
                    hidden // alignment(hidden),
                    t0,
                    count,
                    steps,
                    batch,
                    hidden // alignment(hidden),
                    **options,
                    **_options(variant, hidden, gates.dtype),
                )
        d_weight_hh, d_h0 = weight_and_state_gradients(d_gates, inputs)
        return d_gates_x if constant else d_gates, d_weight_hh, d_h0, d_c0

    def _variant(self, kernel: "Kernel", tensor: GatesLike, batch: int, hidden: int) -> "Variant":
        """The variant that is launched for tensors like this one; it is recorded in the trace."""
        variant = self._choose(kernel, tensor, batch, hidden)
        record(f"triton.{kernel}.{variant.name}")
        return variant

    def _choose(
        self,
        kernel: "Kernel",
        tensor: "GatesLike | ForwardCall | BackwardCall",
        batch: int,
        hidden: int,
        gpu: "Gpu | None" = None,
    ) -> "Variant":
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
        counters = self._counters_on(tensor.device, current_stream(tensor.device), size)
        assert counters is not None
        return counters

    def _counters_on(self, device: torch.device, stream: int, size: int) -> Tensor | None:
        """The counters of a stream, which is the current one, or ``None`` if it has none and is being captured.

        What is allocated in a capture belongs to the graph, and its zeros are written only when the graph runs. Later
        calls must not find it: PyTorch gives the same few streams to those who ask for one, again and again.
        """
        key = (device, stream)
        counters = self._counters.get(key)
        if counters is None or len(counters) < size:
            if torch.cuda.is_current_stream_capturing():
                return None
            counters = self._counters[key] = torch.zeros(max(size, 256), dtype=torch.int32, device=device)
        return counters


class _Made(NamedTuple):
    """A kernel that was compiled for some calls.

    Attributes:
        variant: how it is launched.
        tiles: the programs along the batch, which each have a counter.
        before_counters, after_counters: the numbers of a launch between the stream and the address of the counters, and
            those after it.
    """

    variant: "Variant"
    tiles: int
    before_counters: list[int]
    after_counters: list[int]


#: Places of csrc/operators/gpu.cpp that are always null. After its own parameters, a compiled kernel has two pointers
#: to memory that Triton's instrumentation needs.
_NULL_PLACES = (38, 39)


def _load(compiled: Any, device: int) -> int:
    """Load a compiled kernel for good, and return the driver's handle.

    Triton's own way would also build a launcher in C.
    """
    from triton.runtime import driver

    _, function, *_ = driver.active.utils.load_binary(compiled.name, compiled.kernel, compiled.metadata.shared, device)
    return int(function)


def _compile(variant: "Variant", call: ForwardCall | BackwardCall) -> Any:
    """The kernel for such a call, compiled for the current GPU."""
    from tagrank.kernels.backward import lstm_backward
    from tagrank.kernels.forward import lstm_forward

    dtype, cells = call.dtype, cell_dtype(call.dtype)
    steps = 1 if variant.stepwise else call.steps
    several = call.steps > steps
    # Stands for any number that the kernel takes as a parameter; only `steps` decides how it is compiled.
    number = 2
    if isinstance(call, ForwardCall):
        addend, h0, c0 = (dtype if given else None for given in (call.addend != "none", call.h0, call.c0))
        pointers: tuple[torch.dtype | None, ...] = (
            dtype,
            addend,
            dtype,
            h0,
            c0,
            dtype,
            dtype,
            dtype,
            dtype,
            cells,
            cells,
            torch.int32,
        )
        numbers: tuple[int, ...] = (number, steps, number, number, number, number)
        own = _forward_options(call.constant, call.addend, call.save_gates, call.save_cells or several)
        kernel: Any = lstm_forward
    else:
        given = (call.grad_stride is not None, call.grad_h_n, call.grad_c_n)
        grads = (dtype if there else None for there in given)
        c0, d_c0 = (dtype if there else None for there in (call.c0, call.c0_wanted))
        pointers = (*grads, dtype, c0, dtype, dtype, cells, dtype, dtype, d_c0, cells, cells, cells, torch.int32)
        numbers = (number, number, number, steps, number, number, number)
        stride = 1 if call.grad_stride is None else call.grad_stride
        own = _backward_options(stride, call.constant, call.summed, call.recompute)
        kernel = lstm_backward
    return kernel.warmup(*pointers, *numbers, **own, **_options(variant, call.hidden, dtype), grid=(1, 1))


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
    return [(t, 1) for t in range(steps)] if variant.stepwise else [(0, steps)]


def _product(variant: "Variant", a: Tensor | None, b: Tensor, like: Tensor) -> Tensor:
    """What a product variant reads before it launches: ``a @ b`` in the dtype of ``like``. Otherwise no elements."""
    if variant.name != "product" or a is None:
        return like.new_empty(0)
    return torch.mm(a.to(like.dtype), b.to(like.dtype))


def _forward_options(constant: bool, addend: str, save_gates: bool, save_cells: bool) -> dict[str, Any]:
    return {"CONSTANT": constant, "ADDEND": addend, "SAVE_GATES": save_gates, "SAVE_CELLS": save_cells}


def _backward_options(grad_stride: int, constant: bool, summed: bool, recompute: bool) -> dict[str, Any]:
    return {"GRAD_STRIDE": grad_stride, "CONSTANT": constant, "SUM": summed, "RECOMPUTE": recompute}


def _options(variant: "Variant", hidden: int, dtype: torch.dtype) -> dict[str, Any]:
    """The constants of both kernels."""
    return {
        "VARIANT": variant.name,
        "PRECISION": precision(dtype),
        "ALIGN": alignment(hidden),
        "BLOCK_B": variant.block_b,
        "BLOCK_H": variant.block_h,
        "BLOCK_K": variant.block_k,
        "CHUNKS": variant.chunks(hidden),
        **variant.launch_options(),
    }
