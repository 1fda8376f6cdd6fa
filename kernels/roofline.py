"""What a step of a kernel cannot do without, and the time that takes at a GPU's limits: a model, and no measurement."""

from dataclasses import dataclass

from tagrank.kernels.variants import Kernel, Variant


@dataclass(frozen=True)
class Limits:
    """Of a GPU: from its data sheet, but for the cache and the latencies, which are rounded figures of microbenchmarks.

    Attributes:
        multiprocessors: how many there are; what follows is that of all together.
        flops: 16-bit operations a second of the tensor cores, two for each multiply-add.
        memory, cache: bytes a second, of main memory and of the second-level cache.
        shared: bytes a second of the shared memories.
        special: special functions a second, such as an exponential or a reciprocal.
        distributed: bytes a second that blocks of a cluster write to each other's shared memory.
        barrier, launch, cluster_barrier: seconds that one costs: a barrier among some dozens of blocks, a kernel in a
            CUDA graph, and a barrier of a cluster with the way to another block's shared memory.
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
    cluster_barrier: float


#: At 1.755 GHz, with 128 bytes of shared memory and 16 special functions a clock and multiprocessor, and 20 KB a
#: microsecond from one multiprocessor to others.
H100 = Limits(
    132, 990e12, 3.35e12, 5.5e12, 132 * 128 * 1.755e9, 132 * 16 * 1.755e9, 132 * 20e9, 1.0e-6, 1.3e-6, 0.25e-6
)


@dataclass(frozen=True)
class Step:
    """One time step of one kernel, of all its programs together.

    Attributes:
        flops: of the product.
        memory: bytes read from and written to main memory: inputs, results, and what is saved for backward.
        cache: bytes that programs read of each other, and of ``U`` where it is not resident.
        shared: bytes that programs read of ``U`` where it is.
        special: special functions of the cell.
        barriers, launches: at each step, one or none.
        programs: among which all this is shared out.
        distributed: bytes that blocks of a cluster write to each other.
        cluster_barriers: one or none.
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
    cluster_barriers: int = 0

    def floor(self, limits: Limits) -> tuple[float, str]:
        """The least seconds, and what they are bound by; transfers and arithmetic may overlap, waiting may not."""
        used = min(self.programs / limits.multiprocessors, 1.0)
        times = {
            "memory": self.memory / limits.memory,
            "tensor cores": self.flops / limits.flops / used,
            "cache": self.cache / limits.cache / used,
            "shared memory": self.shared / limits.shared / used,
            "special functions": self.special / limits.special / used,
            "distributed shared memory": self.distributed / limits.distributed / used,
        }
        waiting = (
            self.barriers * limits.barrier
            + self.launches * limits.launch
            + self.cluster_barriers * limits.cluster_barrier
        )
        bound = max(times, key=times.__getitem__)
        kind = "launch" if self.launches else "barrier"
        return times[bound] + waiting, kind if waiting > times[bound] else bound


def step(kernel: Kernel, variant: Variant, batch: int, hidden: int, *, training: bool = True) -> Step:
    """Count a step in 16 bit with a constant input; forward for ``training`` saves gates and cell states."""
    tiles, slices = variant.grid(batch, hidden)
    memory, special = _cell(kernel, batch * hidden, training)
    exchanged = (2 if kernel == "forward" else 8) * batch * hidden
    weights = tiles * 8 * hidden**2  # each batch tile reads the whole of U
    return Step(
        flops=8 * batch * hidden**2,
        memory=memory,
        # Each slice of a batch tile reads what all of them have written.
        cache=(slices * exchanged if slices > 1 else 0) + (weights if variant.name == "step" else 0),
        shared=0 if variant.name == "step" else weights,
        special=special,
        barriers=int(variant.name == "grouped"),
        launches=int(variant.name == "step"),
        programs=tiles * slices,
    )


def cluster_step(kernel: Kernel, batch: int, hidden: int, limits: Limits, *, training: bool = True) -> Step:
    """The same for the kernels of ``csrc/cuda``, as ``launch.cu`` would launch them: in the fewest rows that fit."""
    blocks = -(-hidden // 32)
    at_once = limits.multiprocessors // blocks
    sizes = (8, 16, 32, 64) if kernel == "forward" else (8, 16, 32)
    rows = next((rows for rows in sizes if -(-batch // rows) <= at_once), sizes[-1])
    clusters = -(-batch // rows)
    padded, depth = rows * clusters, -(-hidden // 128) * 128
    memory, special = _cell(kernel, batch * hidden, training)
    if kernel == "forward":
        # Each of eight warps reads half of h; pairs of them exchange half of their sums.
        shared = clusters * blocks * rows * (8 * depth + 2 * 128 * 4)
        distributed = clusters * blocks * (blocks - 1) * rows * 32 * 2
    else:
        # Each of eight warps reads the gradients of the block's gates; the parts of all blocks are added up.
        shared = clusters * blocks * rows * (8 * 128 * 2 + 32 * blocks * 4)
        distributed = clusters * blocks * rows * (blocks - 1) * 32 * 4
    return Step(
        # U stays in registers; rows and units that are not there are multiplied too.
        flops=8 * padded * depth * 32 * blocks,
        memory=memory,
        cache=0,
        shared=shared,
        special=special,
        barriers=0,
        launches=0,
        programs=clusters * blocks,
        distributed=distributed if blocks > 1 else 0,
        cluster_barriers=int(blocks > 1),
    )


def _cell(kernel: Kernel, state: int, training: bool) -> tuple[int, int]:
    """Bytes of main memory and special functions of a step with so many hidden states, in 16 bit."""
    if kernel == "forward":
        # Five sigmoids and tangents, an exponential and a reciprocal each.
        return 2 * state + (training and 8 * state + 4 * state), 10 * state
    # Gates, cell states and the output's gradient are read, the gates' gradients written.
    return 8 * state + 4 * state + 2 * state + 8 * state, 2 * state
