// The 16-bit types, and the vectors that a thread loads or stores at once. 16-bit numbers are held as bits (uint16_t), so that
// host and GPU agree on their layout.
#pragma once

#include <cstdint>
#include <cstring>

#include "target.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace tagrank::cuda {

// Tags that say how 16 bits are to be read.
struct Float16 {};
struct BFloat16 {};

struct alignas(16) Words4 {
  uint32_t word[4];
};
struct alignas(8) Words2 {
  uint32_t word[2];
};
struct alignas(16) Float4 {
  float at[4];
};
struct alignas(8) Float2 {
  float at[2];
};

#ifdef __CUDACC__

TAGRANK_DEVICE float to_float(Float16, uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
TAGRANK_DEVICE float to_float(BFloat16, uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }
TAGRANK_DEVICE uint16_t to_bits(Float16, float x) { return __half_as_ushort(__float2half_rn(x)); }
TAGRANK_DEVICE uint16_t to_bits(BFloat16, float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

#else

inline float to_float(Float16, uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<float>(value);
}
inline float to_float(BFloat16, uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
inline uint16_t to_bits(Float16, float x) {
  const _Float16 value = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline uint16_t to_bits(BFloat16, float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, sizeof wide);
  // To nearest, ties to even.
  return static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

#endif

// One of the two numbers in a word: the low half if `which` is 0, the high half if it is 1.
TAGRANK_DEVICE uint16_t half(uint32_t word, int which) { return static_cast<uint16_t>(word >> (16 * which)); }

// Two numbers, rounded to T, as the halves of a word.
template <typename T>
TAGRANK_DEVICE uint32_t halves(float low, float high) {
  return to_bits(T{}, low) | static_cast<uint32_t>(to_bits(T{}, high)) << 16;
}

}  // namespace tagrank::cuda
