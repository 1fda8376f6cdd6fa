// sigmoid and tanh to a few units in the last place, over the whole range of the type; NaN gives NaN.
// The float versions have neither branches nor calls, so that a loop over them becomes vector instructions.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtypes.h"

namespace tagrank::cpu {

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; the polynomial is that of Cephes' expf (Moshier).
// Above 88.4 it gives infinity and below -88 zero, where a float32 still holds a little more: the two functions
// below cannot tell, as there 1 + exp(x) is 1 and 1 / (1 + exp(x)) is below the smallest normal number.
TAGRANK_INLINE float exp_to_infinity(float x) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -88.0f ? -88.0f : x;
  // 1.5 * 2^23: adding it leaves n in the low bits of the sum.
  constexpr float shift = 12582912.0f;
  const float shifted = x * 1.44269504088896341f + shift;
  const float n = shifted - shift;
  // ln 2 in two parts, the first of few bits, so that n times it is exact.
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const uint32_t exponent = bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(shift) + 127u;
  return p * bit_cast<float>(exponent << 23);
}

TAGRANK_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp_to_infinity(-x)); }
TAGRANK_INLINE double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// Below 0.625 Cephes' odd polynomial, as 1 - 2 / (exp(2x) + 1) would cancel.
TAGRANK_INLINE float tanh(float x) {
  const float magnitude = std::fabs(x);
  const float large = 1.0f - 2.0f / (exp_to_infinity(2.0f * magnitude) + 1.0f);
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float small = p * square * x + x;
  return magnitude < 0.625f ? small : std::copysign(large, x);
}
TAGRANK_INLINE double tanh(double x) { return std::tanh(x); }

}  // namespace tagrank::cpu
