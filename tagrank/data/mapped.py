"""Tensors of a file of which only scattered pieces are read: memory-mapped, without reading ahead."""

import ctypes
import mmap
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagrank.data.files import parse_json, reason
from tagrank.errors import InputError

DTYPES = {"F16": torch.float16, "I64": torch.int64, "U8": torch.uint8}


def map_tensors(path: Path, expected: Mapping[str, tuple[torch.dtype, list[int | None]]]) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file into memory, on the CPU. Reading elements reads only their pages.

    By default the system reads a mapped file ahead: up to megabytes when a few kilobytes are touched.

    Args:
        path: the file (https://github.com/huggingface/safetensors: the header's length, the header in JSON, the data).
        expected: the dtype and shape of each tensor, by name. ``None`` in a shape means any size.

    Raises:
        InputError: the file is missing, unreadable or damaged, or does not have these tensors.
    """
    try:
        size = path.stat().st_size
        data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except OSError as error:
        raise InputError(f"{path}: missing or unreadable ({reason(error)})") from error
    except RuntimeError as error:  # raised by torch for files that it cannot open or map, such as empty files
        raise InputError(f"{path}: missing or unreadable") from error
    _advise(data, mmap.MADV_RANDOM)
    start = 8 + int.from_bytes(data[:8].numpy().tobytes(), "little")
    if not 8 < start <= size:
        raise InputError(f"{path}: damaged (no header)")
    try:
        header = parse_json(data[8:start].numpy().tobytes().decode())
        tensors = {name: _tensor(data[start:], header[name]) for name in expected}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: damaged ({error})") from error
    for name, (dtype, shape) in expected.items():
        got = tensors[name]
        fits = len(got.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, got.shape, strict=True))
        if got.dtype != dtype or not fits:
            raise InputError(
                f"{path}: {name}: expected {dtype} {shape} according to the index, got {got.dtype} {list(got.shape)}"
            )
    return tensors


def will_need(part: Tensor) -> None:
    """Tell the system to fetch a contiguous part of a mapped tensor, without waiting for it."""
    _advise(part, mmap.MADV_WILLNEED)


def _tensor(data: Tensor, entry: Any) -> Tensor:
    dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not 0 <= begin <= end <= len(data) or end - begin != prod(shape) * dtype.itemsize:
        raise ValueError(f"expected {dtype} {shape} in {len(data)} bytes, got bytes {begin} to {end}")
    return data[begin:end].view(dtype).view(shape)


def _advise(part: Tensor, advice: int) -> None:
    # The system may ignore the advice. Only the time depends on it.
    if part.numel():
        begin = part.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        _libc().madvise(begin, part.data_ptr() + part.nbytes - begin, advice)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
