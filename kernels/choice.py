"""The tables that pick the backend, the variant and the tile sizes for a call. Nothing is tuned at run time."""

from collections.abc import Iterator, Set

from tagrank.kernels.variants import (
    DOUBLE,
    FULL_GRID,
    HALF,
    SINGLE,
    Backend,
    BackendRule,
    Gpu,
    Kernel,
    Name,
    Rule,
    Variant,
)
from tagrank.kernels.verified import VERIFIED, Entry

#: Which backend serves both passes of a call: what one has saved, it reads itself. The first line that serves the call
#: decides. The reasons compare GPU times of an H100, from ``benchmarks/results/``: ``cluster-steps-9.0.json`` has those
#: of the cluster kernels in 16 bit, ``gpu-9.0-292029f.json`` those of the others, ``gpu-9.0.json`` those of float32,
#: and ``product-steps-9.0.json`` those of the product variants.
BACKENDS: tuple[BackendRule, ...] = (
    BackendRule(
        HALF,
        "cluster",
        "U is in registers and h in distributed shared memory, so that a step takes no trip through the second-level "
        "cache",
        oldest=(9, 0),
        max_hidden=512,
        max_batch=64,
        beyond="with more rows the grouped variant of triton is ahead",
    ),
    BackendRule(
        HALF,
        "cluster",
        "clusters of up to 8 blocks are smaller, so that more of them run at once",
        oldest=(9, 0),
        max_hidden=256,
        max_batch=256,
        beyond="clusters of more rows do not all run at once",
    ),
    BackendRule(
        SINGLE,
        "cluster",
        "ahead of triton at every size that was measured; the registers hold half the U that they hold in 16 bit",
        oldest=(9, 0),
        max_hidden=256,
        max_batch=256,
        beyond="clusters of more rows do not all run at once",
    ),
    BackendRule((*HALF, *SINGLE, *DOUBLE), "triton", "all other calls; RULES has the variant for each pass"),
)


def _resident(
    block_h: int,
    num_warps: int,
    why: str,
    *,
    shared: int,
    dtypes: tuple[str, ...] = HALF,
    all_registers: bool = True,
    oldest: tuple[int, int] = (8, 0),
) -> Rule:
    """A rule for H up to ``block_h``, with 16 batch rows in a tile."""
    variant = Variant("resident", 16, block_h, block_h, num_warps, all_registers=all_registers)
    return Rule(dtypes, variant, why, shared, max_hidden=block_h, oldest=oldest)


def _grouped(
    block_b: int,
    block_h: int,
    num_warps: int,
    why: str,
    *,
    shared: int,
    max_hidden: int = 1024,
    block_k: int = 128,
    oldest: tuple[int, int] = (8, 0),
    newest: tuple[int, int] | None = None,
) -> Rule:
    """A rule whose blocks need ``shared`` bytes for all but U. A chunk of U is 4 x block_k x block_h 16-bit numbers."""
    variant = Variant("grouped", block_b, block_h, block_k, num_warps)
    return Rule(
        HALF, variant, why, shared, 2 * 4 * block_k * block_h, oldest=oldest, newest=newest, max_hidden=max_hidden
    )


def _grouped_single(
    block_b: int,
    block_h: int,
    block_k: int,
    why: str,
    *,
    shared: int,
    max_hidden: int = 1024,
    oldest: tuple[int, int] = (8, 0),
) -> Rule:
    """The same for float32. A chunk of U is 4 x block_k x block_h float32 numbers."""
    variant = Variant("grouped", block_b, block_h, block_k, 8, all_registers=False)
    return Rule(SINGLE, variant, why, shared, 4 * 4 * block_k * block_h, oldest=oldest, max_hidden=max_hidden)


def _product(
    dtypes: tuple[str, ...],
    why: str,
    *,
    aligned: bool = True,
    min_hidden: int = 1,
    max_hidden: int | None = None,
    min_programs: int = 0,
) -> Rule:
    """A rule for the variant whose products are cuBLAS's. What it launches is elementwise: nearly any tile will do."""
    variant = Variant("product", 4, 128, 1, 4)
    shared = 4 * 1024  # float64 on 8.0; otherwise none
    return Rule(
        dtypes,
        variant,
        why,
        shared,
        aligned=aligned,
        min_hidden=min_hidden,
        max_hidden=max_hidden,
        min_programs=min_programs,
    )


#: Triton's variants and tiles. The first rule that serves a call decides. The last rules of each kernel serve every H.
RULES: dict[Kernel, tuple[Rule, ...]] = {
    "forward": (
        _resident(
            64,
            4,
            "U is 32 KB; a smaller H is padded, because the tensor cores have time to spare",
            shared=36 * 1024,
        ),
        _resident(128, 8, "U is 128 KB; tiles of 64 rows spill, and so do 4 warps", shared=136 * 1024),
        # All programs of a grouped launch must run at the same time, one to a multiprocessor. Of the tiles that allow
        # this, the one with the fewest rows comes first: each multiprocessor then has the least to do in a step.
        _grouped(16, 16, 4, "few rows: the smallest tiles use the most multiprocessors", shared=4 * 1024),
        _grouped(32, 16, 4, "tiles of 16 rows would be more programs than multiprocessors", shared=8 * 1024),
        _grouped(
            64,
            16,
            8,
            "tiles of 32 rows would be too many programs; 64 make a wgmma on Hopper; block_k = 128 spills on an A100",
            shared=36 * 1024,
            block_k=256,
        ),
        _grouped(
            128,
            16,
            8,
            "tiles of 64 rows would be too many programs; without wgmma 128 rows spill",
            shared=33 * 1024,
            oldest=(9, 0),
        ),
        # U is twice as large in float32, so that slices are narrower. For three TF32 products, each part of U and h
        # is in registers as a pair of TF32 numbers. block_k = 32 keeps these parts small, and so do eight warps.
        _resident(
            64,
            8,
            "U is 64 KB, and twice that as pairs of TF32 numbers; a wider U would not fit; 4 warps spill",
            shared=137 * 1024,
            dtypes=SINGLE,
            all_registers=False,
        ),
        _grouped_single(16, 8, 32, "few rows: the smallest tiles use the most multiprocessors", shared=4 * 1024),
        _grouped_single(16, 16, 32, "slices of 8 units would be too many programs", shared=4 * 1024, max_hidden=768),
        _grouped_single(32, 16, 32, "tiles of 16 rows would be too many programs", shared=8 * 1024, max_hidden=512),
        Rule(
            HALF,
            Variant("step", 16, 16, 128, 4, 4),
            "few rows: most of the time goes into reading U, which narrow slices spread over many multiprocessors",
            shared=60 * 1024,
            max_batch=16,
        ),
        Rule(HALF, Variant("step", 32, 16, 128, 4, 3), "few rows, as for 16", shared=48 * 1024, max_batch=32),
        Rule(
            HALF,
            Variant("step", 64, 32, 64, 8, 3),
            "many rows: 64 make a wgmma on Hopper; with 3 stages two blocks fit side by side",
            shared=73 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(
            HALF,
            Variant("step", 64, 16, 64, 4, 4),
            "tiles of 64 x 32 would be too few to fill the GPU",
            shared=65 * 1024,
        ),
        _product(
            SINGLE,
            "cuBLAS's tiles are larger, and it reads U less often: at B = 256, H = 1024 a step takes 64 us in place of "
            "82, in TF32 18 in place of 29; for smaller products it gains nothing",
            min_programs=4 * FULL_GRID,
        ),
        _product(
            SINGLE,
            "in TF32 a step takes 31 us at B = 64, H = 2048 in place of 64; for few rows it takes a little longer",
            min_programs=2 * FULL_GRID,
            min_hidden=1536,
        ),
        Rule(
            SINGLE,
            Variant("step", 32, 32, 32, 8, 2),
            "larger tiles read less; 3 stages spill on 9.0",
            shared=40 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(
            SINGLE,
            Variant("step", 16, 16, 64, 4, 3),
            "tiles of 32 x 32 would be too few to fill the GPU",
            shared=60 * 1024,
        ),
        Rule(
            DOUBLE,
            Variant("step", 16, 16, 32, 4, 3),
            "one size for all: float64 is there to check the other dtypes",
            shared=40 * 1024,
        ),
        _product(
            ("bfloat16", *DOUBLE),
            "H not divisible by 8: a step kernel loads single numbers, and takes 19 us at H = 300; this takes 5 to 10",
            aligned=False,
            min_hidden=256,
        ),
        # Of float16, cuBLAS left a term out of sums of 2113 and 3969, at least in the products of another shape
        # (csrc/operators/products.cpp). Until test_no_term_is_left_out_of_a_product has run on a GPU, longer sums of an
        # odd number of terms are our own.
        _product(
            ("float16",),
            "H not divisible by 8, as above; cuBLAS was wrong in longer float16 sums of an odd number of terms",
            aligned=False,
            min_hidden=256,
            max_hidden=1024,
        ),
        Rule(
            (*HALF, *SINGLE, *DOUBLE),
            Variant("step", 16, 16, 16, 4, 2),
            "any H; to load single numbers takes many addresses, and any larger tile spills in some dtype",
            shared=10 * 1024,
            aligned=False,
        ),
    ),
    "backward": (
        _resident(
            64,
            4,
            "as in forward; the sum over time for a constant input's gradient is in registers",
            shared=36 * 1024,
        ),
        # In each step a program reads all 4H gate gradients of its rows, so few rows matter more than narrow slices.
        # No grouped tile serves B = 256, H = 1024. U allows slices of 16 units there, and 64 slices would read 134 MB
        # a step from the second-level cache, which takes 24 us on an H100. Exchanging partial sums would move as many
        # bytes. The step variant moves 98 MB; cuBLAS's tiles are larger.
        _grouped(16, 16, 4, "few rows: the smallest tiles use the most multiprocessors", shared=16 * 1024),
        _resident(
            128,
            8,
            "slices would be too many programs; at H = 128 slices are ahead, because each multiplies less of U",
            shared=136 * 1024,
        ),
        _grouped(16, 32, 8, "slices of 16 units would be too many programs", shared=16 * 1024, max_hidden=512),
        _grouped(32, 16, 8, "tiles of 16 rows would be more programs than multiprocessors", shared=32 * 1024),
        _grouped(
            32,
            32,
            8,
            "slices of 16 units would be too many programs; block_k = 256 takes the fewest registers",
            shared=64 * 1024,
            max_hidden=512,
            block_k=256,
            oldest=(9, 0),
        ),
        _grouped(
            32,
            32,
            8,
            "block_k = 256 takes more shared memory than an A100 has; on 9.0 block_k = 128 spills",
            shared=32 * 1024,
            max_hidden=512,
            newest=(8, 9),
        ),
        _resident(
            64,
            8,
            "as in forward; on 8.0 it spills",
            shared=137 * 1024,
            dtypes=SINGLE,
            all_registers=False,
            oldest=(9, 0),
        ),
        _grouped_single(
            16,
            16,
            32,
            "few rows: the smallest tiles; slices of 8 units spill, and so does a wider H",
            shared=8 * 1024,
            max_hidden=512,
        ),
        _grouped_single(
            32,
            16,
            16,
            "tiles of 16 rows would be too many programs; block_k = 32 spills, and on 8.0 this tile does",
            shared=8 * 1024,
            max_hidden=512,
            oldest=(9, 0),
        ),
        _product(
            HALF,
            "at H = 2048 a backward step takes 15 us at B = 1 and 43 at B = 256, where step kernels take 22 and 94",
            min_hidden=1536,
        ),
        Rule(
            HALF,
            Variant("step", 16, 16, 128, 4, 4),
            "few rows, as in forward; with one product over 4H a stage is smaller, and more stages fit",
            shared=24 * 1024,
            max_batch=16,
        ),
        Rule(HALF, Variant("step", 32, 16, 128, 4, 4), "few rows, as for 16", shared=36 * 1024, max_batch=32),
        _product(
            HALF,
            "cuBLAS's tiles are larger, and it reads U less often: at B = 256, H = 1024 a step of both passes takes 31 "
            "us in place of 34",
            min_programs=4 * FULL_GRID,
        ),
        Rule(
            HALF,
            Variant("step", 64, 32, 64, 8, 4),
            "many rows: 64 make a wgmma on Hopper; 4 warps spill",
            shared=49 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(
            HALF,
            Variant("step", 64, 16, 64, 8, 4),
            "tiles of 64 x 32 would be too few to fill the GPU; 4 warps spill on 10.0",
            shared=41 * 1024,
        ),
        _product(
            SINGLE,
            "the inner dimension is 4H, and cuBLAS divides it among blocks: at H = 1024 in TF32 a step takes 12 us "
            "with B = 1 and 42 with B = 256, where a step kernel takes 17 and 100; at H = 768 it gains nothing",
            min_hidden=1024,
        ),
        _product(
            SINGLE, "the same for many rows: 19 us in TF32 at B = 256, H = 512, and not 36", min_programs=FULL_GRID
        ),
        Rule(
            SINGLE,
            Variant("step", 16, 16, 64, 4, 3),
            "small products: cuBLAS would be a second launch a step",
            shared=24 * 1024,
        ),
        Rule(DOUBLE, Variant("step", 16, 16, 32, 4, 3), "as in forward", shared=16 * 1024),
        _product(
            (*HALF, *SINGLE, *DOUBLE),
            "H not divisible by 8: at H = 300 a backward step takes 6 to 16 us, where step kernels take 10 to 33",
            aligned=False,
            min_hidden=256,
        ),
        Rule(
            SINGLE,
            Variant("step", 16, 16, 16, 4, 2),
            "the same for small H; block_k = 32 spills on 8.0",
            shared=8 * 1024,
            aligned=False,
        ),
        Rule(
            (*HALF, *DOUBLE),
            Variant("step", 16, 16, 32, 4, 2),
            "the same for small H",
            shared=8 * 1024,
            aligned=False,
        ),
    ),
}


def backend_for(
    hidden: int, batch: int, dtype: str, gpu: Gpu, verified: Set[Entry] = VERIFIED
) -> tuple[Backend, dict[Backend, str]]:
    """The backend that serves both passes of a call on a GPU.

    Args:
        hidden: H.
        batch: B.
        dtype: the gates' dtype.
        gpu: the GPU that the call runs on.
        verified: the GPUs on which the kernels of ``cluster`` may run.

    Returns:
        The backend of the first line of ``BACKENDS`` that serves the call, and for each other backend in a line before
        it the reason why it does not.

    Raises:
        ValueError: no line has this dtype.
    """
    dtypes: dict[Backend, list[str]] = {}
    for rule in BACKENDS:
        dtypes.setdefault(rule.backend, []).extend(rule.dtypes)
    refusals: dict[Backend, str] = {
        name: f"it is for {' and '.join(dict.fromkeys(its))}" for name, its in dtypes.items() if dtype not in its
    }
    for rule in (line for line in BACKENDS if dtype in line.dtypes):
        refusal = rule.outside(hidden, batch, dtype, gpu.capability)
        if refusal is None and rule.backend == "cluster":
            for kernel in ("forward", "backward"):
                if (gpu.capability, kernel, "cluster", dtype) not in verified:
                    refusal = _not_verified(dtype, gpu)
        if refusal is None:
            return rule.backend, {name: reason for name, reason in refusals.items() if name != rule.backend}
        # A later line of the same backend, for smaller H, has nothing to say about a larger one.
        if rule.backend not in refusals or rule.max_hidden is None or hidden <= rule.max_hidden:
            refusals[rule.backend] = refusal
    raise ValueError(f"no backend for GPUs takes this call: {'; '.join(refusals.values())}")


def _not_verified(dtype: str, gpu: Gpu) -> str:
    return f"it was not verified in {dtype} on compute capability {gpu.capability[0]}.{gpu.capability[1]}"


def consider(
    kernel: Kernel,
    hidden: int,
    batch: int,
    dtype: str,
    gpu: Gpu,
    verified: Set[Entry] = VERIFIED,
    name: Name | None = None,
) -> Iterator[tuple[Rule, str | None]]:
    """Each rule of the kernel in the table's order, with the reason why it does not serve the call, or ``None``.

    The arguments are those of :func:`choose`.
    """
    for rule in RULES[kernel]:
        variant = rule.variant.name
        refusal = rule.refusal(hidden, batch, dtype, gpu)
        entry = gpu.capability, kernel, variant, dtype
        if refusal is None and name is None and not rule.variant.stepwise and entry not in verified:
            refusal = _not_verified(dtype, gpu)
        if name in (None, variant):
            yield rule, refusal


def choose(
    kernel: Kernel,
    hidden: int,
    batch: int,
    dtype: str,
    gpu: Gpu,
    verified: Set[Entry] = VERIFIED,
    name: Name | None = None,
) -> Variant:
    """The variant of the first rule that serves a call.

    Args:
        kernel: ``"forward"`` or ``"backward"``.
        hidden: H.
        batch: B.
        dtype: the gates' dtype.
        gpu: the GPU that the call runs on.
        verified: the GPUs on which resident and grouped variants may run.
        name: if given, only rules with this variant count, and ``verified`` is ignored.

    Raises:
        ValueError: no rule has this dtype, or no rule with variant ``name`` serves the call.
    """
    refusals = {}
    for rule, refusal in consider(kernel, hidden, batch, dtype, gpu, verified, name):
        if refusal is None:
            return rule.variant
        refusals[str(rule.variant)] = refusal
    if dtype not in (*HALF, *SINGLE, *DOUBLE):
        raise ValueError(f"dtype: expected one of {', '.join((*HALF, *SINGLE, *DOUBLE))}; got {dtype}")
    reasons = "; ".join(f"{variant}: {refusal}" for variant, refusal in refusals.items())
    raise ValueError(f"no {name} {kernel} kernel serves B = {batch}, H = {hidden} in {dtype}. {reasons}")
