"""The Triton kernels of the recurrence: they know pointers and sizes, and nothing of PyTorch or of the rest of tagrank.

``cell`` is the arithmetic of one step, ``forward`` and ``backward`` are the two kernels, ``choice`` is the table of
variants and tile sizes, ``verified`` names the GPUs on which a variant was checked, ``offline`` compiles it all
without a GPU.
"""

if __name__ != "tagrank.kernels":
    raise ImportError(
        f"this folder is the package tagrank.kernels and was imported as {__name__!r}: take the repository's root off "
        "sys.path (the package `kernels` on PyPI is another project)"
    )
