"""Write the page ``docs/kernels.md``: ``python -m tagrank.kernels.page FILE``.

FILE has the lines that ``python -m tagrank.kernels.offline`` printed. The page goes to standard output.
"""

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tagrank.kernels.choice import BACKENDS, RULES, choose
from tagrank.kernels.roofline import H100, cluster_step, triton_step
from tagrank.kernels.variants import HALF, Gpu, Kernel

KERNELS: tuple[Kernel, ...] = ("forward", "backward")
_ALL_VERIFIED = frozenset(itertools.product([(9, 0)], KERNELS, ("resident", "grouped"), HALF))

HEAD = """# The Triton kernels, compiled and modelled

`make kernels-report` writes this page, without a GPU. It shows what the compiler made of the kernels, and a model of
what bounds them. **It says nothing about the speed that they have**: nothing here was measured on a GPU.
`kernels/verified.py` lists the GPUs on which a kernel was run. `tagrank.recurrence.explain` says which kernel serves a
shape. The kernels in CUDA C++ have [a page of their own](cluster.md).

## Compiled

The compilers are Triton {versions}. If their figures differ, there is one for each.

A row is an entry of the table in `kernels/choice.py`, in one dtype. An entry is a variant and its tile: batch rows x
hidden units x the part of the matrix product's inner dimension that is loaded at a time. "any H" means that H need not
be divisible by 8.

Each figure is the worst over the flags of the kernel: constant input or not, what is saved, recomputed gates, TF32. For
a grouped kernel it is also the worst over the smallest and the largest H that fit. For capability 10.0 each entry was
compiled only in one dtype, with one set of flags, at its largest H.

Registers and spilled bytes are those of a thread, shared memory is that of a block. The last two columns are the number
of blocks that fit on a multiprocessor, and the matrix instructions in the code.
"""

MODEL = """
## Modelled

The least time that a time step can take on an H100 (132 multiprocessors) in bfloat16 with a constant input. Forward
saves what backward needs. The variant is the one that the table would take if all variants were verified.

- **Memory** is main memory: inputs, results, and what is saved.
- **Cache** is the second-level cache: what programs read of each other's results, and U unless it is resident.
- **Shared** is shared memory: U, if it is resident.

The floor is the longest of these transfers, the matrix product and the special functions, plus the waiting: a
microsecond for a barrier, or 1.3 for a launch in a CUDA graph. The rates are those of the data sheet: 990 TFLOP/s,
3.35 TB/s, and for each multiprocessor and clock 128 bytes of shared memory and 16 special functions. The cache has
5.5 TB/s. If there are fewer programs than multiprocessors, only as many multiprocessors count as there are programs.

By this model no kernel with this division of the work can be faster, and no kernel was shown to be near it. The product
for the weight's gradient is not counted: it is a single product for all time steps.
"""


def compiled(reports: list[dict[str, Any]]) -> Iterator[str]:
    """The table of what the compiler made: a line for each capability, kernel, entry and dtype."""
    yield "| GPU | kernel | entry | warps, stages | dtype | registers | spilled | shared KB | blocks | instructions |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    sizes = ("block_b", "block_h", "block_k", "num_warps", "num_stages")
    keys = ("capability", "kernel", "name", *sizes, "aligned", "dtype")
    entries = defaultdict(list)
    for report in reports:
        entries[tuple(report[key] for key in keys)].append(report)
    versions = sorted({report["triton"] for report in reports})
    for key, of_entry in entries.items():
        capability, kernel, name, block_b, block_h, block_k, warps, stages, aligned, dtype = key
        tile = f"{name} {block_b} x {block_h} x {block_k}" + ("" if aligned else ", any H")
        line = f"| {capability} | {kernel} | {tile} | {warps}, {stages} | {dtype} "
        failed = next((report for report in of_entry if "error" in report), None)
        if failed is not None:
            yield line + f"| does not compile with {failed['triton']}: {failed['error']} | | | | |"
            continue
        by_version = [_worst([report for report in of_entry if report["triton"] == version]) for version in versions]
        # A single figure if all versions give the same.
        columns = zip(*by_version, strict=True)
        cells = (column[0] if len(set(column)) == 1 else " / ".join(column) for column in columns)
        yield line + "| " + " | ".join(cells) + " |"


def _worst(reports: list[dict[str, Any]]) -> tuple[str, ...]:
    """Registers, spilled bytes, shared KB, blocks and instructions of one entry, compiled by one version of Triton."""
    instructions = sorted({one for report in reports for one in report["matrix_instructions"]})
    return (
        str(max(r["registers"] for r in reports)),
        str(max(r["spilled"] for r in reports)),
        f"{max(r['shared_memory'] for r in reports) / 1024:.0f}",
        str(min(r["blocks"] for r in reports)),
        ", ".join(instructions) or "none",
    )


def modelled() -> Iterator[str]:
    """The table of the Triton kernels' floors: a line for each size and kernel."""
    yield (
        "| B | H | kernel | variant | programs | MFLOP | memory KB | cache KB | shared KB | special functions "
        "| barriers | floor us | bound by |"
    )
    yield "|---" * 13 + "|"
    for batch, hidden, kernel in itertools.product((1, 16, 64, 256), (128, 256, 512, 1024), KERNELS):
        variant = choose(kernel, hidden, batch, "bfloat16", Gpu((9, 0), H100.multiprocessors), _ALL_VERIFIED)
        step = triton_step(kernel, variant, batch, hidden)
        seconds, bound = step.floor(H100)
        yield (
            f"| {batch} | {hidden} | {kernel} | {variant} | {step.programs} | {step.flops / 1e6:.1f} "
            f"| {step.memory / 1024:.0f} | {step.cache / 1024:.0f} | {step.shared / 1024:.0f} | {step.special} "
            f"| {step.barriers} | {seconds * 1e6:.2f} | {bound} |"
        )


def modelled_clusters() -> Iterator[str]:
    """The table of the floors of the kernels in ``csrc/cuda``, which ``docs/cluster.md`` has."""
    columns = "B", "H", "kernel", "blocks", "MFLOP", "memory KB", "exchanged KB", "shared KB", "floor us", "bound by"
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for batch, hidden, kernel in itertools.product((1, 16, 64, 256), (128, 256, 512), KERNELS):
        step = cluster_step(kernel, batch, hidden, H100)
        seconds, bound = step.floor(H100)
        yield (
            f"| {batch} | {hidden} | {kernel} | {step.programs} | {step.flops / 1e6:.1f} | {step.memory / 1024:.0f} "
            f"| {step.distributed / 1024:.0f} | {step.shared / 1024:.0f} | {seconds * 1e6:.2f} | {bound} |"
        )


def reasons() -> Iterator[str]:
    """The rules of both kernels, with the reason for each."""
    yield "\n## Why these\n"
    yield "Backends; the first line that serves a call decides, for both passes:\n"
    for line in BACKENDS:
        bounds = ", ".join(
            f"{name} up to {bound}" for name, bound in (("H", line.max_hidden), ("B", line.max_batch)) if bound
        )
        yield f"- {', '.join(line.dtypes)}: {line.backend}{bounds and f', {bounds}'}; {line.why}"
    yield ""
    for kernel in KERNELS:
        yield f"{kernel.capitalize()}; the first rule that serves a call decides:\n"
        for rule in RULES[kernel]:
            yield f"- {', '.join(rule.dtypes)}: {rule.variant}; {rule.why}"
        yield ""


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    reports = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    print(HEAD.format(versions=" and ".join(sorted({report["triton"] for report in reports}))))
    print(*compiled(reports), MODEL, *modelled(), *reasons(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
