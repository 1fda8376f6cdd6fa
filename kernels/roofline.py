"""The least time that a time step of a kernel can take at the limits of a GPU: a model, not a measurement.

The model counts the work of a step that no kernel with this division into programs can avoid (``Step``), and divides it
by the rates of the GPU (``Limits``).
"""

from dataclasses import dataclass

from tagrank.kernels.variants import Kernel, Variant, ceil_div


@dataclass(frozen=True)
class Limits:
    """What a GPU can do in a second, all multiprocessors together, and how long one must wait for it.

    Rates are from the data sheet. That of the second-level cache and the waiting times are rounded figures from
    microbenchmarks.

    Attributes:
        multiprocessors: how many there are.
        flops: 16-bit operations of the tensor cores per second. A multiply-add counts as two.
        memory: bytes of main memory per second.
        cache: bytes of the second-level cache per second.
        shared: bytes of shared memory per second.
        special: special functions per second, such as an exponential or a reciprocal.
        distributed: bytes per second that the blocks of a cluster write into each other's shared memory.
        barrier: seconds that a barrier among some dozens of blocks takes.
        launch: seconds that the launch of a kernel in a CUDA graph takes.
        message: seconds from a store into another block's shared memory until that block has seen it.
    """

    multiprocessors: int
    flops: float
    memory: float
    cache: float
    shared: float
    special: float
    distributed: float
    barrier: float
    launch: float
    message: float


#: At 1.755 GHz. In a clock, a multiprocessor moves 128 bytes of shared memory and computes 16 special functions. In a
#: microsecond, it writes 20 KB to other multiprocessors. A message takes 250 clocks.
H100 = Limits(
    multiprocessors=132,
    flops=990e12,
    memory=3.35e12,
    cache=5.5e12,
    shared=132 * 128 * 1.755e9,
    special=132 * 16 * 1.755e9,
    distributed=132 * 20e9,
    barrier=1.0e-6,
    launch=1.3e-6,
    message=0.14e-6,
)


@dataclass(frozen=True)
class Step:
    """The work of one time step of a kernel, all its programs together.

    Attributes:
        flops: operations of the matrix product.
        memory: bytes read from and written to main memory: inputs, results, and what is saved for backward.
        cache: bytes read from the second-level cache: results of other programs, and ``U`` unless it is resident.
        shared: bytes of ``U`` read from shared memory, if it is resident.
        special: special functions of the cell.
        barriers: barriers among programs, 0 or 1.
        launches: launches, 0 or 1.
        programs: the number of programs that share the work.
        distributed: bytes that the blocks of a cluster write into each other's shared memory.
        messages: messages between the blocks of a cluster that the step waits for one after another, 0 or 1.
    """

    flops: int
    memory: int
    cache: int
    shared: int
    special: int
    barriers: int
    launches: int
    programs: int
    distributed: int = 0
    messages: int = 0

    def floor(self, limits: Limits) -> tuple[float, str]:
        """The least time of the step in seconds, and what bounds it.

        Transfers and arithmetic may all overlap, so only the longest of them counts. Waiting for a barrier, a launch or
        a message overlaps with nothing. Programs use one multiprocessor each.
        """
        used = min(self.programs / limits.multiprocessors, 1.0)
        times = {
            "memory": self.memory / limits.memory,
            "tensor cores": self.flops / limits.flops / used,
            "cache": self.cache / limits.cache / used,
            "shared memory": self.shared / limits.shared / used,
            "special functions": self.special / limits.special / used,
            "distributed shared memory": self.distributed / limits.distributed / used,
        }
        waiting = self.barriers * limits.barrier + self.launches * limits.launch + self.messages * limits.message
        longest = max(times, key=times.__getitem__)
        least = times[longest] + waiting
        if times[longest] >= waiting:
            return least, longest
        return least, "launch" if self.launches else "barrier" if self.barriers else "message"


def triton_step(kernel: Kernel, variant: Variant, batch: int, hidden: int, *, training: bool = True) -> Step:
    """The work of a time step of a Triton kernel, in 16 bit with a constant input.

    With ``training``, forward saves the gates and the cell states.
    """
    tiles, slices = variant.grid(batch, hidden)
    memory, special = _cell_work(kernel, batch * hidden, training)
    exchanged = (2 if kernel == "forward" else 8) * batch * hidden
    weights = tiles * 8 * hidden**2  # each batch tile reads all of U
    if variant.name == "product":
        # What cuBLAS writes in float32 is read again. Its own tiles are not known: each number is read once at least.
        products = (16 if kernel == "forward" else 4) * batch * hidden
        return Step(
            flops=8 * batch * hidden**2,
            memory=memory,
            cache=8 * hidden**2 + exchanged + 2 * products,
            shared=0,
            special=special,
            barriers=0,
            launches=2,
            programs=tiles * slices,
        )
    return Step(
        flops=8 * batch * hidden**2,
        memory=memory,
        # Each slice of a batch tile reads what all slices of the tile have stored.
        cache=(slices * exchanged if slices > 1 else 0) + (weights if variant.name == "step" else 0),
        shared=0 if variant.name == "step" else weights,
        special=special,
        barriers=int(variant.name == "grouped"),
        launches=int(variant.name == "step"),
        programs=tiles * slices,
    )


def cluster_step(kernel: Kernel, batch: int, hidden: int, limits: Limits, *, training: bool = True) -> Step:
    """The work of a time step of a kernel in ``csrc/cuda``, in 16 bit with a constant input.

    Like ``launch.cu``, it takes the tiles with the fewest rows with which all clusters fit on the GPU at once. With
    ``training``, forward saves the gates and the cell states.
    """
    blocks = ceil_div(hidden, 32)
    at_once = limits.multiprocessors // blocks
    sizes = (8, 16, 32, 64) if kernel == "forward" else (8, 16, 32)
    rows = next((rows for rows in sizes if ceil_div(batch, rows) <= at_once), sizes[-1])
    clusters = ceil_div(batch, rows)
    depth = ceil_div(hidden, 128) * 128
    memory, _ = _cell_work(kernel, batch * hidden, training)
    # In bfloat16, each sigmoid and each tangent is one special function.
    special = (5 if kernel == "forward" else 1) * batch * hidden
    if kernel == "forward":
        # Each of four warps reads h. For large H, each of eight reads half of it, and pairs of warps exchange half of
        # their sums.
        shared = clusters * blocks * rows * (8 * depth + (2 * 128 * 4 if depth > 256 else 0))
        distributed = clusters * blocks * (blocks - 1) * rows * 32 * 2
    else:
        # Each of eight warps reads the gradients of the block's gates; then the parts of dh of all blocks are added up.
        shared = clusters * blocks * rows * (8 * 128 * 2 + 32 * blocks * 4)
        distributed = clusters * blocks * rows * (blocks - 1) * 32 * 4
    return Step(
        # The product includes the rows and units that pad a tile. U stays in registers.
        flops=8 * (rows * clusters) * depth * (32 * blocks),
        memory=memory,
        cache=0,
        shared=shared,
        special=special,
        barriers=0,
        launches=0,
        programs=clusters * blocks,
        distributed=distributed,
        messages=int(blocks > 1),
    )


def _cell_work(kernel: Kernel, elements: int, training: bool) -> tuple[int, int]:
    """Bytes of main memory, and special functions, of the cell of a time step with ``elements`` = B x H, in 16 bit."""
    if kernel == "forward":
        # h is written; in training the four gates (16 bit) and c (32 bit) too. Five sigmoids and tangents take an
        # exponential and a reciprocal each.
        return (2 + (8 + 4 if training else 0)) * elements, 10 * elements
    # Gates, cell states and the output's gradient are read; the gates' gradients are written. A tangent of c.
    return (8 + 4 + 2 + 8) * elements, 2 * elements
