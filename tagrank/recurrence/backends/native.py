"""The C++ backend for CPUs: ``csrc/cpu``, built into ``tagrank/_C.so``.

The whole sequence is one native call on PyTorch's threads. They pack the weights once; each step is then a matrix
product whose tiles go through the cell while they are in registers. It computes in float32 (float64 for float64);
bfloat16 is a storage type. It uses AVX-512 or AVX2 if the CPU has them, and for batches of 32 rows and more the matrix
unit of Intel's AMX. The environment variable ``TAGRANK_CPU_CAPABILITY`` (``portable``, ``avx2``, ``avx512`` or
``amx``), read once, limits it to these instructions. Any other value, or more than the CPU has, makes each call that
would run here an error.
"""

from typing import TYPE_CHECKING, ClassVar

import torch

from tagrank.recurrence import library
from tagrank.recurrence.backends.base import BackwardCall, ForwardCall, GatesLike
from tagrank.recurrence.backends.compiled import Compiled
from tagrank.recurrence.tracing import record

if TYPE_CHECKING:
    from tagrank.kernels.variants import Gpu


class Native(Compiled):
    name = "native"
    device = "cpu"
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    slow_without = "up to twice as slow as nn.LSTM"
    #: Whether PyTorch's threads run at the same time, as OpenMP's do: the threads of a call wait for each other.
    fixed_launch: ClassVar[list[int]] = [int(torch.backends.openmp.is_available())]

    def __init__(self) -> None:
        missing = library.load()
        self._misset = library.misset() if missing is None else None
        self._unavailable = missing or self._misset

    def unavailable(self) -> str | None:
        return self._unavailable

    def misset(self) -> str | None:
        return self._misset

    def packs(self) -> bool:
        return True

    def unsupported(self, gates_x: GatesLike, gpu: "Gpu | None" = None) -> str | None:
        if gates_x.device.type != self.device:
            return f"it runs on the CPU, and gates_x is on {gates_x.device}"
        if gates_x.dtype not in self.dtypes:
            return f"it takes float32, float64 and bfloat16 (CPUs have no fast float16 product); got {gates_x.dtype}"
        return None

    def launch(self, call: ForwardCall | BackwardCall) -> list[int]:
        record("native.forward" if isinstance(call, ForwardCall) else "native.backward")
        return self.fixed_launch
