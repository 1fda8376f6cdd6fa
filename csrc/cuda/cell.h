// The arithmetic of one LSTM cell, in float32.
#pragma once

#include <cmath>
#include <type_traits>

#include "number.h"
#include "target.h"

namespace tagrank::cuda {

// What computes the activations.
enum class Activations {
  kFast,         // an exponential and a reciprocal each, with an absolute error of about 2^-23
  kApproximate,  // the hardware's hyperbolic tangent, with a relative error of up to 2^-11
};
// The hardware's hyperbolic tangent is as exact as a bfloat16 number, which has 8 significant bits, needs. float16 has 11.
template <typename T>
constexpr Activations activations_for() {
  return std::is_same_v<T, BFloat16> ? Activations::kApproximate : Activations::kFast;
}

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
  if constexpr (kind == Activations::kFast) return reciprocal(1.0f + power_of_two(-1.4426950408889634f * x));
  return 0.5f * approximate_tangent(0.5f * x) + 0.5f;
}
template <Activations kind>
TAGRANK_DEVICE float hyperbolic_tangent(float x) {
  if constexpr (kind == Activations::kFast) return 2.0f * reciprocal(1.0f + power_of_two(-2.8853900817779268f * x)) - 1.0f;
  return approximate_tangent(x);
}

struct alignas(16) Gates {
  float i, f, g, o;
};
TAGRANK_DEVICE Gates operator+(const Gates& a, const Gates& b) { return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o}; }

// The gates from their pre-activations: the activations in equations (2)-(5).
template <Activations kind>
TAGRANK_DEVICE Gates activate(Gates pre) {
  return {sigmoid<kind>(pre.i), sigmoid<kind>(pre.f), hyperbolic_tangent<kind>(pre.g), sigmoid<kind>(pre.o)};
}

// The same if i, f and o were halved, by the hardware's hyperbolic tangent.
TAGRANK_DEVICE Gates activate_halved(Gates pre) {
  const auto sigmoid = [](float half) { return 0.5f * approximate_tangent(half) + 0.5f; };
  return {sigmoid(pre.i), sigmoid(pre.f), approximate_tangent(pre.g), sigmoid(pre.o)};
}

// Equations (6) and (7): replaces c = c_{t-1} by c_t and returns h_t.
template <Activations kind>
TAGRANK_DEVICE float cell_forward(Gates gates, float& c) {
  c = gates.f * c + gates.i * gates.g;
  return gates.o * hyperbolic_tangent<kind>(c);
}

// The derivative of activate() and cell_forward(), in two parts. The first one does not need the gradients dh of h_t and dc of
// c_t from step t + 1.
struct Derivative {
  Gates gates;  // the gradients of the pre-activations, divided by dc (i, f, g) or by dh (o)
  float dh_to_dc, forget;
};
template <Activations kind>
TAGRANK_DEVICE Derivative derive_cell(Gates gates, float c_prev, float c) {
  const float tanh_c = hyperbolic_tangent<kind>(c);
  const Gates d = {gates.g * gates.i * (1.0f - gates.i), c_prev * gates.f * (1.0f - gates.f),
                   gates.i * (1.0f - gates.g * gates.g), tanh_c * gates.o * (1.0f - gates.o)};
  return {d, gates.o * (1.0f - tanh_c * tanh_c), gates.f};
}
// Returns the gradients of the pre-activations, and replaces dc by the gradient of c_{t-1}.
TAGRANK_DEVICE Gates cell_backward(const Derivative& derivative, float dh, float& dc) {
  const Gates& by = derivative.gates;
  dc += dh * derivative.dh_to_dc;
  const Gates d = {dc * by.i, dc * by.f, dc * by.g, dh * by.o};
  dc *= derivative.forget;
  return d;
}

}  // namespace tagrank::cuda
