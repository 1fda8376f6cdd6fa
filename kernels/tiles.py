"""Loads and stores of tiles that both kernels share. What lies outside the mask is zero, and stays unwritten."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def load_gates(pointers, hidden, mask):
    """The tiles of i, f, g and o, where ``pointers`` are those of i and the gates lie ``hidden`` apart."""
    i = tl.load(pointers, mask=mask, other=0.0)
    f = tl.load(pointers + hidden, mask=mask, other=0.0)
    g = tl.load(pointers + 2 * hidden, mask=mask, other=0.0)
    o = tl.load(pointers + 3 * hidden, mask=mask, other=0.0)
    return i, f, g, o


@triton.jit
def store_gates(pointers, i, f, g, o, hidden, mask):
    """The counterpart of :func:`load_gates`; rounds to the dtype that the pointers point to."""
    dtype = pointers.dtype.element_ty
    tl.store(pointers, i.to(dtype), mask=mask)
    tl.store(pointers + hidden, f.to(dtype), mask=mask)
    tl.store(pointers + 2 * hidden, g.to(dtype), mask=mask)
    tl.store(pointers + 3 * hidden, o.to(dtype), mask=mask)


@triton.jit
def load_weights(weight_hh, k, units, end, hidden):
    """``weight_hh[k, units]`` for ``k`` below ``end``, as a ``[k, units]`` tile: ``U``, for products with gates."""
    pointers = weight_hh + k.to(tl.int64)[:, None] * hidden + units[None, :]
    return tl.load(pointers, mask=(k < end)[:, None] & (units < hidden)[None, :], other=0.0)


@triton.jit
def load_weights_by_gate(weight_hh, k, units, hidden):
    """``weight_hh[gate * hidden + k, units]`` as a ``[4, k, units]`` tile: a batch of four matrices."""
    rows = tl.arange(0, 4)[:, None] * hidden + k[None, :]
    pointers = weight_hh + rows.to(tl.int64)[:, :, None] * hidden + units[None, None, :]
    return tl.load(pointers, mask=(k < hidden)[None, :, None] & (units < hidden)[None, None, :], other=0.0)


@triton.jit
def load_transposed(weight_hh, gate, units, k, hidden):
    """``weight_hh[gate * hidden + units, k]`` as a ``[k, units]`` tile: one gate of ``U.T``, for products with h."""
    pointers = weight_hh + (gate * hidden + units.to(tl.int64))[None, :] * hidden + k[:, None]
    return tl.load(pointers, mask=(k < hidden)[:, None] & (units < hidden)[None, :], other=0.0)


@triton.jit
def load_interleaved(weight_hh, first, k, hidden, BLOCK_H: tl.constexpr):
    """``U.T`` for the units from ``first`` on, as a ``[k, 4 BLOCK_H]`` tile whose columns go i, f, g, o, i, f, ...

    One product then gives all four gates: it has four times the columns to share among the warps.
    """
    column = tl.arange(0, 4 * BLOCK_H)
    unit = first + column // 4
    row = (column % 4) * hidden + unit
    pointers = weight_hh + row.to(tl.int64)[None, :] * hidden + k[:, None]
    return tl.load(pointers, mask=(k < hidden)[:, None] & (unit < hidden)[None, :], other=0.0)


@triton.jit
def split_gates(a, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """The tiles of i, f, g and o, from one in which they follow each other as in :func:`load_interleaved`."""
    i_g, f_o = tl.split(tl.reshape(a, [BLOCK_B, BLOCK_H, 2, 2]))
    i, g = tl.split(i_g)
    f, o = tl.split(f_o)
    return i, f, g, o
