"""Which variant and which tile sizes serve a call: one small table for each kernel, and no tuning at run time."""

from collections.abc import Iterator, Set

from tagrank.kernels.variants import DOUBLE, FULL_GRID, HALF, SINGLE, Gpu, Kernel, Name, Rule, Variant
from tagrank.kernels.verified import VERIFIED, Entry


def _resident(block_h: int, num_warps: int) -> Variant:
    return Variant("resident", 16, block_h, block_h, num_warps)


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
    """A rule whose blocks need ``shared`` bytes besides U, which takes 4 BLOCK_K BLOCK_H numbers a chunk."""
    variant = Variant("grouped", block_b, block_h, block_k, num_warps)
    return Rule(
        HALF, variant, why, shared, 2 * 4 * block_k * block_h, oldest=oldest, newest=newest, max_hidden=max_hidden
    )


#: The first rule that serves a call decides. The last serves every call.
RULES: dict[Kernel, tuple[Rule, ...]] = {
    "forward": (
        Rule(
            HALF,
            _resident(64, 4),
            "U is 32 KB; smaller H are padded, as the tensor cores have time to spare",
            36 * 1024,
            max_hidden=64,
        ),
        Rule(HALF, _resident(128, 8), "U is 128 KB; 64 rows spill, and so do 4 warps", 136 * 1024, max_hidden=128),
        # Of the grouped tiles the one with the fewest rows whose programs can all run at once, one to a multiprocessor:
        # a step then takes the least time on each.
        _grouped(16, 16, 4, "few rows: as many programs as there are multiprocessors", shared=4 * 1024),
        _grouped(32, 16, 4, "16 rows would be more programs than multiprocessors", shared=8 * 1024),
        _grouped(
            64,
            16,
            8,
            "32 rows would be more programs; wgmma on Hopper; 128 of K spill on A100",
            shared=36 * 1024,
            block_k=256,
        ),
        _grouped(
            128, 16, 8, "64 rows would be more programs; without wgmma 128 spill", shared=33 * 1024, oldest=(9, 0)
        ),
        Rule(
            HALF,
            Variant("step", 16, 16, 128, 4, 4),
            "few rows: the time goes into reading U, so narrow slices spread it over many multiprocessors",
            60 * 1024,
            max_batch=16,
        ),
        Rule(HALF, Variant("step", 32, 16, 128, 4, 3), "as with 16 rows", 48 * 1024, max_batch=32),
        Rule(
            HALF,
            Variant("step", 64, 32, 64, 8, 3),
            "many rows: 64 make a wgmma on Hopper; 3 stages, so that two blocks fit side by side",
            73 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(HALF, Variant("step", 64, 16, 64, 4, 4), "too few tiles of 64 x 32 to fill the GPU", 65 * 1024),
        Rule(
            SINGLE,
            Variant("step", 32, 32, 32, 8, 2),
            "without TF32 the product is on the scalar units: larger tiles read less; 4 warps or 3 stages spill on 9.0",
            40 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(SINGLE, Variant("step", 16, 16, 64, 4, 3), "too few tiles of 32 x 32 to fill the GPU", 40 * 1024),
        Rule(DOUBLE, Variant("step", 16, 16, 32, 4, 3), "one size fits: it is there to check the others", 40 * 1024),
        Rule(
            (*HALF, *SINGLE, *DOUBLE),
            Variant("step", 16, 16, 16, 4, 2),
            "H not divisible by 8: element-wise loads need many addresses, and any larger tile spills in some dtype",
            10 * 1024,
            aligned=False,
        ),
    ),
    "backward": (
        Rule(
            HALF,
            _resident(64, 4),
            "as forward, with the sum of the constant input's gradient in registers",
            36 * 1024,
            max_hidden=64,
        ),
        Rule(HALF, _resident(128, 8), "as with H up to 64", 136 * 1024, max_hidden=128),
        # A program reads all 4H gate gradients of its rows at each step, so few rows matter more than narrow slices.
        # For B = 256 and H = 1024 nothing is left: U allows slices of 16, and 64 of these would read 134 MB a step from
        # the second-level cache, 24 us on an H100; the step variant moves 98 MB. Partial sums would be as many bytes.
        _grouped(16, 16, 4, "few rows: as many programs as there are multiprocessors", shared=16 * 1024),
        _grouped(16, 32, 8, "slices of 16 would be more programs", shared=16 * 1024, max_hidden=512),
        _grouped(32, 16, 8, "16 rows would be more programs than multiprocessors", shared=32 * 1024),
        _grouped(
            32,
            32,
            8,
            "slices of 16 would be more programs; 256 of K take the fewest registers",
            shared=64 * 1024,
            max_hidden=512,
            block_k=256,
            oldest=(9, 0),
        ),
        _grouped(
            32,
            32,
            8,
            "256 of K take more shared memory than an A100 has; on 9.0 this spills",
            shared=32 * 1024,
            max_hidden=512,
            newest=(8, 9),
        ),
        Rule(
            HALF,
            Variant("step", 16, 16, 128, 4, 4),
            "as forward; it is one product over 4H, so a stage is smaller and more of them fit",
            24 * 1024,
            max_batch=16,
        ),
        Rule(HALF, Variant("step", 32, 16, 128, 4, 4), "as with 16 rows", 36 * 1024, max_batch=32),
        Rule(
            HALF,
            Variant("step", 64, 32, 64, 8, 4),
            "many rows: 64 make a wgmma on Hopper; 4 warps spill",
            49 * 1024,
            min_programs=FULL_GRID,
        ),
        Rule(
            HALF,
            Variant("step", 64, 16, 64, 8, 4),
            "too few tiles of 64 x 32 to fill the GPU; 4 warps spill on 10.0",
            41 * 1024,
        ),
        Rule(SINGLE, Variant("step", 32, 32, 32, 8, 3), "as forward", 16 * 1024, min_programs=FULL_GRID),
        Rule(SINGLE, Variant("step", 16, 16, 64, 4, 3), "too few tiles of 32 x 32 to fill the GPU", 16 * 1024),
        Rule(DOUBLE, Variant("step", 16, 16, 32, 4, 3), "as forward", 16 * 1024),
        Rule((*HALF, *SINGLE, *DOUBLE), Variant("step", 16, 16, 32, 4, 2), "as forward", 8 * 1024, aligned=False),
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
    """The rules in their order, each with why it does not serve the call, or ``None``; arguments as for ``choose``."""
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
    """The variant that serves a call: that of the first rule whose conditions it meets.

    Args:
        kernel: ``"forward"`` or ``"backward"``.
        hidden: H.
        batch: B.
        dtype: of the gates.
        gpu: that it runs on.
        verified: where resident and grouped variants may run.
        name: where given, only the rules of this variant are asked, and it may run anywhere.

    Raises:
        ValueError: no rule has this dtype, or none of variant ``name`` serves the call.
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
