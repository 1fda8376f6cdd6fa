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
        barrier, launch: seconds that one costs: a barrier among some dozens of blocks, a kernel in a CUDA graph.
    """

    multiprocessors: int
    flops: float
    memory: float
    cache: float
    shared: float
    special: float
    barrier: float
    launch: float


#: At 1.755 GHz, with 128 bytes of shared memory and 16 special functions a clock and multiprocessor.
H100 = Limits(132, 990e12, 3.35e12, 5.5e12, 132 * 128 * 1.755e9, 132 * 16 * 1.755e9, 1.0e-6, 1.3e-6)


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
    """

    flops: int
    memory: int
    cache: int
    shared: int
    special: int
    barriers: int
    launches: int
    programs: int

    def floor(self, limits: Limits) -> tuple[float, str]:
        """The least seconds, and what they are bound by; transfers and arithmetic may overlap, waiting may not."""
        used = min(self.programs / limits.multiprocessors, 1.0)
        times = {
            "memory": self.memory / limits.memory,
            "tensor cores": self.flops / limits.flops / used,
            "cache": self.cache / limits.cache / used,
            "shared memory": self.shared / limits.shared / used,
            "special functions": self.special / limits.special / used,
        }
        waiting = self.barriers * limits.barrier + self.launches * limits.launch
        bound = max(times, key=times.__getitem__)
        kind = "barrier" if self.barriers else "launch"
        return times[bound] + waiting, kind if waiting > times[bound] else bound


def step(kernel: Kernel, variant: Variant, batch: int, hidden: int, *, training: bool = True) -> Step:
    """Count a step in 16 bit with a constant input; forward for ``training`` saves gates and cell states."""
    tiles, slices = variant.grid(batch, hidden)
    state = batch * hidden
    if kernel == "forward":
        memory = 2 * state + (training and 8 * state + 4 * state)
        exchanged = 2 * state
        # Five sigmoids and tangents, an exponential and a reciprocal each.
        special = 10 * state
    else:
        # Gates, cell states and the output's gradient are read, the gates' gradients written.
        memory = 8 * state + 4 * state + 2 * state + 8 * state
        exchanged = 8 * state
        special = 2 * state
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
