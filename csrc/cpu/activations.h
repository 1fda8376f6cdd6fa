// sigmoid and tanh of vectors, to a few units in the last place over the whole range of the type; NaN gives NaN.
#pragma once

#include "simd.h"

namespace tagrank::cpu::TAGRANK_ISA {

using Floats = Vector<float>;
using Doubles = Vector<double>;

// exp(x) = 2^n (1 + q) with n = round(x / ln 2), for x in [-88, 89]. 2^n is infinite if n is 128. The polynomial is the one
// of expf in Cephes (Moshier), for |r| <= ln 2 / 2.
struct Exponential {
  Floats power;      // 2^n
  Floats remainder;  // q = exp(r) - 1, also accurate near zero
};

TAGRANK_INLINE Exponential exponential(Floats x) {
  // 1.5 * 2^23: adding it leaves n in the low bits of the sum.
  const Floats shift = splat(12582912.0f);
  const Floats shifted = x * 1.44269504088896341f + shift;
  const Floats n = shifted - shift;
  // ln 2 in two parts. The first has so few bits that its product with n is exact.
  Floats r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Bits exponent = bit_cast<Bits>(shifted) - bit_cast<Bits>(shift) + 127u;
  return {bit_cast<Floats>(exponent << 23), p * (r * r) + r};
}

TAGRANK_INLINE Floats sigmoid(Floats x) {
  // At the limits exp(-x) is infinite and the result 0, or the result is 1.
  x = x < -89.0f ? splat(-89.0f) : x;
  x = x > 88.0f ? splat(88.0f) : x;
  const Exponential e = exponential(-x);
  return 1.0f / (1.0f + e.power * (1.0f + e.remainder));
}

// tanh |x| = (1 - exp(-2|x|)) / (1 + exp(-2|x|)). In exp(-2|x|) - 1 = 2^n q + (2^n - 1) nothing cancels.
TAGRANK_INLINE Floats tanh(Floats x) {
  const Bits sign = bit_cast<Bits>(x) & 0x80000000u;
  Floats z = -2.0f * bit_cast<Floats>(bit_cast<Bits>(x) & 0x7fffffffu);
  z = z < -40.0f ? splat(-40.0f) : z;
  const Exponential e = exponential(z);
  const Floats difference = e.power * e.remainder + (e.power - 1.0f);
  const Floats magnitude = -difference / (2.0f + difference);
  return bit_cast<Floats>(bit_cast<Bits>(magnitude) | sign);
}

TAGRANK_INLINE Doubles sigmoid(Doubles x) {
  Doubles result{};
  for (int64_t l = 0; l < kLanes<double>; ++l) result[l] = 1.0 / (1.0 + std::exp(-x[l]));
  return result;
}

TAGRANK_INLINE Doubles tanh(Doubles x) {
  Doubles result{};
  for (int64_t l = 0; l < kLanes<double>; ++l) result[l] = std::tanh(x[l]);
  return result;
}

}  // namespace tagrank::cpu::TAGRANK_ISA
