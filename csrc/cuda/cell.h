// The arithmetic of one LSTM cell, in float32. It is the same as in kernels/arithmetic.py.
#pragma once

#include <cmath>

#include "target.h"

namespace tagrank::cuda {

#ifdef __CUDACC__
// The hardware's approximations, accurate to some units in the last place. Out of range they give infinity or 0.
TAGRANK_DEVICE float exponential(float x) { return __expf(x); }
TAGRANK_DEVICE float quotient(float a, float b) { return __fdividef(a, b); }
// low < limit ? a : b. The compiler would make a branch of that expression, and cells would wait for each other.
TAGRANK_DEVICE float select_below(float low, float limit, float a, float b) {
  float chosen;
  asm("{.reg .pred below; setp.lt.f32 below, %1, %2; selp.f32 %0, %3, %4, below;}"
      : "=f"(chosen)
      : "f"(low), "f"(limit), "f"(a), "f"(b));
  return chosen;
}
#else
inline float exponential(float x) { return std::exp(x); }
inline float quotient(float a, float b) { return a / b; }
inline float select_below(float low, float limit, float a, float b) { return low < limit ? a : b; }
#endif

// 1 / (1 + exp(-x)). The exponent -|x| is never positive, so that nothing overflows.
TAGRANK_DEVICE float sigmoid(float x) {
  const float e = exponential(-fabsf(x));
  return quotient(x < 0 ? e : 1.0f, 1.0f + e);
}

// (1 - e) / (1 + e) with e = exp(-2|x|). That cancels near 0, so there it is the odd polynomial of tanhf in S. L. Moshier's
// Cephes library.
TAGRANK_DEVICE float hyperbolic_tangent(float x) {
  const float z = x * x;
  float p = -5.70498872745e-3f * z + 2.06390887954e-2f;
  p = (p * z - 5.37397155531e-2f) * z + 1.33314422036e-1f;
  const float small = x + x * z * (p * z - 3.33332819422e-1f);
  const float e = exponential(-2.0f * fabsf(x));
  return select_below(z, 0.390625f, small, copysignf(quotient(1.0f - e, 1.0f + e), x));
}

struct alignas(16) Gates {
  float i, f, g, o;
};
TAGRANK_DEVICE Gates operator+(const Gates& a, const Gates& b) { return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o}; }

// The gates from their pre-activations: the activations in equations (2)-(5).
TAGRANK_DEVICE Gates activate(Gates pre) {
  return {sigmoid(pre.i), sigmoid(pre.f), hyperbolic_tangent(pre.g), sigmoid(pre.o)};
}

// Equations (6) and (7): replaces c = c_{t-1} by c_t and returns h_t.
TAGRANK_DEVICE float cell_forward(Gates gates, float& c) {
  c = gates.f * c + gates.i * gates.g;
  return gates.o * hyperbolic_tangent(c);
}

// The derivative of activate() and cell_forward(): returns the gradients of the pre-activations. `dh` is the gradient of h_t.
// `dc` is the gradient of c_t from step t + 1 and is replaced by the gradient of c_{t-1}.
TAGRANK_DEVICE Gates cell_backward(Gates gates, float c_prev, float c, float dh, float& dc) {
  const float tanh_c = hyperbolic_tangent(c);
  dc += dh * gates.o * (1.0f - tanh_c * tanh_c);
  const Gates d = {dc * gates.g * gates.i * (1.0f - gates.i), dc * c_prev * gates.f * (1.0f - gates.f),
                   dc * gates.i * (1.0f - gates.g * gates.g), dh * tanh_c * gates.o * (1.0f - gates.o)};
  dc *= gates.f;
  return d;
}

}  // namespace tagrank::cuda
