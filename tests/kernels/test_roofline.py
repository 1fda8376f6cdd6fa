"""The model: the counts of a step are those worked out by hand, and the floors follow from them."""

import pytest

from tagrank.kernels.roofline import H100, Limits, cluster_step, triton_step
from tagrank.kernels.variants import Variant

STEP = Variant("step", 16, 16, 128, 4, 4)
GROUPED = Variant("grouped", 16, 16, 128, 4)
RESIDENT = Variant("resident", 16, 128, 128, 8)
#: One unit of each kind per second, so that a floor in seconds is a count.
UNITS = Limits(4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)


def test_counts() -> None:
    """B = 32, H = 64: two tiles of 16 rows, four slices of 16 units. U has 8 x 64 x 64 bytes, h has 2 x 32 x 64."""
    for kernel, memory, exchanged in (("forward", 14 * 2048, 4096), ("backward", 22 * 2048, 16384)):
        one = triton_step(kernel, STEP, 32, 64)
        assert (one.flops, one.memory) == (8 * 32 * 64 * 64, memory)
        assert (one.cache, one.shared) == (4 * exchanged + 2 * 32768, 0)
        assert (one.barriers, one.launches, one.programs) == (0, 1, 8)
        one = triton_step(kernel, GROUPED, 32, 64)
        assert (one.cache, one.shared) == (4 * exchanged, 2 * 32768)
        assert (one.barriers, one.launches, one.programs) == (1, 0, 8)
        one = triton_step(kernel, RESIDENT, 32, 64)
        assert (one.cache, one.shared) == (0, 2 * 32768)
        assert (one.barriers, one.launches, one.programs) == (0, 0, 2)
    assert triton_step("forward", STEP, 32, 64, training=False).memory == 2 * 2048


def test_floor_is_the_longest_and_waiting_is_added() -> None:
    one = triton_step("forward", RESIDENT, 32, 64)
    # Two programs use two of the four multiprocessors, but all of the memory bandwidth.
    assert one.floor(UNITS) == (one.flops * 2, "tensor cores")
    fast = Limits(4, 1e9, 1.0, 1e9, 1e9, 1e9, 1e9, 0.0, 0.0, 0.0)
    assert one.floor(fast) == (one.memory, "memory")
    grouped = triton_step("forward", GROUPED, 32, 64)
    slow = Limits(4, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 5.0, 7.0, 3.0)
    seconds, bound = grouped.floor(slow)
    assert (seconds, bound) == (pytest.approx(5.0, rel=1e-3), "barrier")
    seconds, bound = triton_step("forward", STEP, 32, 64).floor(slow)
    assert (seconds, bound) == (pytest.approx(7.0, rel=1e-3), "launch")


def test_counts_of_a_cluster() -> None:
    """B = 40, H = 200: a cluster has seven blocks, and ``UNITS`` four multiprocessors.

    No number of rows lets all clusters fit at once, so each cluster takes the most rows: 64 in forward, 32 in backward.
    """
    one = cluster_step("forward", 40, 200, UNITS)
    assert (one.programs, one.messages, one.barriers, one.launches) == (7, 1, 0, 0)
    # Each of the seven blocks sends h, 32 units of 64 rows in 16 bit, to the six others.
    assert one.distributed == 7 * 6 * 64 * 32 * 2
    assert one.flops == 8 * 64 * 256 * 224
    back = cluster_step("backward", 40, 200, UNITS)
    # Two clusters. The parts of dh are in float32.
    assert back.programs == 14
    assert back.distributed == 2 * 7 * 6 * 32 * 32 * 4
    assert (one.memory, back.memory) == (14 * 40 * 200, 22 * 40 * 200)
    seconds, bound = one.floor(Limits(4, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 5.0, 7.0, 3.0))
    assert (seconds, bound) == (pytest.approx(3.0, rel=1e-2), "message")


def test_a_single_block_waits_for_no_other() -> None:
    single = cluster_step("forward", 1, 32, H100)
    assert (single.programs, single.distributed, single.messages) == (1, 0, 0)
