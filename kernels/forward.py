"""The forward kernel: steps ``[t0, t0 + steps)`` of the recurrence, one source for both variants.

A program owns ``BLOCK_B`` rows of the batch and ``BLOCK_H`` hidden units, with all four gates of these.

- *Resident*: one program has all the hidden units of its rows. It loads ``U`` once, keeps it, and hands ``h`` from step
  to step in registers. The whole sequence is one launch, and nothing that it stores is loaded again, so it needs no
  barrier.
- *Step*: the hidden units are cut into slices. A launch runs one step, and reads ``h_{t-1}`` and ``U`` in chunks of
  ``BLOCK_K``. ``h`` and ``c`` pass from step to step through global memory, between two launches.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from tagrank.kernels.cell import cell_forward
from tagrank.kernels.tiles import load_gates, load_transposed, store_gates


@triton.jit(do_not_specialize=["t0", "length", "batch", "cell_slots"], do_not_specialize_on_alignment=["steps"])
def lstm_forward(
    gates_x,  # [T, B, 4H], or [B, 4H] where CONSTANT
    weight_hh,  # [4H, H]
    h0,  # [B, H]
    c0,  # [B, H]
    output,  # [T, B, H]
    c_n,  # [B, H], written by the launch that runs the last step
    gates,  # [T, B, 4H], activated; not touched unless SAVE_GATES
    cells,  # [cell_slots, B, H], c_t in slot t % cell_slots; not touched unless SAVE_CELLS, which t0 > 0 needs
    t0,
    steps,
    length,  # T
    batch,  # B
    hidden,  # H
    cell_slots,
    CONSTANT: tl.constexpr,
    RESIDENT: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    SAVE_CELLS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype = output.dtype.element_ty
    accumulate = cells.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    units = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (rows < batch)[:, None] & (units < hidden)[None, :]
    row_offsets = rows.to(tl.int64)[:, None] * hidden
    at_state = row_offsets + units[None, :]
    at_gates = 4 * row_offsets + units[None, :]
    state_size = batch.to(tl.int64) * hidden

    if t0 == 0:
        c = tl.load(c0 + at_state, mask=mask, other=0.0).to(accumulate)
    else:
        c = tl.load(cells + ((t0 - 1) % cell_slots) * state_size + at_state, mask=mask, other=0.0)
    if RESIDENT:
        h = tl.load(h0 + at_state, mask=mask, other=0.0)
        u_i = load_transposed(weight_hh, 0, units, units, hidden)
        u_f = load_transposed(weight_hh, 1, units, units, hidden)
        u_g = load_transposed(weight_hh, 2, units, units, hidden)
        u_o = load_transposed(weight_hh, 3, units, units, hidden)
    if CONSTANT:
        x_i, x_f, x_g, x_o = load_gates(gates_x + at_gates, hidden, mask)

    for step in range(steps):
        t = t0 + step
        if not CONSTANT:
            x_i, x_f, x_g, x_o = load_gates(gates_x + t * (4 * state_size) + at_gates, hidden, mask)

        a_i = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        a_f = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        a_g = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        a_o = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        if RESIDENT:
            a_i = tl.dot(h, u_i, a_i, input_precision=PRECISION, out_dtype=accumulate)
            a_f = tl.dot(h, u_f, a_f, input_precision=PRECISION, out_dtype=accumulate)
            a_g = tl.dot(h, u_g, a_g, input_precision=PRECISION, out_dtype=accumulate)
            a_o = tl.dot(h, u_o, a_o, input_precision=PRECISION, out_dtype=accumulate)
        else:
            h_prev = h0
            if t > 0:
                h_prev = output + (t - 1) * state_size
            for start in range(0, hidden, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                chunk = (rows < batch)[:, None] & (k < hidden)[None, :]
                h = tl.load(h_prev + row_offsets + k[None, :], mask=chunk, other=0.0)
                u_i = load_transposed(weight_hh, 0, units, k, hidden)
                u_f = load_transposed(weight_hh, 1, units, k, hidden)
                u_g = load_transposed(weight_hh, 2, units, k, hidden)
                u_o = load_transposed(weight_hh, 3, units, k, hidden)
                a_i = tl.dot(h, u_i, a_i, input_precision=PRECISION, out_dtype=accumulate)
                a_f = tl.dot(h, u_f, a_f, input_precision=PRECISION, out_dtype=accumulate)
                a_g = tl.dot(h, u_g, a_g, input_precision=PRECISION, out_dtype=accumulate)
                a_o = tl.dot(h, u_o, a_o, input_precision=PRECISION, out_dtype=accumulate)

        i, f, g, o, c, h_t = cell_forward(a_i + x_i, a_f + x_f, a_g + x_g, a_o + x_o, c)
        h_t = h_t.to(dtype)
        tl.store(output + t * state_size + at_state, h_t, mask=mask)
        if RESIDENT:
            h = h_t
        if SAVE_CELLS:
            tl.store(cells + (t % cell_slots) * state_size + at_state, c, mask=mask)
        if SAVE_GATES:
            store_gates(gates + t * (4 * state_size) + at_gates, i, f, g, o, hidden, mask)

    if t0 + steps == length:
        tl.store(c_n + at_state, c.to(dtype), mask=mask)
