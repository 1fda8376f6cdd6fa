"""The model: counts of a step that were worked out by hand, and floors that follow from them."""

import pytest

from tagrank.kernels.roofline import H100, Limits, cluster_step, step
from tagrank.kernels.variants import Variant

STEP = Variant("step", 16, 16, 128, 4, 4)
GROUPED = Variant("grouped", 16, 16, 128, 4)
RESIDENT = Variant("resident", 16, 128, 128, 8)
#: A second for each unit of each kind, so that floors are counts.
UNITS = Limits(4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)


def test_counts() -> None:
    """B = 32, H = 64: two tiles of rows, four slices of units; U is 8 x 64 x 64 bytes, h 2 x 32 x 64."""
    for kernel, memory, exchanged in (("forward", 14 * 2048, 4096), ("backward", 22 * 2048, 16384)):
        one = step(kernel, STEP, 32, 64)
        assert (one.flops, one.memory) == (8 * 32 * 64 * 64, memory)
        assert (one.cache, one.shared) == (4 * exchanged + 2 * 32768, 0)
        assert (one.barriers, one.launches, one.programs) == (0, 1, 8)
        one = step(kernel, GROUPED, 32, 64)
        assert (one.cache, one.shared) == (4 * exchanged, 2 * 32768)
        assert (one.barriers, one.launches, one.programs) == (1, 0, 8)
        one = step(kernel, RESIDENT, 32, 64)
        assert (one.cache, one.shared) == (0, 2 * 32768)
        assert (one.barriers, one.launches, one.programs) == (0, 0, 2)
    assert step("forward", STEP, 32, 64, training=False).memory == 2 * 2048


def test_floor_is_the_longest_and_waiting_is_added() -> None:
    one = step("forward", RESIDENT, 32, 64)
    # Two programs use half of four multiprocessors, but all of the memory.
    assert one.floor(UNITS) == (one.flops * 2, "tensor cores")
    fast = Limits(4, 1e9, 1.0, 1e9, 1e9, 1e9, 1e9, 0.0, 0.0, 0.0)
    assert one.floor(fast) == (one.memory, "memory")
    grouped = step("forward", GROUPED, 32, 64)
    slow = Limits(4, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 5.0, 7.0, 3.0)
    seconds, bound = grouped.floor(slow)
    assert (seconds, bound) == (pytest.approx(5.0, rel=1e-3), "barrier")
    seconds, bound = step("forward", STEP, 32, 64).floor(slow)
    assert (seconds, bound) == (pytest.approx(7.0, rel=1e-3), "launch")


def test_counts_of_a_cluster() -> None:
    """B = 40, H = 200: four blocks fit once, in clusters of seven blocks that have no room, so one of 64 rows."""
    one = cluster_step("forward", 40, 200, UNITS)
    assert (one.programs, one.cluster_barriers, one.barriers, one.launches) == (7, 1, 0, 0)
    # h, 32 units of 64 rows, from each of seven blocks to six others.
    assert one.distributed == 7 * 6 * 64 * 32 * 2
    assert one.flops == 8 * 64 * 256 * 224
    back = cluster_step("backward", 40, 200, UNITS)
    # Two clusters of 32 rows; the parts of dh are in float32.
    assert back.programs == 14
    assert back.distributed == 2 * 7 * 6 * 32 * 32 * 4
    assert (one.memory, back.memory) == (14 * 40 * 200, 22 * 40 * 200)
    seconds, bound = one.floor(Limits(4, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 5.0, 7.0, 3.0))
    assert (seconds, bound) == (pytest.approx(3.0, rel=1e-2), "barrier")


def test_one_block_waits_for_none() -> None:
    alone = cluster_step("forward", 1, 32, H100)
    assert (alone.programs, alone.distributed, alone.cluster_barriers) == (1, 0, 0)
