"""Where the resident variants may run: the GPUs on which each was run and matched the oracle.

An entry is ``((major, minor), kernel)``: a CUDA compute capability, and ``"forward"`` or ``"backward"``. It is added
together with the result file under ``benchmarks/results/`` that shows the run. The step variant needs no entry: it
runs everywhere else.
"""

VERIFIED: frozenset[tuple[tuple[int, int], str]] = frozenset()
