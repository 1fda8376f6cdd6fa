"""The GPUs on which a kernel that runs all time steps in one launch was run and matched the oracle.

``auto`` uses such a kernel only on a GPU that has an entry here. An entry is ``((major, minor), kernel, variant,
dtype)``:

- the CUDA compute capability;
- ``"forward"`` or ``"backward"``;
- ``"resident"`` or ``"grouped"`` for a Triton kernel, or ``"cluster"`` for the kernels in CUDA C++;
- the dtype, because the tiles and the instructions of float32 and of 16 bit are not the same.

A commit that adds an entry also adds the result file of ``make gpu`` under ``benchmarks/results/`` that shows the run.
The step and product variants need no entry: they run wherever no other variant may.
"""

from itertools import product

Entry = tuple[tuple[int, int], str, str, str]

_PASSES = ("forward", "backward")

VERIFIED: frozenset[Entry] = frozenset(
    [
        # benchmarks/results/gpu-9.0-2cd07ec.json, and gpu-9.0.json for float32 on clusters: an H100.
        *product([(9, 0)], _PASSES, ("resident", "grouped", "cluster"), ("float16", "bfloat16", "float32")),
    ]
)
