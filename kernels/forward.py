"""The forward kernel: one launch computes the time steps from ``t0`` to ``t0 + steps - 1``.

``U`` is ``weight_hh``. Each program computes a tile of ``BLOCK_B`` batch rows and ``BLOCK_H`` hidden units, with all
four gates of these units. The same source serves four variants:

- *Resident*: a program has all the hidden units of its batch rows. One launch runs all time steps. The program loads
  ``U`` once and keeps it, and ``h`` stays in registers from one time step to the next. No program loads what was stored
  in the same launch, so no barrier is needed.
- *Grouped*: the hidden units are cut into slices of ``BLOCK_H``, with one program for each slice. One cooperative
  launch runs all time steps. A program loads its slice of ``U`` once, in chunks of ``BLOCK_K``, and keeps it. In each
  time step it needs all of ``h_{t-1}`` of its batch rows, which all programs of these rows have stored. It therefore
  waits at a barrier among these programs first. A launch of a single time step has no barrier.
- *Step*: the same slices, but each launch runs a single time step and loads ``U`` again.
- *Product*: each launch runs a single time step, for which ``h_{t-1} U^T`` was computed before.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy takes `u = ()` for an empty tuple, but an unrolled loop adds tiles to it.
# mypy: disable-error-code=assignment

import triton
import triton.language as tl

from tagrank.kernels.arithmetic import cell_forward
from tagrank.kernels.barrier import arrive, wait
from tagrank.kernels.tiles import (
    load_addend,
    load_gates,
    load_interleaved,
    load_interleaved_row,
    load_transposed,
    split_gates,
    store_gates,
)


@triton.jit(
    do_not_specialize=["t0", "length", "batch", "hidden_over_align", "cell_slots"],
    do_not_specialize_on_alignment=["steps"],
)
def lstm_forward(
    gates_x,  # [T, B, 4H], or [B, 4H] if CONSTANT
    addend,  # is added to gates_x at each step: [4H] or [B, 4H], see ADDEND
    weight_hh,  # [4H, H]
    h0,  # [B, H], or None for zeros
    c0,  # [B, H], or None for zeros
    output,  # [T, B, H]
    h_n,  # [B, H], or None if it is not wanted; written by the launch that runs the last time step
    c_n,  # [B, H], written by the launch that runs the last time step
    gates,  # [T, B, 4H], the activated gates; unused unless SAVE_GATES
    cells,  # [cell_slots, B, H], c_t in slot t % cell_slots; unused unless SAVE_CELLS, which t0 > 0 requires
    products,  # [B, 4H], h_{t-1} U^T in the dtype of cells; only the product variant uses it
    counters,  # [batch tiles], int32, zero before and after the launch; only the grouped variant uses them
    t0,  # first time step of this launch
    steps,  # number of time steps of this launch
    length,  # T
    batch,  # B
    hidden_over_align,  # H / ALIGN
    cell_slots,
    ALIGN: tl.constexpr,  # divides H, so that one load can take this many numbers of a row
    CONSTANT: tl.constexpr,  # gates_x is the same in all time steps
    ADDEND: tl.constexpr,  # "none", "row" for one [4H] that all batch rows share, or "rows" for [B, 4H]
    SAVE_GATES: tl.constexpr,
    SAVE_CELLS: tl.constexpr,
    VARIANT: tl.constexpr,  # "resident", "grouped", "step" or "product"
    PRECISION: tl.constexpr,  # of float32 products: "tf32", or "tf32x3" for float32 results
    BLOCK_B: tl.constexpr,  # BLOCK_*: see tagrank.kernels.variants.Variant
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,  # ceil(H / BLOCK_K); only the grouped variant uses it
):
    hidden = hidden_over_align * ALIGN
    dtype = output.dtype.element_ty
    accumulate = cells.dtype.element_ty  # cells has this dtype even if it is unused
    first_unit = tl.program_id(1) * BLOCK_H
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    units = first_unit + tl.arange(0, BLOCK_H)
    mask = (rows < batch)[:, None] & (units < hidden)[None, :]
    row_offsets = rows.to(tl.int64)[:, None] * hidden
    at_state = row_offsets + units[None, :]  # where this tile is in a [B, H] array
    at_gates = 4 * row_offsets + units[None, :]  # and where its gate i is in a [B, 4H] array
    state_size = batch.to(tl.int64) * hidden
    k = tl.arange(0, BLOCK_K)
    counter = counters + tl.program_id(0)
    # The sums of a product begin with a row. In the narrowest tiles that takes registers during the product: there the
    # row is added afterwards, as rows are.
    row_first: tl.constexpr = ADDEND == "row" and (VARIANT == "grouped" or VARIANT == "step") and BLOCK_H > 8
    first_product: tl.constexpr = 1 if h0 is None else 0  # the first time step whose h_{t-1} is not zero

    if t0 > 0:
        c = tl.load(cells + ((t0 - 1) % cell_slots) * state_size + at_state, mask=mask, other=0.0)
    elif c0 is None:
        c = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
    else:
        c = tl.load(c0 + at_state, mask=mask, other=0.0).to(accumulate)
    if VARIANT == "resident":
        h = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        if h0 is not None:
            h = tl.load(h0 + at_state, mask=mask, other=0.0)
        u_i = load_transposed(weight_hh, 0, units, units, hidden)
        u_f = load_transposed(weight_hh, 1, units, units, hidden)
        u_g = load_transposed(weight_hh, 2, units, units, hidden)
        u_o = load_transposed(weight_hh, 3, units, units, hidden)
    if VARIANT == "grouped":
        u = ()
        for chunk in tl.static_range(CHUNKS):
            u += (load_interleaved(weight_hh, first_unit, chunk * BLOCK_K + k, hidden, BLOCK_H),)
    if CONSTANT and VARIANT == "resident":
        x_i, x_f, x_g, x_o = load_gates(gates_x + at_gates, hidden, mask)

    # Without disable_licm the compiler would compute the grouped variant's addresses ahead of the loop, and keep more
    # of them than there are registers.
    for step in tl.range(0, steps, disable_licm=VARIANT == "grouped"):
        t = t0 + step
        if not CONSTANT:
            x_i, x_f, x_g, x_o = load_gates(gates_x + t * (4 * state_size) + at_gates, hidden, mask)
        elif VARIANT != "resident":
            # Loaded in every time step, from the first-level cache: kept in registers, it makes the larger tiles spill.
            x_i, x_f, x_g, x_o = load_gates(gates_x + at_gates, hidden, mask)

        if VARIANT == "resident":
            zeros = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
            a_i = tl.dot(h, u_i, zeros, input_precision=PRECISION, out_dtype=accumulate)
            a_f = tl.dot(h, u_f, zeros, input_precision=PRECISION, out_dtype=accumulate)
            a_g = tl.dot(h, u_g, zeros, input_precision=PRECISION, out_dtype=accumulate)
            a_o = tl.dot(h, u_o, zeros, input_precision=PRECISION, out_dtype=accumulate)
        elif VARIANT == "product":
            a_i, a_f, a_g, a_o = load_gates(products + at_gates, hidden, mask & (t >= first_product))
        else:
            a = tl.zeros([BLOCK_B, 4 * BLOCK_H], accumulate)
            if row_first:
                # The product is added to it.
                a += load_interleaved_row(addend, first_unit, hidden, BLOCK_H)[None, :]
            if t >= first_product:
                h_prev = output + (t - 1) * state_size
                if h0 is not None and t == 0:
                    h_prev = h0
                at_k = h_prev + row_offsets + k[None, :]
                if VARIANT == "grouped":
                    if step > 0:
                        wait(counter, step * tl.num_programs(1))
                    for chunk in tl.static_range(CHUNKS):
                        inside = (rows < batch)[:, None] & (k < hidden - chunk * BLOCK_K)[None, :]
                        h = tl.load(at_k + chunk * BLOCK_K, mask=inside, other=0.0, cache_modifier=".cg")
                        a = tl.dot(h, u[chunk], a, input_precision=PRECISION, out_dtype=accumulate)
                else:
                    for start in range(0, hidden, BLOCK_K):
                        inside = (rows < batch)[:, None] & (k < hidden - start)[None, :]
                        h = tl.load(at_k + start, mask=inside, other=0.0)
                        u = load_interleaved(weight_hh, first_unit, start + k, hidden, BLOCK_H)
                        a = tl.dot(h, u, a, input_precision=PRECISION, out_dtype=accumulate)
            a_i, a_f, a_g, a_o = split_gates(a, BLOCK_B, BLOCK_H)

        if ADDEND != "none" and not row_first:
            b_i, b_f, b_g, b_o = load_addend(addend, at_gates, units, hidden, mask, ADDEND)
            a_i, a_f, a_g, a_o = a_i + b_i, a_f + b_f, a_g + b_g, a_o + b_o
        a_i, a_f, a_g, a_o = a_i + x_i, a_f + x_f, a_g + x_g, a_o + x_o
        i, f, g, o, c, h_t = cell_forward(a_i, a_f, a_g, a_o, c)
        h_t = h_t.to(dtype)
        tl.store(output + t * state_size + at_state, h_t, mask=mask)
        if VARIANT == "resident":
            # Units beyond H multiply zeros of U. If h is infinite, they are NaN, and would make NaN of all units.
            h = tl.where((units < hidden)[None, :], h_t, 0.0).to(dtype)
        if VARIANT == "grouped" and steps > 1:
            # Before the stores for backward, so that the other programs can load h_t meanwhile.
            arrive(counter, steps * tl.num_programs(1))
        if SAVE_CELLS:
            tl.store(cells + (t % cell_slots) * state_size + at_state, c, mask=mask)
        if SAVE_GATES:
            store_gates(gates + t * (4 * state_size) + at_gates, i, f, g, o, hidden, mask)

    if t0 + steps == length:
        tl.store(c_n + at_state, c.to(dtype), mask=mask)
        if h_n is not None:
            # Stored in the loop, h_n would take registers in every step. The barrier is for what other threads stored.
            tl.debug_barrier()
            h_last = tl.load(output + (length - 1) * state_size + at_state, mask=mask)
            tl.store(h_n + at_state, h_last, mask=mask)
