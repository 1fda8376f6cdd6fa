"""The arithmetic of one LSTM step, shared by the kernels.

Everything is elementwise and in the accumulation dtype: float32, or float64 for float64 tensors.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))`` from ``exp`` of a number that is never positive, so that nothing overflows."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def tanh(x):
    """``tanh(x)`` to a few units in the last place, near 0 too.

    ``2 sigmoid(2x) - 1`` cancels near 0, so below 0.625 it is the odd polynomial (float32) or rational function
    (float64) of ``tanhf`` and ``tanh`` in S. L. Moshier's Cephes library.
    """
    z = x * x
    if x.dtype == tl.float64:
        p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3
        q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3
        small = x + x * z * (p / q)
    else:
        p = -5.70498872745e-3 * z + 2.06390887954e-2
        p = (p * z - 5.37397155531e-2) * z + 1.33314422036e-1
        small = x + x * z * (p * z - 3.33332819422e-1)
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    return tl.where(z < 0.390625, small, tl.where(x < 0, -large, large))


@triton.jit
def activate(i, f, g, o):
    """The gates from their pre-activations, the outer functions of equations (2)-(5)."""
    return sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)


@triton.jit
def cell_forward(i, f, g, o, c):
    """Equations (2)-(7): from the four pre-activations and ``c_{t-1}`` to the activated gates, ``c_t`` and ``h_t``."""
    i, f, g, o = activate(i, f, g, o)
    c = f * c + i * g
    return i, f, g, o, c, o * tanh(c)


@triton.jit
def cell_backward(i, f, g, o, c_prev, c, dh, dc):
    """The derivative of :func:`cell_forward`.

    From the activated gates, ``c_{t-1}``, ``c_t``, the gradient of ``h_t`` and the gradient of ``c_t`` that comes from
    later steps, to the gradients of the four pre-activations and of ``c_{t-1}``.
    """
    tanh_c = tanh(c)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    di = dc * g * i * (1.0 - i)
    df = dc * c_prev * f * (1.0 - f)
    dg = dc * i * (1.0 - g * g)
    do = dh * tanh_c * o * (1.0 - o)
    return di, df, dg, do, dc * f
