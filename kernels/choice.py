"""Which variant and which tile sizes serve a call: one small table for each kernel, and no tuning at run time.

Dtypes are named as PyTorch names them: ``"float16"``, ``"bfloat16"``, ``"float32"``, ``"float64"``. Capabilities are
CUDA compute capabilities, ``(major, minor)``.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from tagrank.kernels.verified import VERIFIED, Entry

Kernel = Literal["forward", "backward"]
Name = Literal["resident", "grouped", "step"]

HALF = ("float16", "bfloat16")
SINGLE = ("float32",)
DOUBLE = ("float64",)

#: Shared memory that one block may have, in bytes. Elsewhere (8.6, 8.9, 12.0) it is ``SHARED_MEMORY_AT_LEAST``.
SHARED_MEMORY = {(8, 0): 163 * 1024, (8, 7): 163 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024, (10, 3): 227 * 1024}
SHARED_MEMORY_AT_LEAST = 99 * 1024

#: Blocks that fill a data-centre GPU: an A100 has 108 multiprocessors, an H100 132.
FULL_GRID = 128


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
        max_registers: of a thread, where grouped. A block has a multiprocessor to itself; ptxas, which does not know,
            would rather spill than leave no room for another.
    """

    name: Name
    block_b: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int = 1
    max_registers: int = 255

    @property
    def cooperative(self) -> bool:
        """Whether its programs wait for each other, so that all have to run at the same time."""
        return self.name == "grouped"

    def launch_options(self) -> dict[str, Any]:
        """What Triton has to be told beside the kernel's arguments."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.cooperative:
            options |= {"launch_cooperative_grid": True, "maxnreg": self.max_registers}
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
        oldest: the first compute capability it is for.
        max_hidden: the largest H it is for.
        max_batch: the largest B it is for.
        min_programs: the smallest grid it is for.
        aligned: for H divisible by 16 only. Loads are then 16 bytes wide; without it they are element by element, and
            larger tiles spill.
    """

    dtypes: tuple[str, ...]
    variant: Variant
    why: str
    shared: int
    shared_per_chunk: int = 0
    oldest: tuple[int, int] = (8, 0)
    max_hidden: int | None = None
    max_batch: int | None = None
    min_programs: int = 0
    aligned: bool = True

    def shared_memory(self, hidden: int) -> int:
        """The most shared memory that a block may need, in bytes."""
        return self.shared + self.shared_per_chunk * self.variant.chunks(hidden)

    def refusal(self, hidden: int, batch: int, dtype: str, gpu: Gpu) -> str | None:
        """The first condition that the call does not meet, in words, or ``None``; ``VERIFIED`` is not among them."""
        if dtype not in self.dtypes:
            return f"it is for {' and '.join(self.dtypes)}"
        if gpu.capability < self.oldest:
            return f"it is for compute capability {self.oldest[0]}.{self.oldest[1]} and later"
        if self.max_hidden is not None and hidden > self.max_hidden:
            return f"it is for H up to {self.max_hidden}"
        if self.max_batch is not None and batch > self.max_batch:
            return f"it is for B up to {self.max_batch}"
        if self.aligned and hidden % 16:
            return "it is for H divisible by 16"
        programs, shared = prod(self.variant.grid(batch, hidden)), self.shared_memory(hidden)
        if programs < self.min_programs:
            return f"{programs} programs are too few to fill a GPU"
        if shared > gpu.shared_memory:
            return f"it may need {shared // 1024} KB of shared memory, and there are {gpu.shared_memory // 1024}"
        if self.variant.cooperative and programs > gpu.multiprocessors:
            return f"its {programs} programs have to run at once, on {gpu.multiprocessors} multiprocessors"
        return None


def _resident(block_h: int, num_warps: int) -> Variant:
    return Variant("resident", 16, block_h, block_h, num_warps)


def _grouped(
    block_b: int,
    block_h: int,
    num_warps: int,
    why: str,
    *,
    shared: int,
    max_hidden: int = 1024,
    max_registers: int = 255,
    oldest: tuple[int, int] = (8, 0),
) -> Rule:
    """A rule whose blocks need ``shared`` bytes besides U, which takes 4 BLOCK_K BLOCK_H numbers a chunk."""
    variant = Variant("grouped", block_b, block_h, 128, num_warps, max_registers=max_registers)
    return Rule(HALF, variant, why, shared, 2 * 4 * 128 * block_h, oldest=oldest, max_hidden=max_hidden)


#: The first rule that serves a call decides. The last serves every call.
RULES: dict[Kernel, tuple[Rule, ...]] = {
    "forward": (
        Rule(
            HALF,
            _resident(64, 4),
            "U is 32 KB; smaller H are padded, as the tensor cores have time to spare",
            36 * 1024,
            max_hidden=64,
        ),
        Rule(HALF, _resident(128, 8), "U is 128 KB; 64 rows spill, and so do 4 warps", 136 * 1024, max_hidden=128),
        # Of the grouped tiles the one with the fewest rows whose programs can all run at once, one to a multiprocessor:
        # a step then takes the least time on each.
        _grouped(16, 16, 4, "few rows: as many programs as there are multiprocessors", shared=4 * 1024),
        _grouped(32, 16, 4, "16 rows would be more programs than multiprocessors", shared=8 * 1024),
        _grouped(64, 16, 8, "32 rows would be more programs; wgmma on Hopper", shared=20 * 1024, max_registers=192),
        _grouped(
            128, 16, 8, "64 rows would be more programs; without wgmma 128 spill", shared=33 * 1024, oldest=(9, 0)
        ),
        Rule(
            HALF,
            Variant("step", 16, 16, 128, 4, 4),
            "few rows: the time goes into reading U, so narrow slices spread it over many multiprocessors",
            60 * 1024,
            max_batch=16,
        ),
        Rule(HALF, Variant("step", 32, 16, 128, 4, 3), "as with 16 rows", 48 * 1024, max_batch=32),
        Rule(
            HALF,
            Variant("step", 64, 32, 64, 8, 3),
            "many rows: 64 make a wgmma on Hopper; 3 stages, so that two blocks fit side by side",
            73 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(HALF, Variant("step", 64, 16, 64, 4, 4), "too few tiles of 64 x 32 to fill the GPU", 65 * 1024),
        Rule(
            SINGLE,
            Variant("step", 32, 32, 32, 8, 3),
            "without TF32 the product is on the scalar units: larger tiles read less; 4 warps spill on Hopper",
            40 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(SINGLE, Variant("step", 16, 16, 64, 4, 3), "too few tiles of 32 x 32 to fill the GPU", 40 * 1024),
        Rule(DOUBLE, Variant("step", 16, 16, 32, 4, 3), "one size fits: it is there to check the others", 40 * 1024),
        Rule(
            (*HALF, *SINGLE, *DOUBLE),
            Variant("step", 16, 16, 16, 4, 2),
            "H not divisible by 16: element-wise loads need many addresses, and any larger tile spills in some dtype",
            10 * 1024,
            aligned=False,
        ),
    ),
    "backward": (
        Rule(
            HALF,
            _resident(64, 4),
            "as forward, with the sum of the constant input's gradient in registers",
            36 * 1024,
            max_hidden=64,
        ),
        Rule(HALF, _resident(128, 8), "as with H up to 64", 136 * 1024, max_hidden=128),
        # A program reads all 4H gate gradients of its rows at each step, so few rows matter more than narrow slices.
        _grouped(16, 16, 4, "few rows: as many programs as there are multiprocessors", shared=16 * 1024),
        _grouped(16, 32, 8, "slices of 16 would be more programs", shared=16 * 1024, max_hidden=512),
        _grouped(32, 16, 8, "16 rows would be more programs than multiprocessors", shared=32 * 1024),
        _grouped(32, 32, 8, "slices of 16 would be more programs", shared=32 * 1024, max_hidden=512),
        Rule(
            HALF,
            Variant("step", 16, 16, 128, 4, 4),
            "as forward; it is one product over 4H, so a stage is smaller and more of them fit",
            24 * 1024,
            max_batch=16,
        ),
        Rule(HALF, Variant("step", 32, 16, 128, 4, 4), "as with 16 rows", 36 * 1024, max_batch=32),
        Rule(
            HALF,
            Variant("step", 64, 32, 64, 8, 4),
            "many rows: 64 make a wgmma on Hopper; 4 warps spill",
            49 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(HALF, Variant("step", 64, 16, 64, 4, 4), "too few tiles of 64 x 32 to fill the GPU", 41 * 1024),
        Rule(SINGLE, Variant("step", 32, 32, 32, 8, 3), "as forward", 16 * 1024, min_programs=FULL_GRID),
        Rule(SINGLE, Variant("step", 16, 16, 64, 4, 3), "too few tiles of 32 x 32 to fill the GPU", 16 * 1024),
        Rule(DOUBLE, Variant("step", 16, 16, 32, 4, 3), "as forward", 16 * 1024),
        Rule((*HALF, *SINGLE, *DOUBLE), Variant("step", 16, 16, 32, 4, 2), "as forward", 8 * 1024, aligned=False),
    ),
}


def consider(
    kernel: Kernel,
    hidden: int,
    batch: int,
    dtype: str,
    gpu: Gpu,
    verified: Set[Entry] = VERIFIED,
    name: Name | None = None,
) -> Iterator[tuple[Rule, str | None]]:
    """The rules in their order, each with why it does not serve the call, or ``None``; arguments as for ``choose``."""
    for rule in RULES[kernel]:
        variant = rule.variant.name
        refusal = rule.refusal(hidden, batch, dtype, gpu)
        if refusal is None and name is None and variant != "step" and (gpu.capability, kernel, variant) not in verified:
            refusal = f"it was not verified on compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        if name in (None, variant):
            yield rule, refusal


def choose(
    kernel: Kernel,
    hidden: int,
    batch: int,
    dtype: str,
    gpu: Gpu,
    verified: Set[Entry] = VERIFIED,
    name: Name | None = None,
) -> Variant:
    """The variant that serves a call: that of the first rule whose conditions it meets.

    Args:
        kernel: ``"forward"`` or ``"backward"``.
        hidden: H.
        batch: B.
        dtype: of the gates.
        gpu: that it runs on.
        verified: where resident and grouped variants may run.
        name: where given, only the rules of this variant are asked, and it may run anywhere.

    Raises:
        ValueError: no rule has this dtype, or none of variant ``name`` serves the call.
    """
    refusals = {}
    for rule, refusal in consider(kernel, hidden, batch, dtype, gpu, verified, name):
        if refusal is None:
            return rule.variant
        refusals[str(rule.variant)] = refusal
    if dtype not in (*HALF, *SINGLE, *DOUBLE):
        raise ValueError(f"dtype: expected one of {', '.join((*HALF, *SINGLE, *DOUBLE))}; got {dtype}")
    reasons = "; ".join(f"{variant}: {refusal}" for variant, refusal in refusals.items())
    raise ValueError(f"no {name} {kernel} kernel serves B = {batch}, H = {hidden} in {dtype}. {reasons}")
