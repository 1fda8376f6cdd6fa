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
// Two numbers, rounded, as the halves of a word.
TAGRANK_DEVICE uint32_t round_halves(Float16, float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return __half_as_ushort(both.x) | static_cast<uint32_t>(__half_as_ushort(both.y)) << 16;
}
TAGRANK_DEVICE uint32_t round_halves(BFloat16, float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return __bfloat16_as_ushort(both.x) | static_cast<uint32_t>(__bfloat16_as_ushort(both.y)) << 16;
}
// The instruction that converts two numbers is faster than that for one.
template <typename T>
TAGRANK_DEVICE uint16_t to_bits(T, float x) {
  return static_cast<uint16_t>(round_halves(T{}, x, 0.0f));
}

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
template <typename T>
uint32_t round_halves(T, float low, float high) {
  return to_bits(T{}, low) | static_cast<uint32_t>(to_bits(T{}, high)) << 16;
}

#endif

// One of the two numbers in a word: the low half if `which` is 0, the high half if it is 1.
TAGRANK_DEVICE uint16_t half(uint32_t word, int which) { return static_cast<uint16_t>(word >> (16 * which)); }

// Two numbers, rounded to T, as the halves of a word.
template <typename T>
TAGRANK_DEVICE uint32_t halves(float low, float high) {
  return round_halves(T{}, low, high);
}

}  // namespace tagrank::cuda
