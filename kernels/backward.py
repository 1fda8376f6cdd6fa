"""The backward kernel: steps ``[t0, t0 + steps)`` in reverse, one source for both variants (see ``forward``).

The gradient of ``h_t`` is that of ``output[t]`` plus ``d_gates[t+1] @ U``. Resident programs hand ``d_gates`` to the
step before in registers; in the step variant a launch reads what the launch for ``t + 1`` stored. The gradient of
``h0`` is left to the caller: one product of ``d_gates[0]`` and ``U``. What forward saved is never written to.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from tagrank.kernels.cell import cell_backward
from tagrank.kernels.tiles import load_gates, load_weights, store_gates


@triton.jit(do_not_specialize=["t0", "length", "batch"], do_not_specialize_on_alignment=["steps"])
def lstm_backward(
    grad_output,  # [T, B, H]
    grad_c_n,  # [B, H]
    weight_hh,  # [4H, H]
    c0,  # [B, H]
    gates,  # [T, B, 4H], activated
    cells,  # [T, B, H]
    d_gates,  # [T, B, 4H]
    d_gates_x,  # [B, 4H], the sum over t, written at t = 0; not touched unless CONSTANT
    d_c0,  # [B, H], written at t = 0
    carry_c,  # [2, B, H], the gradient of c_{t-1} in slot t % 2; not touched where one launch runs all steps
    carry_x,  # [2, B, 4H], the sum of d_gates from t on in slot t % 2; the same, and not unless CONSTANT
    t0,
    steps,
    length,  # T
    batch,  # B
    hidden,  # H
    CONSTANT: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype = d_gates.dtype.element_ty
    accumulate = cells.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    units = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (rows < batch)[:, None] & (units < hidden)[None, :]
    row_offsets = rows.to(tl.int64)[:, None] * hidden
    at_state = row_offsets + units[None, :]
    at_gates = 4 * row_offsets + units[None, :]
    state_size = batch.to(tl.int64) * hidden
    end = t0 + steps

    x_i = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
    x_f = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
    x_g = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
    x_o = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
    if end == length:
        dc = tl.load(grad_c_n + at_state, mask=mask, other=0.0).to(accumulate)
    else:
        dc = tl.load(carry_c + (end % 2) * state_size + at_state, mask=mask, other=0.0)
        if CONSTANT:
            x_i, x_f, x_g, x_o = load_gates(carry_x + (end % 2) * (4 * state_size) + at_gates, hidden, mask)
    if RESIDENT:
        u_i = load_weights(weight_hh, units, units, hidden, hidden)
        u_f = load_weights(weight_hh, hidden + units, units, 2 * hidden, hidden)
        u_g = load_weights(weight_hh, 2 * hidden + units, units, 3 * hidden, hidden)
        u_o = load_weights(weight_hh, 3 * hidden + units, units, 4 * hidden, hidden)
        # Nothing comes from beyond the last step.
        d_i = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        d_f = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        d_g = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        d_o = tl.zeros([BLOCK_B, BLOCK_H], dtype)

    c = tl.load(cells + (end - 1) * state_size + at_state, mask=mask, other=0.0)
    for step in range(steps):
        t = end - 1 - step
        i, f, g, o = load_gates(gates + t * (4 * state_size) + at_gates, hidden, mask)
        d_output = tl.load(grad_output + t * state_size + at_state, mask=mask, other=0.0)
        if t > 0:
            c_prev = tl.load(cells + (t - 1) * state_size + at_state, mask=mask, other=0.0)
        else:
            c_prev = tl.load(c0 + at_state, mask=mask, other=0.0).to(accumulate)

        dh = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        if RESIDENT:
            dh = tl.dot(d_i, u_i, dh, input_precision=PRECISION, out_dtype=accumulate)
            dh = tl.dot(d_f, u_f, dh, input_precision=PRECISION, out_dtype=accumulate)
            dh = tl.dot(d_g, u_g, dh, input_precision=PRECISION, out_dtype=accumulate)
            dh = tl.dot(d_o, u_o, dh, input_precision=PRECISION, out_dtype=accumulate)
        elif t + 1 < length:
            d_next = d_gates + (t + 1) * (4 * state_size) + 4 * row_offsets
            for start in range(0, 4 * hidden, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                d = tl.load(d_next + k[None, :], mask=(rows < batch)[:, None] & (k < 4 * hidden)[None, :], other=0.0)
                u = load_weights(weight_hh, k, units, 4 * hidden, hidden)
                dh = tl.dot(d, u, dh, input_precision=PRECISION, out_dtype=accumulate)

        i, f, g, o = i.to(accumulate), f.to(accumulate), g.to(accumulate), o.to(accumulate)
        a_i, a_f, a_g, a_o, dc = cell_backward(i, f, g, o, c_prev, c, dh + d_output, dc)
        store_gates(d_gates + t * (4 * state_size) + at_gates, a_i, a_f, a_g, a_o, hidden, mask)
        c = c_prev
        if RESIDENT:
            d_i, d_f, d_g, d_o = a_i.to(dtype), a_f.to(dtype), a_g.to(dtype), a_o.to(dtype)
        if CONSTANT:
            x_i, x_f, x_g, x_o = x_i + a_i, x_f + a_f, x_g + a_g, x_o + a_o

    if t0 == 0:
        tl.store(d_c0 + at_state, dc.to(dtype), mask=mask)
        if CONSTANT:
            store_gates(d_gates_x + at_gates, x_i, x_f, x_g, x_o, hidden, mask)
    else:
        tl.store(carry_c + (t0 % 2) * state_size + at_state, dc, mask=mask)
        if CONSTANT:
            store_gates(carry_x + (t0 % 2) * (4 * state_size) + at_gates, x_i, x_f, x_g, x_o, hidden, mask)
