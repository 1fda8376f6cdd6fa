"""Which variant and which tile sizes serve a call: one small table for each kernel, and no tuning at run time.

Dtypes are named as PyTorch names them: ``"float16"``, ``"bfloat16"``, ``"float32"``, ``"float64"``. Capabilities are
CUDA compute capabilities, ``(major, minor)``.
"""

from collections.abc import Set
from dataclasses import dataclass
from math import prod
from typing import Literal

from tagrank.kernels.verified import VERIFIED

Kernel = Literal["forward", "backward"]

HALF = ("float16", "bfloat16")
SINGLE = ("float32",)
DOUBLE = ("float64",)

#: Shared memory that one block may have, in bytes. Elsewhere (8.6, 8.9, 12.0) it is ``SHARED_MEMORY_AT_LEAST``.
SHARED_MEMORY = {(8, 0): 163 * 1024, (8, 7): 163 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024, (10, 3): 227 * 1024}
SHARED_MEMORY_AT_LEAST = 99 * 1024

#: Blocks that fill a data-centre GPU: an A100 has 108 multiprocessors, an H100 132.
FULL_GRID = 128


@dataclass(frozen=True)
class Variant:
    """How a kernel is launched.

    Attributes:
        name: ``"resident"`` (whole sequence, one program for each ``block_b`` rows) or ``"step"`` (one launch a step).
        block_b: rows of the batch in a tile.
        block_h: hidden units in a tile; at least H where resident.
        block_k: how much of the product's inner dimension is loaded at a time; not used where resident.
        num_warps: warps in a block.
        num_stages: depth of the software pipeline over ``block_k``; 1 where resident, as there is nothing to pipeline.
    """

    name: Literal["resident", "step"]
    block_b: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int

    @property
    def resident(self) -> bool:
        return self.name == "resident"

    def grid(self, batch: int, hidden: int) -> tuple[int, int]:
        """Programs along the batch and along the hidden units.

        Raises:
            ValueError: the variant is resident and H does not fit into its one slice.
        """
        if self.resident and hidden > self.block_h:
            raise ValueError(f"hidden: expected at most {self.block_h}, the width of a resident tile; got {hidden}")
        return -(-batch // self.block_b), -(-hidden // self.block_h)


@dataclass(frozen=True)
class Rule:
    """A line of the table: ``variant`` serves the calls that meet every condition.

    Attributes:
        dtypes: the dtypes it is for.
        variant: what it launches.
        shared: shared memory it may need, in bytes; the capability has to offer as much.
        max_hidden: the largest H it is for.
        max_batch: the largest B it is for.
        min_programs: the smallest grid it is for.
        aligned: for H divisible by 16 only. Loads are then 16 bytes wide; without it they are element by element, and
            larger tiles spill.
    """

    dtypes: tuple[str, ...]
    variant: Variant
    shared: int
    max_hidden: int | None = None
    max_batch: int | None = None
    min_programs: int = 0
    aligned: bool = True

    def serves(self, hidden: int, batch: int, dtype: str, capability: tuple[int, int]) -> bool:
        """Whether the call meets the conditions; ``VERIFIED`` is not among them."""
        return (
            dtype in self.dtypes
            and (self.max_hidden is None or hidden <= self.max_hidden)
            and (self.max_batch is None or batch <= self.max_batch)
            and prod(self.variant.grid(batch, hidden)) >= self.min_programs
            and (not self.aligned or hidden % 16 == 0)
            and self.shared <= shared_memory(capability)
        )


def _resident(block_h: int, num_warps: int) -> Variant:
    return Variant("resident", 16, block_h, block_h, num_warps, 1)


#: The first rule that serves a call decides. The last serves every call.
RULES: dict[Kernel, tuple[Rule, ...]] = {
    "forward": (
        # U is 32 KB. Smaller H are padded: the tensor cores have time to spare. 4 warps: up to 154 registers.
        Rule(HALF, _resident(64, 4), 36 * 1024, max_hidden=64),
        # U is 128 KB, so not on 8.6 or 8.9. 16 rows, as 64 spill. 8 warps: up to 178 registers, where 4 take 242.
        Rule(HALF, _resident(128, 8), 136 * 1024, max_hidden=128),
        # Few rows: the time goes into reading U, so narrow slices spread it over as many multiprocessors as can be.
        Rule(HALF, Variant("step", 16, 16, 128, 4, 4), 60 * 1024, max_batch=16),
        Rule(HALF, Variant("step", 32, 16, 128, 4, 3), 48 * 1024, max_batch=32),
        # Many rows: 64 make a wgmma on Hopper. 8 warps, as 4 spill; 3 stages, so that two blocks fit side by side.
        Rule(HALF, Variant("step", 64, 32, 64, 8, 3), 72 * 1024, min_programs=FULL_GRID),
        # 64 rows, but too few tiles of that size to fill the GPU.
        Rule(HALF, Variant("step", 64, 16, 64, 4, 4), 64 * 1024),
        # Without TF32 the product is on the scalar units: larger tiles read less. 8 warps, as 4 spill on Hopper.
        Rule(SINGLE, Variant("step", 32, 32, 32, 8, 3), 40 * 1024, min_programs=FULL_GRID),
        Rule(SINGLE, Variant("step", 16, 16, 64, 4, 3), 40 * 1024),
        # One size fits: float64 is there to check the others.
        Rule(DOUBLE, Variant("step", 16, 16, 32, 4, 3), 40 * 1024),
        # H not divisible by 16: element-wise loads need many addresses, and any larger tile spills in some dtype.
        Rule((*HALF, *SINGLE, *DOUBLE), Variant("step", 16, 16, 16, 4, 2), 10 * 1024, aligned=False),
    ),
    "backward": (
        # As forward, with the sum of the constant input's gradient in registers: up to 212 of them.
        Rule(HALF, _resident(64, 4), 36 * 1024, max_hidden=64),
        # Up to 186 registers.
        Rule(HALF, _resident(128, 8), 136 * 1024, max_hidden=128),
        # The tiles of forward. It is one product over 4H, not four over H, so a stage is smaller and more of them fit.
        Rule(HALF, Variant("step", 16, 16, 128, 4, 4), 24 * 1024, max_batch=16),
        Rule(HALF, Variant("step", 32, 16, 128, 4, 4), 36 * 1024, max_batch=32),
        # 8 warps, as 4 spill.
        Rule(HALF, Variant("step", 64, 32, 64, 8, 4), 48 * 1024, min_programs=FULL_GRID),
        Rule(HALF, Variant("step", 64, 16, 64, 4, 4), 40 * 1024),
        Rule(SINGLE, Variant("step", 32, 32, 32, 8, 3), 16 * 1024, min_programs=FULL_GRID),
        Rule(SINGLE, Variant("step", 16, 16, 64, 4, 3), 16 * 1024),
        Rule(DOUBLE, Variant("step", 16, 16, 32, 4, 3), 16 * 1024),
        Rule((*HALF, *SINGLE, *DOUBLE), Variant("step", 16, 16, 32, 4, 2), 8 * 1024, aligned=False),
    ),
}


def shared_memory(capability: tuple[int, int]) -> int:
    """The shared memory, in bytes, that one block can count on."""
    return SHARED_MEMORY.get(capability, SHARED_MEMORY_AT_LEAST)


def choose(
    kernel: Kernel,
    hidden: int,
    batch: int,
    dtype: str,
    capability: tuple[int, int],
    verified: Set[tuple[tuple[int, int], str]] = VERIFIED,
) -> Variant:
    """The variant that serves a call.

    Args:
        kernel: ``"forward"`` or ``"backward"``.
        hidden: H.
        batch: B.
        dtype: of the gates.
        capability: of the GPU.
        verified: where resident variants may run.

    Raises:
        ValueError: no rule has this dtype.
    """
    for rule in RULES[kernel]:
        allowed = not rule.variant.resident or (capability, kernel) in verified
        if allowed and rule.serves(hidden, batch, dtype, capability):
            return rule.variant
    raise ValueError(f"dtype: expected one of {', '.join((*HALF, *SINGLE, *DOUBLE))}; got {dtype}")
