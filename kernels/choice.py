"""The table that picks the variant and the tile sizes for a call. Nothing is tuned at run time."""

from collections.abc import Iterator, Set

from tagrank.kernels.variants import DOUBLE, FULL_GRID, HALF, SINGLE, Gpu, Kernel, Name, Rule, Variant
from tagrank.kernels.verified import VERIFIED, Entry


def _resident(block_h: int, num_warps: int, why: str, *, shared: int) -> Rule:
    """A rule for H up to ``block_h``, with 16 batch rows in a tile."""
    return Rule(HALF, Variant("resident", 16, block_h, block_h, num_warps), why, shared, max_hidden=block_h)


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


#: The first rule that serves a call decides. The last rule of each kernel serves every call.
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
        Rule(
            SINGLE,
            Variant("step", 32, 32, 32, 8, 2),
            "without TF32 the scalar units multiply, and larger tiles read less; 4 warps or 3 stages spill on 9.0",
            shared=40 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(
            SINGLE,
            Variant("step", 16, 16, 64, 4, 3),
            "tiles of 32 x 32 would be too few to fill the GPU",
            shared=40 * 1024,
        ),
        Rule(
            DOUBLE,
            Variant("step", 16, 16, 32, 4, 3),
            "one size for all: float64 is there to check the other dtypes",
            shared=40 * 1024,
        ),
        Rule(
            (*HALF, *SINGLE, *DOUBLE),
            Variant("step", 16, 16, 16, 4, 2),
            "H not divisible by 8: loading single numbers takes many addresses; any larger tile spills in some dtype",
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
        _resident(128, 8, "as for H up to 64", shared=136 * 1024),
        # In each step a program reads all 4H gate gradients of its rows, so few rows matter more than narrow slices.
        # No grouped tile serves B = 256, H = 1024. U allows slices of 16 units there, and 64 slices would read 134 MB
        # a step from the second-level cache, which takes 24 us on an H100. Exchanging partial sums would move as many
        # bytes. The step variant moves 98 MB.
        _grouped(16, 16, 4, "few rows: the smallest tiles use the most multiprocessors", shared=16 * 1024),
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
        Rule(
            HALF,
            Variant("step", 16, 16, 128, 4, 4),
            "few rows, as in forward; with one product over 4H a stage is smaller, and more stages fit",
            shared=24 * 1024,
            max_batch=16,
        ),
        Rule(HALF, Variant("step", 32, 16, 128, 4, 4), "few rows, as for 16", shared=36 * 1024, max_batch=32),
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
        Rule(SINGLE, Variant("step", 32, 32, 32, 8, 3), "as in forward", shared=16 * 1024, min_programs=FULL_GRID),
        Rule(
            SINGLE,
            Variant("step", 16, 16, 64, 4, 3),
            "tiles of 32 x 32 would be too few to fill the GPU",
            shared=16 * 1024,
        ),
        Rule(DOUBLE, Variant("step", 16, 16, 32, 4, 3), "as in forward", shared=16 * 1024),
        Rule(
            (*HALF, *SINGLE, *DOUBLE),
            Variant("step", 16, 16, 32, 4, 2),
            "H not divisible by 8, as in forward",
            shared=8 * 1024,
            aligned=False,
        ),
    ),
}


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
        if refusal is None and name is None and variant != "step" and (gpu.capability, kernel, variant) not in verified:
            refusal = f"it was not verified on compute capability {gpu.capability[0]}.{gpu.capability[1]}"
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
