"""The arithmetic of one LSTM step, which both kernels use.

All of it is elementwise and in the accumulation dtype: float64 for float64 tensors, float32 for all others. Equation
numbers are those of Yan, Wang and Liao, "LSTM for Image Annotation with Relative Visual Importance" (2016).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))``. It takes ``exp(-|x|)``, which cannot overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def tanh(x):
    """``tanh(x)``, to a few units in the last place everywhere.

    ``(1 - exp(-2|x|)) / (1 + exp(-2|x|))`` loses digits to cancellation near 0. For ``|x| < 0.625`` the result is
    therefore the odd polynomial of ``tanhf`` (float32), or the odd rational function of ``tanh`` (float64), from
    S. L. Moshier's Cephes library.
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
    # 0.390625 is the square of 0.625.
    return tl.where(z < 0.390625, small, tl.where(x < 0, -large, large))


@triton.jit
def activate(i, f, g, o):
    """The gates from their pre-activations: the outer functions of equations (2)-(5)."""
    return sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)


@triton.jit
def cell_forward(i, f, g, o, c):
    """Equations (2)-(7).

    Args:
        i, f, g, o: the gates' pre-activations.
        c: ``c_{t-1}``.

    Returns:
        The activated gates ``i, f, g, o``, then ``c_t`` and ``h_t``.
    """
    i, f, g, o = activate(i, f, g, o)
    c = f * c + i * g
    return i, f, g, o, c, o * tanh(c)


@triton.jit
def cell_backward(i, f, g, o, c_prev, c, dh, dc):
    """The derivative of :func:`cell_forward`.

    Args:
        i, f, g, o: the activated gates.
        c_prev: ``c_{t-1}``.
        c: ``c_t``.
        dh: the gradient of ``h_t``.
        dc: the part of the gradient of ``c_t`` that comes from later time steps.

    Returns:
        The gradients of the pre-activations of ``i, f, g, o``, then the gradient of ``c_{t-1}``.
    """
    tanh_c = tanh(c)
    dc += dh * o * (1.0 - tanh_c * tanh_c)
    di = dc * g * i * (1.0 - i)
    df = dc * c_prev * f * (1.0 - f)
    dg = dc * i * (1.0 - g * g)
    do = dh * tanh_c * o * (1.0 - o)
    return di, df, dg, do, dc * f
