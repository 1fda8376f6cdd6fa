"""Loads and stores of tiles.

A load gives 0 for elements outside the arrays, and a store does not write them. ``U`` is ``weight_hh``, ``[4H, H]``,
whose rows are those of the gates i, f, g and o. ``hidden`` is H.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def load_gates(pointers, hidden, mask):
    """The tiles of i, f, g and o. ``pointers`` point to i; each next gate is ``hidden`` elements further on."""
    i = tl.load(pointers, mask=mask, other=0.0)
    f = tl.load(pointers + hidden, mask=mask, other=0.0)
    g = tl.load(pointers + 2 * hidden, mask=mask, other=0.0)
    o = tl.load(pointers + 3 * hidden, mask=mask, other=0.0)
    return i, f, g, o


@triton.jit
def load_addend(addend, at_gates, units, hidden, mask, ADDEND: tl.constexpr):
    """The tiles of i, f, g and o of ``[B, 4H]`` if ``ADDEND`` is ``"rows"``, else of ``[4H]``, as ``[1, units]``."""
    if ADDEND == "rows":
        return load_gates(addend + at_gates, hidden, mask)
    else:
        return load_gates(addend + units[None, :], hidden, (units < hidden)[None, :])


@triton.jit
def store_gates(pointers, i, f, g, o, hidden, mask):
    """Store the tiles of i, f, g and o to where :func:`load_gates` loads them, rounded to the array's dtype."""
    dtype = pointers.dtype.element_ty
    tl.store(pointers, i.to(dtype), mask=mask)
    tl.store(pointers + hidden, f.to(dtype), mask=mask)
    tl.store(pointers + 2 * hidden, g.to(dtype), mask=mask)
    tl.store(pointers + 3 * hidden, o.to(dtype), mask=mask)


@triton.jit
def load_weights(weight_hh, k, units, end, hidden):
    """``U[k, units]``, a ``[k, units]`` tile, for products of gate gradients with ``U``.

    ``k`` counts rows of ``U``; rows from ``end`` on are 0.
    """
    pointers = weight_hh + k.to(tl.int64)[:, None] * hidden + units[None, :]
    return tl.load(pointers, mask=(k < end)[:, None] & (units < hidden)[None, :], other=0.0)


@triton.jit
def load_weights_by_gate(weight_hh, k, units, hidden):
    """``U[gate * hidden + k, units]`` for the four gates, a ``[4, k, units]`` tile: a batch of four matrices."""
    rows = tl.arange(0, 4)[:, None] * hidden + k[None, :]
    pointers = weight_hh + rows.to(tl.int64)[:, :, None] * hidden + units[None, None, :]
    return tl.load(pointers, mask=(k < hidden)[None, :, None] & (units < hidden)[None, None, :], other=0.0)


@triton.jit
def load_transposed(weight_hh, gate, units, k, hidden):
    """``U[gate * hidden + units, k]^T``, a ``[k, units]`` tile, for products of ``h`` with one gate of ``U^T``."""
    pointers = weight_hh + (gate * hidden + units.to(tl.int64))[None, :] * hidden + k[:, None]
    return tl.load(pointers, mask=(k < hidden)[:, None] & (units < hidden)[None, :], other=0.0)


@triton.jit
def load_interleaved(weight_hh, first, k, hidden, BLOCK_H: tl.constexpr):
    """``U^T`` for all four gates of ``BLOCK_H`` units, from unit ``first`` on: a ``[k, 4 BLOCK_H]`` tile.

    Its columns are i, f, g and o of the first unit, then i, f, g and o of the second unit, and so on. A single product
    with it gives all four gates. That product has four times as many columns, which the warps divide among themselves.
    """
    column = tl.arange(0, 4 * BLOCK_H)
    unit = first + column // 4
    row = (column % 4) * hidden + unit
    pointers = weight_hh + row.to(tl.int64)[None, :] * hidden + k[:, None]
    return tl.load(pointers, mask=(k < hidden)[:, None] & (unit < hidden)[None, :], other=0.0)


@triton.jit
def load_interleaved_row(row, first, hidden, BLOCK_H: tl.constexpr):
    """The elements of a row of gates, ``[4H]``, in the order of the columns of :func:`load_interleaved`."""
    column = tl.arange(0, 4 * BLOCK_H)
    unit = first + column // 4
    return tl.load(row + (column % 4) * hidden + unit, mask=unit < hidden, other=0.0)


@triton.jit
def split_gates(a, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """The ``[BLOCK_B, BLOCK_H]`` tiles of i, f, g and o from a tile with the columns of :func:`load_interleaved`."""
    i_g, f_o = tl.split(tl.reshape(a, [BLOCK_B, BLOCK_H, 2, 2]))
    i, g = tl.split(i_g)
    f, o = tl.split(f_o)
    return i, f, g, o
