"""A barrier among the programs of one batch tile.

The barrier is an int32 counter in global memory, which is zero before and after each launch. Each program adds 1 to it
once in each time step, after its stores (``arrive``). Before it loads in the next time step, a program waits until all
programs have arrived (``wait``). The counter is not reset between the steps: it counts all arrivals of the launch. The
program that arrives last in the last time step sets it back to zero. By then all other programs are past their last
wait.

All programs must run at the same time, or those that run wait forever. Only a cooperative launch guarantees this.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def arrive(counter, total):
    """Publish what this program has stored. ``total`` is the number of arrivals in the whole launch."""
    # One thread does the atomic. Its release covers the other threads' stores only because they come before a barrier
    # of the block.
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="release", scope="gpu") == total - 1:
        tl.atomic_xchg(counter, 0, sem="relaxed", scope="gpu")


@triton.jit
def wait(counter, arrivals):
    """Wait until the counter has reached ``arrivals``.

    What the other programs stored must then be loaded with ``cache_modifier=".cg"``: the first-level cache may hold
    older values.
    """
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals:
        pass
