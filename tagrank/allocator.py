"""Keeps memory that was used, for the next use of it."""

import ctypes
import os

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 1 << 30


def keep_memory() -> None:
    """Let this process keep the memory that it frees, up to blocks of a gigabyte, until it ends.

    By default glibc gives large blocks back to the system at once. A network frees and needs some after each layer, and
    the system then fills every page of them with zeros, which takes up to half of the time. A command line may choose
    this for its process; a library may not, and Python callers set ``MALLOC_TRIM_THRESHOLD_`` and
    ``MALLOC_MMAP_THRESHOLD_`` if they want it. Where these or ``GLIBC_TUNABLES`` are set, they hold; other C libraries
    stay as they are.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
