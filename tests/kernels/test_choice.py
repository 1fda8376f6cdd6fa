"""The table: every call has an entry, and an entry that fits."""

import itertools

import pytest

from tagrank.kernels.choice import DOUBLE, HALF, RULES, SINGLE, Kernel, Variant, choose, shared_memory

KERNELS: tuple[Kernel, ...] = ("forward", "backward")
CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
EVERYWHERE = frozenset(itertools.product(CAPABILITIES, KERNELS))
HIDDEN = (1, 7, 16, 17, 48, 64, 80, 100, 128, 129, 144, 192, 512, 600, 1024, 4096)
BATCH = (1, 2, 16, 17, 32, 33, 64, 200, 1024, 20_000)


@pytest.mark.parametrize("verified", [frozenset(), EVERYWHERE], ids=["nothing verified", "all verified"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_call_has_a_valid_entry(kernel: Kernel, verified: frozenset[tuple[tuple[int, int], str]]) -> None:
    seen = set()
    for hidden, batch, dtype, capability in itertools.product(HIDDEN, BATCH, (*HALF, *SINGLE, *DOUBLE), CAPABILITIES):
        variant = choose(kernel, hidden, batch, dtype, capability, verified)
        tiles, slices = variant.grid(batch, hidden)
        assert (tiles - 1) * variant.block_b < batch <= tiles * variant.block_b
        assert (slices - 1) * variant.block_h < hidden <= slices * variant.block_h
        for size in (variant.block_b, variant.block_h, variant.block_k):
            assert size >= 16, "tl.dot takes no less"
            assert size & (size - 1) == 0, "tl.arange takes powers of two alone"
        if variant.resident:
            assert (slices, variant.num_stages) == (1, 1)
            assert dtype in HALF
            assert hidden <= 128
            assert hidden % 16 == 0
        rules = [rule for rule in RULES[kernel] if rule.variant == variant and dtype in rule.dtypes]
        assert all(rule.shared <= shared_memory(capability) for rule in rules)
        seen.add(variant)
    assert seen == {rule.variant for rule in RULES[kernel] if verified or not rule.variant.resident}, "a dead rule"


@pytest.mark.parametrize("kernel", KERNELS)
def test_resident_where_verified_alone(kernel: Kernel) -> None:
    call = (kernel, 128, 16, "bfloat16", (9, 0))
    assert choose(*call, frozenset({((9, 0), kernel)})).resident
    assert not choose(*call, frozenset({((8, 0), kernel)})).resident
    other: Kernel = "forward" if kernel == "backward" else "backward"
    assert not choose(*call, frozenset({((9, 0), other)})).resident


def test_resident_has_to_fit_the_shared_memory() -> None:
    assert choose("forward", 128, 16, "float16", (8, 0), EVERYWHERE).resident
    assert not choose("forward", 128, 16, "float16", (8, 6), EVERYWHERE).resident
    assert choose("forward", 64, 16, "float16", (8, 6), EVERYWHERE).resident


def test_small_batches_spread_over_narrow_slices() -> None:
    few = choose("forward", 1024, 4, "float16", (9, 0))
    many = choose("forward", 1024, 1024, "float16", (9, 0))
    assert few.block_b < many.block_b
    assert few.block_h < many.block_h


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="dtype: expected one of float16, bfloat16, float32, float64; got int8"):
        choose("forward", 64, 1, "int8", (9, 0))


def test_a_resident_tile_too_narrow_for_h() -> None:
    with pytest.raises(ValueError, match="hidden: expected at most 64, the width of a resident tile; got 65"):
        Variant("resident", 16, 64, 64, 4, 1).grid(1, 65)
