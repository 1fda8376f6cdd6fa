"""How a kernel can be launched, which calls each way serves, and the properties of a GPU that decide this.

Dtypes have PyTorch's names: ``"float16"``, ``"bfloat16"``, ``"float32"``, ``"float64"``. A capability is a CUDA compute
capability, ``(major, minor)``. A program is a Triton program, which the GPU runs as one thread block.
"""

from dataclasses import KW_ONLY, dataclass
from math import prod
from typing import Any, Literal

Kernel = Literal["forward", "backward"]
Name = Literal["resident", "grouped", "step", "product"]
#: The backends that run the recurrence on GPUs.
Backend = Literal["cluster", "triton"]

HALF = ("float16", "bfloat16")
SINGLE = ("float32",)
DOUBLE = ("float64",)

#: Bytes of shared memory that one block can have, by capability. Others (8.6, 8.9, 12.0) have SHARED_MEMORY_AT_LEAST.
SHARED_MEMORY = {(8, 0): 163 * 1024, (8, 7): 163 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024, (10, 3): 227 * 1024}
SHARED_MEMORY_AT_LEAST = 99 * 1024

#: If H is divisible by this, each row of 16-bit numbers begins at a multiple of 16 bytes.
ALIGNMENT = 8

#: The number of blocks that fill a data-centre GPU: an A100 has 108 multiprocessors, an H100 132.
FULL_GRID = 128


def alignment(hidden: int) -> int:
    """The kernels' argument ``ALIGN`` for this H: how many numbers of a row one load can take."""
    return 1 if hidden % ALIGNMENT else ALIGNMENT


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that the table depends on.

    Attributes:
        capability: its compute capability.
        multiprocessors: how many it has.
    """

    capability: tuple[int, int]
    multiprocessors: int

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that one block can have at least."""
        return SHARED_MEMORY.get(self.capability, SHARED_MEMORY_AT_LEAST)


@dataclass(frozen=True)
class Variant:
    """How a kernel is launched.

    Attributes:
        name: ``"resident"``: one launch runs all time steps, with one program for each ``block_b`` batch rows.
            ``"grouped"``: one launch runs all time steps, with one program for each tile of ``block_b`` batch rows and
            ``block_h`` hidden units; the programs of the same rows meet at a barrier in each step.
            ``"step"``: the same tiles, but each launch runs a single time step.
            ``"product"``: as step, but cuBLAS has computed the step's matrix product before the launch.
        block_b: batch rows in a tile.
        block_h: hidden units in a tile. In a resident variant at least H.
        block_k: how much of the matrix product's inner dimension is loaded at a time. Resident and product variants do
            not use it.
        num_warps: warps in a block.
        num_stages: depth of the software pipeline over ``block_k``. Only a step variant may have more than 1: in the
            others the pipeline could load ``h`` of the next time step before it is stored.
        all_registers: whether ptxas is told that a thread may have 255 registers. A variant with a launch for each step
            is never told.
    """

    name: Name
    block_b: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int = 1
    all_registers: bool = True

    @property
    def cooperative(self) -> bool:
        """Whether its programs wait for each other, so that all must run at the same time."""
        return self.name == "grouped"

    @property
    def stepwise(self) -> bool:
        """Whether each launch runs a single time step."""
        return self.name in ("step", "product")

    def launch_options(self) -> dict[str, Any]:
        """The options that Triton's launcher takes besides the kernel's own arguments."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if not self.stepwise and self.all_registers:
            # Without this limit ptxas keeps registers free for a second block on the multiprocessor, and spills 16-bit
            # tiles to do so. These variants seldom have a second block there. With it ptxas computes more addresses
            # ahead of the time loop than there are registers if products are made of three, and spills these.
            options["maxnreg"] = 255
        if self.cooperative:
            options["launch_cooperative_grid"] = True
        return options

    def chunks(self, hidden: int) -> int:
        """The kernels' argument ``CHUNKS``: ceil(H / block_k) for a grouped variant, 0 for the others."""
        return ceil_div(hidden, self.block_k) if self.name == "grouped" else 0

    def grid(self, batch: int, hidden: int) -> tuple[int, int]:
        """The number of programs along the batch, and along the hidden units.

        Raises:
            ValueError: the variant is resident, and H is larger than its one tile.
        """
        if self.name == "resident" and hidden > self.block_h:
            raise ValueError(f"hidden: expected at most {self.block_h}, the width of a resident tile; got {hidden}")
        return ceil_div(batch, self.block_b), ceil_div(hidden, self.block_h)

    def __str__(self) -> str:
        return f"{self.name} {self.block_b} x {self.block_h}"


@dataclass(frozen=True)
class Range:
    """The calls that a line of a table serves.

    Attributes:
        dtypes: the dtypes that it serves.
        oldest: the first compute capability that it serves.
        newest: the last compute capability that it serves.
        min_hidden: the smallest H that it serves.
        max_hidden: the largest H that it serves.
        max_batch: the largest B that it serves.
        beyond: why it serves no larger B, as the second half of a sentence.
    """

    dtypes: tuple[str, ...]
    _: KW_ONLY
    oldest: tuple[int, int] = (8, 0)
    newest: tuple[int, int] | None = None
    min_hidden: int = 1
    max_hidden: int | None = None
    max_batch: int | None = None
    beyond: str = ""

    def compiles_for(self, capability: tuple[int, int]) -> bool:
        """Whether it serves this compute capability."""
        return self.oldest <= capability and (self.newest is None or capability <= self.newest)

    def outside(self, hidden: int, batch: int, dtype: str, capability: tuple[int, int]) -> str | None:
        """The first bound that the call exceeds, in words, or ``None``."""
        if dtype not in self.dtypes:
            return f"it is for {' and '.join(self.dtypes)}"
        if capability < self.oldest:
            return f"it is for compute capability {self.oldest[0]}.{self.oldest[1]} and later"
        if self.newest is not None and capability > self.newest:
            return f"it is for compute capability up to {self.newest[0]}.{self.newest[1]}"
        if hidden < self.min_hidden:
            return f"it is for H from {self.min_hidden} on"
        if self.max_hidden is not None and hidden > self.max_hidden:
            return f"it is for H up to {self.max_hidden}"
        if self.max_batch is not None and batch > self.max_batch:
            return f"it is for B up to {self.max_batch}{self.beyond and f', as {self.beyond}'}"
        return None


@dataclass(frozen=True)
class BackendRule(Range):
    """A line of the table of backends: ``backend`` serves both passes of the calls in the range.

    Attributes:
        backend: the backend's name.
        why: the reason for its place in the table.
    """

    backend: Backend
    why: str


@dataclass(frozen=True)
class Rule(Range):
    """A line of the table of a kernel: ``variant`` serves the calls that meet all conditions.

    Attributes:
        variant: how the kernel is then launched.
        why: the reason for these sizes.
        shared: the most shared memory that a block needs, in bytes. The GPU must offer as much.
        shared_per_chunk: for a grouped variant, bytes of shared memory that each chunk of U takes in addition.
        min_programs: the smallest number of programs that it is launched with.
        aligned: whether H must be divisible by ``ALIGNMENT``. If so, one load takes 16 bytes. If not, each load takes
            a single number, and tiles must be small to avoid spills.
    """

    variant: Variant
    why: str
    shared: int
    shared_per_chunk: int = 0
    min_programs: int = 0
    aligned: bool = True

    def shared_memory(self, hidden: int) -> int:
        """The most shared memory that a block needs at this H, in bytes."""
        return self.shared + self.shared_per_chunk * self.variant.chunks(hidden)

    def refusal(self, hidden: int, batch: int, dtype: str, gpu: Gpu) -> str | None:
        """The first condition that the call does not meet, in words, or ``None``. ``VERIFIED`` is not checked here."""
        outside = self.outside(hidden, batch, dtype, gpu.capability)
        if outside is not None:
            return outside
        if self.aligned and hidden % ALIGNMENT:
            return f"it is for H divisible by {ALIGNMENT}"
        programs, shared = prod(self.variant.grid(batch, hidden)), self.shared_memory(hidden)
        if programs < self.min_programs:
            return f"{programs} programs are too few to fill a GPU"
        if shared > gpu.shared_memory:
            return f"a block may need {shared // 1024} KB of shared memory, and has {gpu.shared_memory // 1024} KB"
        if self.variant.cooperative and programs > gpu.multiprocessors:
            return f"its {programs} programs must run at once, on {gpu.multiprocessors} multiprocessors"
        return None
