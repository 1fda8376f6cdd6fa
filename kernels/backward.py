"""The backward kernel: steps ``[t0, t0 + steps)`` in reverse, one source for the three variants (see ``forward``).

The gradient of ``h_t`` is that of ``output[t]`` plus ``d_gates[t+1] @ U``. Resident programs hand ``d_gates`` to the
step before in registers; grouped ones read what the programs of their batch tile have stored, after the barrier; in
the step variant a launch reads what the launch for ``t + 1`` stored. Each sum has one order, so that results repeat.
The gradient of ``h0`` is left to the caller: one product of ``d_gates[0]`` and ``U``. What forward saved is never
written to.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# A tuple of tiles grows in a loop that is unrolled.
# mypy: disable-error-code=assignment

import triton
import triton.language as tl

from tagrank.kernels.arithmetic import activate, cell_backward
from tagrank.kernels.barrier import arrive, wait
from tagrank.kernels.tiles import load_gates, load_weights, load_weights_by_gate, split_gates, store_gates


@triton.jit(do_not_specialize=["t0", "length", "batch", "hidden_over_align"], do_not_specialize_on_alignment=["steps"])
def lstm_backward(
    grad_output,  # [T, B, H]
    grad_c_n,  # [B, H]
    weight_hh,  # [4H, H]
    c0,  # [B, H], or None for zeros
    gates,  # [T, B, 4H], activated; where RECOMPUTE h_{t-1} U^T, and then it may be d_gates itself
    gates_x,  # [T, B, 4H], or [B, 4H] where CONSTANT; not touched unless RECOMPUTE
    cells,  # [T, B, H]
    d_gates,  # [T, B, 4H]
    d_gates_x,  # [B, 4H], the sum over t, written at t = 0; not touched unless CONSTANT
    d_c0,  # [B, H], written at t = 0; not touched where c0 is None
    carry_c,  # [2, B, H], the gradient of c_{t-1} in slot t % 2; not touched where one launch runs all steps
    carry_x,  # [2, B, 4H], the sum of d_gates from t on in slot t % 2; the same, and not unless CONSTANT
    counters,  # [batch tiles], int32, zero before and after; not touched unless grouped
    t0,
    steps,
    length,  # T
    batch,  # B
    hidden_over_align,  # H / ALIGN
    ALIGN: tl.constexpr,  # divides H: so many numbers of a row can be loaded at a time
    CONSTANT: tl.constexpr,
    RECOMPUTE: tl.constexpr,
    VARIANT: tl.constexpr,  # "resident", "grouped" or "step"
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,  # BLOCK_K fits so often into H, rounded up
):
    hidden = hidden_over_align * ALIGN
    dtype = d_gates.dtype.element_ty
    accumulate = cells.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    units = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (rows < batch)[:, None] & (units < hidden)[None, :]
    row_offsets = rows.to(tl.int64)[:, None] * hidden
    at_state = row_offsets + units[None, :]
    at_gates = 4 * row_offsets + units[None, :]
    state_size = batch.to(tl.int64) * hidden
    k = tl.arange(0, BLOCK_K)
    counter = counters + tl.program_id(0)
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
    if VARIANT == "resident":
        u_i = load_weights(weight_hh, units, units, hidden, hidden)
        u_f = load_weights(weight_hh, hidden + units, units, 2 * hidden, hidden)
        u_g = load_weights(weight_hh, 2 * hidden + units, units, 3 * hidden, hidden)
        u_o = load_weights(weight_hh, 3 * hidden + units, units, 4 * hidden, hidden)
        # Nothing comes from beyond the last step.
        d_i = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        d_f = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        d_g = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        d_o = tl.zeros([BLOCK_B, BLOCK_H], dtype)
    if VARIANT == "grouped":
        u = ()
        for chunk in tl.static_range(CHUNKS):
            u += (load_weights_by_gate(weight_hh, chunk * BLOCK_K + k, units, hidden),)

    c = tl.load(cells + (end - 1) * state_size + at_state, mask=mask, other=0.0)
    # As in forward: nothing is hoisted out of the loop of the grouped variant.
    for step in tl.range(0, steps, disable_licm=VARIANT == "grouped"):
        t = end - 1 - step
        i, f, g, o = load_gates(gates + t * (4 * state_size) + at_gates, hidden, mask)
        if RECOMPUTE:
            gates_x_t = gates_x
            if not CONSTANT:
                gates_x_t += t * (4 * state_size)
            p_i, p_f, p_g, p_o = load_gates(gates_x_t + at_gates, hidden, mask)
            i, f, g, o = i.to(accumulate), f.to(accumulate), g.to(accumulate), o.to(accumulate)
            i, f, g, o = activate(i + p_i, f + p_f, g + p_g, o + p_o)
            # d_gates[t] may lie where another thread of this program reads the gates.
            tl.debug_barrier()
        d_output = tl.load(grad_output + t * state_size + at_state, mask=mask, other=0.0)
        if t > 0:
            c_prev = tl.load(cells + (t - 1) * state_size + at_state, mask=mask, other=0.0)
        elif c0 is None:
            c_prev = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        else:
            c_prev = tl.load(c0 + at_state, mask=mask, other=0.0).to(accumulate)

        dh = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        d_next = d_gates + (t + 1) * (4 * state_size) + 4 * row_offsets
        if VARIANT == "resident":
            dh = tl.dot(d_i, u_i, dh, input_precision=PRECISION, out_dtype=accumulate)
            dh = tl.dot(d_f, u_f, dh, input_precision=PRECISION, out_dtype=accumulate)
            dh = tl.dot(d_g, u_g, dh, input_precision=PRECISION, out_dtype=accumulate)
            dh = tl.dot(d_o, u_o, dh, input_precision=PRECISION, out_dtype=accumulate)
        elif t + 1 < length:
            if VARIANT == "grouped":
                if step > 0:
                    wait(counter, step * tl.num_programs(1))
                # A batch of four products, one for each gate: a chain of multiply-adds a quarter as long.
                at_k = d_next[None, :, :] + tl.arange(0, 4)[:, None, None] * hidden + k[None, None, :]
                parts = tl.zeros([4, BLOCK_B, BLOCK_H], accumulate)
                for chunk in tl.static_range(CHUNKS):
                    inside = (rows < batch)[None, :, None] & (k < hidden - chunk * BLOCK_K)[None, None, :]
                    d = tl.load(at_k + chunk * BLOCK_K, mask=inside, other=0.0, cache_modifier=".cg")
                    parts = tl.dot(d, u[chunk], parts, input_precision=PRECISION, out_dtype=accumulate)
                # Not tl.sum, which would leave the whole tile in every warp, and with it all that follows.
                dh_i, dh_f, dh_g, dh_o = split_gates(tl.permute(parts, [1, 2, 0]), BLOCK_B, BLOCK_H)
                dh = (dh_i + dh_f) + (dh_g + dh_o)
            else:
                for start in range(0, 4 * hidden, BLOCK_K):
                    inside = (rows < batch)[:, None] & (k < 4 * hidden - start)[None, :]
                    d = tl.load(d_next + (start + k)[None, :], mask=inside, other=0.0)
                    u = load_weights(weight_hh, start + k, units, 4 * hidden, hidden)
                    dh = tl.dot(d, u, dh, input_precision=PRECISION, out_dtype=accumulate)

        i, f, g, o = i.to(accumulate), f.to(accumulate), g.to(accumulate), o.to(accumulate)
        a_i, a_f, a_g, a_o, dc = cell_backward(i, f, g, o, c_prev, c, dh + d_output, dc)
        store_gates(d_gates + t * (4 * state_size) + at_gates, a_i, a_f, a_g, a_o, hidden, mask)
        c = c_prev
        if VARIANT == "resident":
            d_i, d_f, d_g, d_o = a_i.to(dtype), a_f.to(dtype), a_g.to(dtype), a_o.to(dtype)
        if VARIANT == "grouped" and steps > 1:
            arrive(counter, steps * tl.num_programs(1))
        if CONSTANT:
            x_i, x_f, x_g, x_o = x_i + a_i, x_f + a_f, x_g + a_g, x_o + a_o

    if t0 == 0:
        if c0 is not None:
            tl.store(d_c0 + at_state, dc.to(dtype), mask=mask)
        if CONSTANT:
            store_gates(d_gates_x + at_gates, x_i, x_f, x_g, x_o, hidden, mask)
    else:
        tl.store(carry_c + (t0 % 2) * state_size + at_state, dc, mask=mask)
        if CONSTANT:
            store_gates(carry_x + (t0 % 2) * (4 * state_size) + at_gates, x_i, x_f, x_g, x_o, hidden, mask)
