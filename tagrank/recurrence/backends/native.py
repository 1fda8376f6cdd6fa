"""The C++ backend for CPUs: ``csrc/``, built into ``tagrank/_C.so``.

The whole sequence is one native call on PyTorch's threads. They pack the weights once; each step is then a matrix
product whose tiles go through the cell while they are in registers. It computes in float32 (float64 for float64);
bfloat16 is a storage type. It uses AVX-512 or AVX2 if the CPU has them, and for batches of 32 rows and more the matrix
unit of Intel's AMX. The environment variable ``TAGRANK_CPU_CAPABILITY`` (``portable``, ``avx2``, ``avx512`` or
``amx``), read once, limits it to these instructions. Any other value, or more than the CPU has, makes each call that
would run here an error.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tagrank.recurrence import library
from tagrank.recurrence.backends.base import Backend, BackwardInputs, Gradients, Outputs
from tagrank.recurrence.tracing import record

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu


class Native(Backend):
    name = "native"
    device = "cpu"
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    slow_without = "up to twice as slow as nn.LSTM"
    #: The threads of a call wait for each other, so they must run at the same time: OpenMP's do.
    concurrent = torch.backends.openmp.is_available()

    def __init__(self) -> None:
        missing = library.load()
        self._misset = library.misset() if missing is None else None
        self._unavailable = missing or self._misset

    def unavailable(self) -> str | None:
        return self._unavailable

    def misset(self) -> str | None:
        return self._misset

    def unsupported(self, gates_x: Tensor, gpu: "Gpu | None" = None) -> str | None:
        if gates_x.device.type != self.device:
            return f"it runs on the CPU, and gates_x is on {gates_x.device}"
        if gates_x.dtype not in self.dtypes:
            return f"it takes float32, float64 and bfloat16 (CPUs have no fast float16 product); got {gates_x.dtype}"
        return None

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
        record("native.forward")
        return torch.ops.tagrank.native_forward(  # type: ignore[no-any-return]
            gates_x, weight_hh, h0, c0, steps, save_gates, save_cells, self.concurrent
        )

    def backward(self, inputs: BackwardInputs) -> Gradients:
        record("native.backward")
        # The kernel reads transposed (batch_first) and expanded (the gradient of a sum) memory as it lies.
        if inputs.grad_output.stride(-1) not in (0, 1):
            inputs = inputs._replace(grad_output=inputs.grad_output.contiguous())
        h0, gates = inputs.h0, inputs.gates
        if len(inputs.output) == 1 and h0 is not None and gates.numel() and gates.dtype != torch.bfloat16:
            # To pack the weight for one step's product would take longer than the product. Without h0 there is none.
            d_gates, _, _, d_c0 = torch.ops.tagrank.native_backward(
                inputs.grad_output,
                inputs.grad_c_n,
                inputs.gates_x,
                inputs.weight_hh,
                None,
                inputs.c0,
                inputs.output,
                gates,
                inputs.cells,
                True,
                False,
                self.concurrent,
            )
            d_weight_hh = d_gates.t() @ h0 if inputs.weight_wanted else h0.new_empty(0)
            return d_gates if inputs.constant else d_gates[None], d_weight_hh, d_gates @ inputs.weight_hh, d_c0
        return torch.ops.tagrank.native_backward(*inputs, self.concurrent)  # type: ignore[no-any-return]
