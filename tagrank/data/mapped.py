"""Arrays of a file of which only scattered pieces are read: memory-mapped, without reading ahead. Needs no torch."""

import ctypes
import mmap
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tagrank.data.files import parse_json, reason
from tagrank.errors import InputError

DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}

Array = NDArray[Any]


def map_arrays(path: Path, expected: Mapping[str, tuple[type, list[int | None]]]) -> dict[str, Array]:
    """Map the tensors of a safetensors file into memory. Reading elements reads only their pages.

    By default the system reads a mapped file ahead: up to megabytes when a few kilobytes are touched.

    Args:
        path: the file (https://github.com/huggingface/safetensors: the header's length, the header in JSON, the data).
        expected: NumPy's type and the shape of each tensor, by name. ``None`` in a shape means any size.

    Raises:
        InputError: the file is missing, unreadable or damaged, or does not have these tensors.
    """
    try:
        size = path.stat().st_size
        # What is written to these arrays stays out of the file.
        data: Array = np.memmap(path, np.uint8, "c") if size else np.empty(0, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: missing or unreadable ({reason(error)})") from error
    _advise(data, mmap.MADV_RANDOM)
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if not 8 < start <= size:
        raise InputError(f"{path}: damaged (no header)")
    try:
        header = parse_json(data[8:start].tobytes().decode())
        arrays = {name: _array(data[start:], header[name]) for name in expected}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error})") from error
    for name, (dtype, shape) in expected.items():
        got = arrays[name]
        fits = len(got.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, got.shape, strict=True))
        if got.dtype != dtype or not fits:
            raise InputError(
                f"{path}: {name}: expected {np.dtype(dtype)} {shape} according to the index, "
                f"got {got.dtype} {list(got.shape)}"
            )
    return arrays


def will_need(part: Array) -> None:
    """Tell the system to fetch a contiguous part of a mapped array, without waiting for it."""
    _advise(part, mmap.MADV_WILLNEED)


def _array(data: Array, entry: Any) -> Array:
    dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not 0 <= begin <= end <= len(data) or end - begin != prod(shape) * dtype.itemsize:
        raise ValueError(f"expected {dtype} {shape} in {len(data)} bytes, got bytes {begin} to {end}")
    array: Array = data[begin:end].view(dtype).reshape(shape)
    return array


def _advise(part: Array, advice: int) -> None:
    # The system may ignore the advice. Only the time depends on it.
    if part.size:
        begin = part.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
        _libc().madvise(begin, part.ctypes.data + part.nbytes - begin, advice)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
