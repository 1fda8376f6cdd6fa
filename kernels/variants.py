"""What a kernel is launched with, for which calls, and what that depends on in a GPU.

Dtypes are named as PyTorch names them: ``"float16"``, ``"bfloat16"``, ``"float32"``, ``"float64"``. Capabilities are
CUDA compute capabilities, ``(major, minor)``.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

Kernel = Literal["forward", "backward"]
Name = Literal["resident", "grouped", "step"]

HALF = ("float16", "bfloat16")
SINGLE = ("float32",)
DOUBLE = ("float64",)

#: Shared memory that one block may have, in bytes. Elsewhere (8.6, 8.9, 12.0) it is ``SHARED_MEMORY_AT_LEAST``.
SHARED_MEMORY = {(8, 0): 163 * 1024, (8, 7): 163 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024, (10, 3): 227 * 1024}
SHARED_MEMORY_AT_LEAST = 99 * 1024

#: Where H is divisible by it, rows of 16-bit numbers begin at multiples of 16 bytes.
ALIGNMENT = 8

#: Blocks that fill a data-centre GPU: an A100 has 108 multiprocessors, an H100 132.
FULL_GRID = 128


def alignment(hidden: int) -> int:
    """How many numbers of a row can be loaded at a time: what ``ALIGN`` has to be for this H."""
    return 1 if hidden % ALIGNMENT else ALIGNMENT


@dataclass(frozen=True)
class Gpu:
    """What the table has to know of a GPU: its compute capability and the number of its multiprocessors."""

    capability: tuple[int, int]
    multiprocessors: int

    @property
    def shared_memory(self) -> int:
        """The shared memory, in bytes, that one block can count on."""
        return SHARED_MEMORY.get(self.capability, SHARED_MEMORY_AT_LEAST)


@dataclass(frozen=True)
class Variant:
    """How a kernel is launched.

    Attributes:
        name: ``"resident"`` (whole sequence, one program for each ``block_b`` rows), ``"grouped"`` (whole sequence, one
            program for each slice of these, with a barrier) or ``"step"`` (one launch a step).
        block_b: rows of the batch in a tile.
        block_h: hidden units in a tile; at least H where resident.
        block_k: how much of the product's inner dimension is loaded at a time; not used where resident.
        num_warps: warps in a block.
        num_stages: depth of the software pipeline over ``block_k``; 1 but for the step variant, as in the others it
            might fetch the next step's ``h`` before it is stored.
    """

    name: Name
    block_b: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int = 1

    @property
    def cooperative(self) -> bool:
        """Whether its programs wait for each other, so that all have to run at the same time."""
        return self.name == "grouped"

    def launch_options(self) -> dict[str, Any]:
        """What Triton has to be told beside the kernel's arguments."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.name != "step":
            # ptxas would rather spill than leave no room for another block; these seldom have another beside them.
            options["maxnreg"] = 255
        if self.cooperative:
            options["launch_cooperative_grid"] = True
        return options

    def chunks(self, hidden: int) -> int:
        """How often ``block_k`` fits into H, rounded up, where that is known when the kernel is compiled."""
        return -(-hidden // self.block_k) if self.name == "grouped" else 0

    def grid(self, batch: int, hidden: int) -> tuple[int, int]:
        """Programs along the batch and along the hidden units.

        Raises:
            ValueError: the variant is resident and H does not fit into its one slice.
        """
        if self.name == "resident" and hidden > self.block_h:
            raise ValueError(f"hidden: expected at most {self.block_h}, the width of a resident tile; got {hidden}")
        return -(-batch // self.block_b), -(-hidden // self.block_h)

    def __str__(self) -> str:
        return f"{self.name} {self.block_b} x {self.block_h}"


@dataclass(frozen=True)
class Rule:
    """A line of the table: ``variant`` serves the calls that meet every condition.

    Attributes:
        dtypes: the dtypes it is for.
        variant: what it launches.
        why: the reason for its sizes.
        shared: shared memory it may need, in bytes; the capability has to offer as much.
        shared_per_chunk: what it may need besides for each chunk of a grouped variant's slice of U.
        oldest, newest: the first and the last compute capability it is for.
        max_hidden: the largest H it is for.
        max_batch: the largest B it is for.
        min_programs: the smallest grid it is for.
        aligned: for H divisible by ``ALIGNMENT`` only. Loads are then 16 bytes wide; without it they are element by
            element, and larger tiles spill.
    """

    dtypes: tuple[str, ...]
    variant: Variant
    why: str
    shared: int
    shared_per_chunk: int = 0
    oldest: tuple[int, int] = (8, 0)
    newest: tuple[int, int] | None = None
    max_hidden: int | None = None
    max_batch: int | None = None
    min_programs: int = 0
    aligned: bool = True

    def compiles_for(self, capability: tuple[int, int]) -> bool:
        """Whether it is for this compute capability."""
        return self.oldest <= capability and (self.newest is None or capability <= self.newest)

    def shared_memory(self, hidden: int) -> int:
        """The most shared memory that a block may need, in bytes."""
        return self.shared + self.shared_per_chunk * self.variant.chunks(hidden)

    def refusal(self, hidden: int, batch: int, dtype: str, gpu: Gpu) -> str | None:
        """The first condition that the call does not meet, in words, or ``None``; ``VERIFIED`` is not among them."""
        if dtype not in self.dtypes:
            return f"it is for {' and '.join(self.dtypes)}"
        if gpu.capability < self.oldest:
            return f"it is for compute capability {self.oldest[0]}.{self.oldest[1]} and later"
        if self.newest is not None and gpu.capability > self.newest:
            return f"it is for compute capability up to {self.newest[0]}.{self.newest[1]}"
        if self.max_hidden is not None and hidden > self.max_hidden:
            return f"it is for H up to {self.max_hidden}"
        if self.max_batch is not None and batch > self.max_batch:
            return f"it is for B up to {self.max_batch}"
        if self.aligned and hidden % ALIGNMENT:
            return f"it is for H divisible by {ALIGNMENT}"
        programs, shared = prod(self.variant.grid(batch, hidden)), self.shared_memory(hidden)
        if programs < self.min_programs:
            return f"{programs} programs are too few to fill a GPU"
        if shared > gpu.shared_memory:
            return f"it may need {shared // 1024} KB of shared memory, and there are {gpu.shared_memory // 1024}"
        if self.variant.cooperative and programs > gpu.multiprocessors:
            return f"its {programs} programs have to run at once, on {gpu.multiprocessors} multiprocessors"
        return None
