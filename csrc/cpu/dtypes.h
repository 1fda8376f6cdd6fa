// The storage types of the cell kernels, and the type that each of them computes in.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__GNUC__)
// Inlined into callers that are compiled for a wider instruction set, so that it is compiled for that too.
#define TAGRANK_INLINE inline __attribute__((always_inline))
#else
#define TAGRANK_INLINE inline
#endif

namespace tagrank::cpu {

struct bfloat16 {
  uint16_t bits;
};

// What T is computed in, and what the cell state and its gradient are kept in.
template <typename T>
struct Compute {
  using type = T;
};
template <>
struct Compute<bfloat16> {
  using type = float;
};
template <typename T>
using compute_t = typename Compute<T>::type;

template <typename To, typename From>
TAGRANK_INLINE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

TAGRANK_INLINE float load(float value) { return value; }
TAGRANK_INLINE double load(double value) { return value; }
TAGRANK_INLINE float load(bfloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

TAGRANK_INLINE void store(float& to, float value) { to = value; }
TAGRANK_INLINE void store(double& to, double value) { to = value; }
TAGRANK_INLINE void store(bfloat16& to, float value) {
  // To nearest, ties to even. NaN is set apart, as rounding could carry its payload over into infinity.
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

}  // namespace tagrank::cpu
