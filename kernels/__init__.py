"""The Triton kernels of the recurrence. They work on pointers and sizes, and know nothing of PyTorch or tagrank.

- ``forward`` and ``backward`` are the two kernels. Both use ``arithmetic`` (one LSTM step), ``tiles`` (loads and
  stores) and ``barrier`` (how programs wait for each other).
- ``variants`` says how a kernel can be launched. ``choice`` is the table that picks the variant and the tile sizes for
  a call, and ``verified`` lists the GPUs on which a variant was checked.
- ``offline`` compiles every entry of the table without a GPU, ``roofline`` estimates the least time of a step, and
  ``page`` writes both into ``docs/kernels.md``.
"""

if __name__ != "tagrank.kernels":
    raise ImportError(
        f"this folder is the package tagrank.kernels and was imported as {__name__!r}: take the repository's root off "
        "sys.path (the package `kernels` on PyPI is another project)"
    )
