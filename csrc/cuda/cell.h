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

// What computes the activations.
enum class Activations {
  kExact,        // sigmoid() and hyperbolic_tangent() above
  kFast,         // an exponential and a reciprocal each, with an absolute error of about 2^-23
  kApproximate,  // the hardware's hyperbolic tangent, with a relative error of up to 2^-11: enough for bfloat16
};

#ifdef __CUDACC__
TAGRANK_DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
TAGRANK_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
TAGRANK_DEVICE float approximate_tangent(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else
inline float power_of_two(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }
// tanh, rounded to 11 bits: as far off as the hardware may be.
inline float approximate_tangent(float x) {
  int exponent;
  const float fraction = std::frexp(std::tanh(x), &exponent);
  return std::ldexp(std::round(fraction * 2048.0f) / 2048.0f, exponent);
}
#endif

// An infinite power has the reciprocal 0, so that both ends come out right.
template <Activations kind>
TAGRANK_DEVICE float sigmoid(float x) {
  if constexpr (kind == Activations::kExact) return sigmoid(x);
  if constexpr (kind == Activations::kFast) return reciprocal(1.0f + power_of_two(-1.4426950408889634f * x));
  return 0.5f * approximate_tangent(0.5f * x) + 0.5f;
}
template <Activations kind>
TAGRANK_DEVICE float hyperbolic_tangent(float x) {
  if constexpr (kind == Activations::kExact) return hyperbolic_tangent(x);
  if constexpr (kind == Activations::kFast) return 2.0f * reciprocal(1.0f + power_of_two(-2.8853900817779268f * x)) - 1.0f;
  return approximate_tangent(x);
}

struct alignas(16) Gates {
  float i, f, g, o;
};
TAGRANK_DEVICE Gates operator+(const Gates& a, const Gates& b) { return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o}; }

// The gates from their pre-activations: the activations in equations (2)-(5).
TAGRANK_DEVICE Gates activate(Gates pre) {
  return {sigmoid(pre.i), sigmoid(pre.f), hyperbolic_tangent(pre.g), sigmoid(pre.o)};
}

template <Activations kind>
TAGRANK_DEVICE Gates activate(Gates pre) {
  return {sigmoid<kind>(pre.i), sigmoid<kind>(pre.f), hyperbolic_tangent<kind>(pre.g), sigmoid<kind>(pre.o)};
}

// Equations (6) and (7): replaces c = c_{t-1} by c_t and returns h_t.
TAGRANK_DEVICE float cell_forward(Gates gates, float& c) {
  c = gates.f * c + gates.i * gates.g;
  return gates.o * hyperbolic_tangent(c);
}

template <Activations kind>
TAGRANK_DEVICE float cell_forward(Gates gates, float& c) {
  c = gates.f * c + gates.i * gates.g;
  return gates.o * hyperbolic_tangent<kind>(c);
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
