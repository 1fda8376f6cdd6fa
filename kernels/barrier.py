"""A barrier among the programs that share a batch tile, on one counter in global memory that is zero between launches.

Each program arrives once a step, and before the step after it waits until all have. The counter goes on counting
through a launch; whoever arrives last at the last step sets it back to zero, when all others are past their last wait.
All programs have to run at the same time, which only a cooperative launch promises.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def arrive(counter, last):
    """Show the others what this program stored; ``last`` is the number of arrivals in the whole launch."""
    # An atomic is done by one thread: its release covers the stores that the others made before this barrier.
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="release", scope="gpu") == last - 1:
        tl.atomic_xchg(counter, 0, sem="relaxed", scope="gpu")


@triton.jit
def wait(counter, arrivals):
    """Wait for the programs' first ``arrivals`` arrivals. What they stored is then read past the first-level cache."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals:
        pass
