"""The backward kernel: one launch computes the time steps from ``t0 + steps - 1`` down to ``t0``.

``d_gates[t]`` is the gradient of the gates' pre-activations in time step t. The gradient of ``h_t`` is
``grad_output[t] + d_gates[t+1] U``. The variants are those of ``forward``, and differ in where ``d_gates[t+1]`` is:

- *Resident*: in the registers of the same program.
- *Grouped*: in memory, where the programs of the same batch rows stored it. A program waits at their barrier first.
- *Step*: in memory, where the launch for time step ``t + 1`` stored it.
- *Product*: nowhere; its product with ``U`` was computed before the launch.

Each sum is added up in a fixed order, so that results repeat bit for bit. The caller computes the gradient of ``h0``:
it is the product ``d_gates[0] U``. The kernel never writes to what forward saved.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy takes `u = ()` for an empty tuple, but an unrolled loop adds tiles to it.
# mypy: disable-error-code=assignment

import triton
import triton.language as tl

from tagrank.kernels.arithmetic import activate, cell_backward
from tagrank.kernels.barrier import arrive, wait
from tagrank.kernels.tiles import load_gates, load_weights, load_weights_by_gate, split_gates, store_gates


@triton.jit(
    do_not_specialize=["step_stride_over_unit", "row_stride_over_unit", "t0", "length", "batch", "hidden_over_align"],
    do_not_specialize_on_alignment=["steps"],
)
def lstm_backward(
    grad_output,  # [T, B, H] with the strides below, or None for zeros
    grad_h_n,  # [B, H], a further gradient of h_T, or None for zeros
    grad_c_n,  # [B, H], or None for zeros
    weight_hh,  # [4H, H]
    c0,  # [B, H], or None for zeros
    gates,  # [T, B, 4H], the activated gates; if RECOMPUTE, h_{t-1} U^T instead, and d_gates may be the same array
    gates_x,  # [T, B, 4H], or [B, 4H] if CONSTANT; unused unless RECOMPUTE
    cells,  # [T, B, H], c_t
    d_gates,  # [T, B, 4H]
    d_gates_x,  # [B, 4H], the sum of d_gates over all t, written at t = 0; unused unless SUM
    d_c0,  # [B, H], or None if it is not wanted; written at t = 0
    carry_c,  # [2, B, H], slot t0 % 2: the gradient of c_{t0-1}, for the next launch; unused if one launch does all
    carry_x,  # [2, B, 4H], the same for the sum of d_gates[t] over t >= t0; also unused unless SUM
    products,  # [B, H], d_gates[t+1] U in the dtype of cells; only the product variant uses it
    counters,  # [batch tiles], int32, zero before and after the launch; only the grouped variant uses them
    step_stride_over_unit,  # strides of grad_output over steps and rows; their unit is ALIGN, or 1 if GRAD_STRIDE is 0
    row_stride_over_unit,
    t0,  # first time step of this launch, which it computes last
    steps,  # number of time steps of this launch
    length,  # T
    batch,  # B
    hidden_over_align,  # H / ALIGN
    ALIGN: tl.constexpr,  # divides H, so that one load can take this many numbers of a row
    GRAD_STRIDE: tl.constexpr,  # the stride of grad_output over hidden units: 1, or 0 if they share one number
    CONSTANT: tl.constexpr,  # gates_x is the same in all time steps
    SUM: tl.constexpr,  # the sum of d_gates over all t is wanted
    RECOMPUTE: tl.constexpr,  # forward did not save the gates
    VARIANT: tl.constexpr,  # "resident", "grouped", "step" or "product"
    PRECISION: tl.constexpr,  # of float32 products: "tf32", or "tf32x3" for float32 results
    BLOCK_B: tl.constexpr,  # BLOCK_*: see tagrank.kernels.variants.Variant
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,  # ceil(H / BLOCK_K); only the grouped variant uses it
):
    hidden = hidden_over_align * ALIGN
    dtype = d_gates.dtype.element_ty
    accumulate = cells.dtype.element_ty
    first_row = tl.program_id(0) * BLOCK_B
    rows = first_row + tl.arange(0, BLOCK_B)
    units = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (rows < batch)[:, None] & (units < hidden)[None, :]
    row_offsets = rows.to(tl.int64)[:, None] * hidden
    at_state = row_offsets + units[None, :]  # where this tile is in a [B, H] array
    at_gates = 4 * row_offsets + units[None, :]  # and where its gate i is in a [B, 4H] array
    state_size = batch.to(tl.int64) * hidden
    k = tl.arange(0, BLOCK_K)
    counter = counters + tl.program_id(0)
    end = t0 + steps
    unit: tl.constexpr = ALIGN if GRAD_STRIDE == 1 else 1
    step_stride = step_stride_over_unit.to(tl.int64) * unit
    row_stride = row_stride_over_unit * unit

    sum_i = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
    sum_f = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
    sum_g = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
    sum_o = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
    if end == length:
        dc = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        if grad_c_n is not None:
            dc = tl.load(grad_c_n + at_state, mask=mask, other=0.0).to(accumulate)
    else:
        dc = tl.load(carry_c + (end % 2) * state_size + at_state, mask=mask, other=0.0)
        if SUM:
            sum_i, sum_f, sum_g, sum_o = load_gates(carry_x + (end % 2) * (4 * state_size) + at_gates, hidden, mask)
    if VARIANT == "resident":
        u_i = load_weights(weight_hh, units, units, hidden, hidden)
        u_f = load_weights(weight_hh, hidden + units, units, 2 * hidden, hidden)
        u_g = load_weights(weight_hh, 2 * hidden + units, units, 3 * hidden, hidden)
        u_o = load_weights(weight_hh, 3 * hidden + units, units, 4 * hidden, hidden)
        # d_gates[t+1] of this program's rows; 0 beyond the last time step.
        next_i = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        next_f = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        next_g = tl.zeros([BLOCK_B, BLOCK_H], dtype)
        next_o = tl.zeros([BLOCK_B, BLOCK_H], dtype)
    if VARIANT == "grouped":
        u = ()
        for chunk in tl.static_range(CHUNKS):
            u += (load_weights_by_gate(weight_hh, chunk * BLOCK_K + k, units, hidden),)

    c = tl.load(cells + (end - 1) * state_size + at_state, mask=mask, other=0.0)
    # disable_licm as in forward.
    for step in tl.range(0, steps, disable_licm=VARIANT == "grouped"):
        t = end - 1 - step
        i, f, g, o = load_gates(gates + t * (4 * state_size) + at_gates, hidden, mask)
        if RECOMPUTE:
            gates_x_t = gates_x
            if not CONSTANT:
                gates_x_t += t * (4 * state_size)
            x_i, x_f, x_g, x_o = load_gates(gates_x_t + at_gates, hidden, mask)
            i, f, g, o = i.to(accumulate), f.to(accumulate), g.to(accumulate), o.to(accumulate)
            i, f, g, o = activate(i + x_i, f + x_f, g + x_g, o + x_o)
            # gates and d_gates may be the same array: no thread may store d_gates[t] before all have loaded gates[t].
            tl.debug_barrier()
        if grad_output is not None:
            # Loaded early and added late. Converted before the product, it would take registers meanwhile.
            at_tile = grad_output + t * step_stride + first_row.to(tl.int64) * row_stride
            in_tile = tl.arange(0, BLOCK_B)[:, None] * row_stride + units[None, :] * GRAD_STRIDE
            d_output = tl.load(at_tile + in_tile, mask=mask, other=0.0)
        if t > 0:
            c_prev = tl.load(cells + (t - 1) * state_size + at_state, mask=mask, other=0.0)
        elif c0 is None:
            c_prev = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        else:
            c_prev = tl.load(c0 + at_state, mask=mask, other=0.0).to(accumulate)

        dh = tl.zeros([BLOCK_B, BLOCK_H], accumulate)
        d_next = d_gates + (t + 1) * (4 * state_size) + 4 * row_offsets
        if VARIANT == "resident":
            dh = tl.dot(next_i, u_i, dh, input_precision=PRECISION, out_dtype=accumulate)
            dh = tl.dot(next_f, u_f, dh, input_precision=PRECISION, out_dtype=accumulate)
            dh = tl.dot(next_g, u_g, dh, input_precision=PRECISION, out_dtype=accumulate)
            dh = tl.dot(next_o, u_o, dh, input_precision=PRECISION, out_dtype=accumulate)
            # At the last time step there is nothing to multiply. If U has an infinity, zeros would make NaN of it.
            dh = tl.where(t + 1 < length, dh, 0.0)
        elif VARIANT == "product":
            dh = tl.load(products + at_state, mask=mask & (t + 1 < length), other=0.0)
        elif t + 1 < length:
            if VARIANT == "grouped":
                if step > 0:
                    wait(counter, step * tl.num_programs(1))
                # One product for each gate, as a batch. A single product over 4H would be a chain of dependent
                # multiply-adds four times as long.
                at_k = d_next[None, :, :] + tl.arange(0, 4)[:, None, None] * hidden + k[None, None, :]
                parts = tl.zeros([4, BLOCK_B, BLOCK_H], accumulate)
                for chunk in tl.static_range(CHUNKS):
                    inside = (rows < batch)[None, :, None]
                    # All chunks but the last lie within H. In float32 a mask for each takes registers that are needed.
                    if chunk == CHUNKS - 1 or dtype != tl.float32:
                        inside = inside & (k < hidden - chunk * BLOCK_K)[None, None, :]
                    d = tl.load(at_k + chunk * BLOCK_K, mask=inside, other=0.0, cache_modifier=".cg")
                    parts = tl.dot(d, u[chunk], parts, input_precision=PRECISION, out_dtype=accumulate)
                # tl.sum over the gates would give every warp the whole tile, and each would repeat all that follows.
                dh_i, dh_f, dh_g, dh_o = split_gates(tl.permute(parts, [1, 2, 0]), BLOCK_B, BLOCK_H)
                dh = (dh_i + dh_f) + (dh_g + dh_o)
            else:
                for start in range(0, 4 * hidden, BLOCK_K):
                    inside = (rows < batch)[:, None] & (k < 4 * hidden - start)[None, :]
                    d = tl.load(d_next + (start + k)[None, :], mask=inside, other=0.0)
                    u = load_weights(weight_hh, start + k, units, 4 * hidden, hidden)
                    dh = tl.dot(d, u, dh, input_precision=PRECISION, out_dtype=accumulate)

        i, f, g, o = i.to(accumulate), f.to(accumulate), g.to(accumulate), o.to(accumulate)
        if grad_output is not None:
            dh += d_output
        if grad_h_n is not None:  # noqa: SIM102, as the compiler decides this and the GPU what follows
            if t + 1 == length:
                dh += tl.load(grad_h_n + at_state, mask=mask, other=0.0)
        d_i, d_f, d_g, d_o, dc = cell_backward(i, f, g, o, c_prev, c, dh, dc)
        store_gates(d_gates + t * (4 * state_size) + at_gates, d_i, d_f, d_g, d_o, hidden, mask)
        c = c_prev
        if VARIANT == "resident":
            # As in forward: units beyond H may be NaN, and would make NaN of all units.
            real = (units < hidden)[None, :]
            next_i, next_f = tl.where(real, d_i, 0.0).to(dtype), tl.where(real, d_f, 0.0).to(dtype)
            next_g, next_o = tl.where(real, d_g, 0.0).to(dtype), tl.where(real, d_o, 0.0).to(dtype)
        if VARIANT == "grouped" and steps > 1:
            arrive(counter, steps * tl.num_programs(1))
        if SUM:
            sum_i, sum_f, sum_g, sum_o = sum_i + d_i, sum_f + d_f, sum_g + d_g, sum_o + d_o

    if t0 == 0:
        if d_c0 is not None:
            tl.store(d_c0 + at_state, dc.to(dtype), mask=mask)
        if SUM:
            store_gates(d_gates_x + at_gates, sum_i, sum_f, sum_g, sum_o, hidden, mask)
    else:
        tl.store(carry_c + (t0 % 2) * state_size + at_state, dc, mask=mask)
        if SUM:
            store_gates(carry_x + (t0 % 2) * (4 * state_size) + at_gates, sum_i, sum_f, sum_g, sum_o, hidden, mask)
