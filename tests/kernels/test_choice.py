"""The table: every call has an entry, and the entry suits the call and the GPU."""

import itertools
from math import prod

import pytest
import torch

from tagrank.kernels.choice import BACKENDS, RULES, backend_for, choose, consider
from tagrank.kernels.variants import DOUBLE, HALF, SINGLE, Backend, Gpu, Kernel, Variant
from tagrank.kernels.verified import Entry

KERNELS: tuple[Kernel, ...] = ("forward", "backward")
A100, A10, L4, H100, B200, RTX = (
    Gpu((8, 0), 108),
    Gpu((8, 6), 72),
    Gpu((8, 9), 58),
    Gpu((9, 0), 132),
    Gpu((10, 0), 148),
    Gpu((12, 0), 170),
)
GPUS = (A100, A10, L4, H100, B200, RTX)
EVERYWHERE = frozenset(
    itertools.product([gpu.capability for gpu in GPUS], KERNELS, ("resident", "grouped", "cluster"), (*HALF, *SINGLE))
)
HIDDEN = (1, 7, 16, 17, 48, 64, 80, 100, 128, 129, 144, 192, 512, 600, 768, 1024, 4096)
BATCH = (1, 2, 16, 17, 32, 33, 64, 128, 200, 256, 1024, 20_000)


@pytest.mark.parametrize("verified", [frozenset(), EVERYWHERE], ids=["nothing verified", "all verified"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_call_has_a_valid_entry(kernel: Kernel, verified: frozenset[Entry]) -> None:
    seen = set()
    for hidden, batch, dtype, gpu in itertools.product(HIDDEN, BATCH, (*HALF, *SINGLE, *DOUBLE), GPUS):
        variant = choose(kernel, hidden, batch, dtype, gpu, verified)
        tiles, slices = variant.grid(batch, hidden)
        assert (tiles - 1) * variant.block_b < batch <= tiles * variant.block_b
        assert (slices - 1) * variant.block_h < hidden <= slices * variant.block_h
        for size, least in ((variant.block_b, 16), (variant.block_h, 8), (variant.block_k, 16)):
            assert size >= least or variant.name == "product", "tl.dot takes no smaller K, and pads a smaller M or N"
            assert size & (size - 1) == 0, "tl.arange takes only powers of two"
        if not variant.stepwise:
            assert variant.num_stages == 1, "h would be loaded before it is stored"
            assert dtype in (*HALF, *SINGLE)
            assert hidden % 8 == 0
        if variant.name == "resident":
            assert slices == 1
            assert hidden <= (128 if dtype in HALF else 64)
        if variant.name == "grouped":
            assert tiles * slices <= gpu.multiprocessors, "programs would wait forever for one that does not run"
            assert hidden <= 1024
        assert variant.cooperative == (variant.name == "grouped")
        rules = [rule for rule in RULES[kernel] if rule.variant == variant and dtype in rule.dtypes]
        assert all(rule.shared_memory(hidden) <= gpu.shared_memory for rule in rules)
        seen.add(variant)
    expected = {rule.variant for rule in RULES[kernel] if verified or rule.variant.stepwise}
    assert seen == expected, "a rule serves no call"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["resident", "grouped"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_launch_only_if_verified(kernel: Kernel, name: str, dtype: str) -> None:
    call = (kernel, {"resident": 64, "grouped": 512}[name], 16, dtype, H100)
    other: Kernel = "forward" if kernel == "backward" else "backward"
    assert choose(*call, frozenset()).name == "step"
    assert choose(*call, frozenset({((9, 0), kernel, name, dtype)})).name == name
    for entry in (
        ((8, 0), kernel, name, dtype),
        ((9, 0), other, name, dtype),
        ((9, 0), kernel, "another", dtype),
        ((9, 0), kernel, name, "float16"),
    ):
        assert choose(*call, frozenset({entry})).name == "step"


@pytest.mark.parametrize(
    ("hidden", "batch", "dtype", "gpu", "backend", "reason"),
    [
        (512, 1, "bfloat16", H100, "cluster", None),
        (512, 64, "float16", H100, "cluster", None),
        (17, 64, "float16", B200, "cluster", None),
        (512, 65, "bfloat16", H100, "triton", "it is for B up to 64, as with more rows the grouped variant of triton"),
        (513, 1, "bfloat16", H100, "triton", "it is for H up to 512"),
        (256, 256, "bfloat16", H100, "cluster", None),
        (
            256,
            257,
            "bfloat16",
            H100,
            "triton",
            "it is for B up to 256, as clusters of more rows do not all run at once",
        ),
        (256, 256, "float32", H100, "cluster", None),
        (256, 257, "float32", H100, "triton", "it is for B up to 256"),
        (257, 1, "float32", H100, "triton", "it is for H up to 256"),
        (512, 1, "float64", H100, "triton", "it is for float16 and bfloat16 and float32"),
        (512, 1, "bfloat16", A100, "triton", "it is for compute capability 9.0 and later"),
    ],
)
def test_the_backend(hidden: int, batch: int, dtype: str, gpu: Gpu, backend: Backend, reason: str | None) -> None:
    taken, refusals = backend_for(hidden, batch, dtype, gpu, EVERYWHERE)
    assert taken == backend
    assert list(refusals) == ([] if reason is None else ["cluster"])
    assert reason is None or refusals["cluster"].startswith(reason)
    assert all(line.why for line in BACKENDS)


@pytest.mark.parametrize("missing", KERNELS)
def test_a_backend_serves_both_passes_or_none(missing: Kernel) -> None:
    some = EVERYWHERE - {((9, 0), missing, "cluster", "bfloat16")}
    reason = "it was not verified in bfloat16 on compute capability 9.0"
    assert backend_for(512, 16, "bfloat16", H100, some) == ("triton", {"cluster": reason})
    assert backend_for(512, 16, "float16", H100, some) == ("cluster", {})


def test_the_backend_is_decided_while_code_is_compiled() -> None:
    @torch.compile(fullgraph=True, backend="eager", dynamic=True)
    def compiled(x: torch.Tensor) -> torch.Tensor:
        return x + int(backend_for(x.shape[1], x.shape[0], "float16", H100, EVERYWHERE)[0] == "cluster")

    assert [compiled(torch.zeros(batch, 8))[0, 0].item() for batch in (2, 64, 65, 300)] == [1, 1, 1, 0]


def test_resident_must_fit_the_shared_memory() -> None:
    assert choose("forward", 128, 16, "float16", A100, EVERYWHERE).name == "resident"
    assert choose("forward", 128, 16, "float16", A10, EVERYWHERE).name == "grouped"
    assert choose("forward", 64, 16, "float16", A10, EVERYWHERE).name == "resident"


@pytest.mark.parametrize("kernel", KERNELS)
def test_grouped_programs_all_run_at_once(kernel: Kernel) -> None:
    """As the batch grows, so do the tiles, until no tile fits. Fewer multiprocessors hold fewer rows."""
    rows = {}
    for gpu in (A100, H100):
        chosen = [choose(kernel, 512, batch, "bfloat16", gpu, EVERYWHERE) for batch in range(16, 600, 16)]
        sizes = [variant.block_b * variant.block_h for variant in chosen if variant.name == "grouped"]
        assert sizes == sorted(sizes)
        assert all(variant.name == "grouped" for variant in chosen[: len(sizes)])
        assert all(variant.stepwise for variant in chosen[len(sizes) :])
        rows[gpu] = 16 * len(sizes)
    assert 128 <= rows[A100] < rows[H100] < 600
    half = Gpu((9, 0), 32)
    assert prod(choose(kernel, 512, 16, "bfloat16", half, EVERYWHERE).grid(16, 512)) == 32
    assert choose(kernel, 1024, 16, "bfloat16", half, EVERYWHERE).name == "step"


def test_small_batches_spread_over_narrow_slices() -> None:
    few = choose("forward", 1024, 4, "float16", H100)
    many = choose("forward", 1024, 1024, "float16", H100)
    assert few.block_b < many.block_b
    assert few.block_h < many.block_h


def test_a_variant_by_name_needs_no_entry() -> None:
    assert choose("forward", 512, 16, "bfloat16", H100, name="grouped") == Variant("grouped", 16, 16, 128, 4)
    assert choose("forward", 128, 16, "bfloat16", H100, EVERYWHERE, name="step").name == "step"
    with pytest.raises(
        ValueError, match=r"no grouped forward kernel serves B = 16, H = 2048 in bfloat16\. grouped 16 x"
    ):
        choose("forward", 2048, 16, "bfloat16", H100, name="grouped")


@pytest.mark.parametrize(
    ("hidden", "batch", "dtype", "gpu", "variant", "reason"),
    [
        (128, 16, "bfloat16", H100, "resident 16 x 64", "it is for H up to 64"),
        (128, 16, "bfloat16", B200, "resident 16 x 128", "it was not verified in bfloat16 on compute capability 10.0"),
        (128, 16, "bfloat16", L4, "resident 16 x 128", "a block may need 136 KB of shared memory, and has 99 KB"),
        (100, 16, "bfloat16", H100, "resident 16 x 128", "it is for H divisible by 8"),
        (512, 256, "bfloat16", H100, "grouped 16 x 16", "its 512 programs must run at once, on 132 multiprocessors"),
        (512, 17, "bfloat16", H100, "step 16 x 16", "it is for B up to 16"),
        (512, 17, "float32", H100, "grouped 16 x 16", "it is for float16 and bfloat16"),
        (512, 64, "bfloat16", H100, "step 64 x 32", "16 programs are too few to fill a GPU"),
    ],
)
def test_the_reason_is_given(hidden: int, batch: int, dtype: str, gpu: Gpu, variant: str, reason: str) -> None:
    reasons = [why for rule, why in consider("forward", hidden, batch, dtype, gpu) if str(rule.variant) == variant]
    assert reasons[0] == reason
    assert all(rule.why for kernel in KERNELS for rule in RULES[kernel])


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="takes this call: it is for float16 and bfloat16 and float32; it is for"):
        backend_for(64, 1, "int8", H100)
    with pytest.raises(ValueError, match="dtype: expected one of float16, bfloat16, float32, float64; got int8"):
        choose("forward", 64, 1, "int8", H100)


def test_a_resident_tile_too_narrow_for_h() -> None:
    with pytest.raises(ValueError, match="hidden: expected at most 64, the width of a resident tile; got 65"):
        Variant("resident", 16, 64, 64, 4).grid(1, 65)
