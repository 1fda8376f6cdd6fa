"""Where kernels for a whole sequence may run: the GPUs on which each was run and matched the oracle.

An entry is ``((major, minor), kernel, variant)``: a CUDA compute capability, ``"forward"`` or ``"backward"``, and
``"resident"`` or ``"grouped"``, or ``"cluster"`` for those in CUDA C++. It is added together with the result file of
``make gpu`` under ``benchmarks/results/`` that shows the run. The step variant needs no entry: it runs everywhere else.
"""

Entry = tuple[tuple[int, int], str, str]

VERIFIED: frozenset[Entry] = frozenset()
