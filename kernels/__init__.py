"""The Triton kernels of the recurrence: they know pointers and sizes, and nothing of PyTorch or of the rest of tagrank.

``cell`` is the arithmetic of one step, ``tiles`` and ``barrier`` are what the two kernels, ``forward`` and
``backward``, share; ``choice`` is the table of variants and tile sizes, ``verified`` names the GPUs on which a variant
was checked. ``offline`` compiles it all without a GPU, ``model`` counts what bounds it, ``report`` writes both down.
"""

if __name__ != "tagrank.kernels":
    raise ImportError(
        f"this folder is the package tagrank.kernels and was imported as {__name__!r}: take the repository's root off "
        "sys.path (the package `kernels` on PyPI is another project)"
    )
