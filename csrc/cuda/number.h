// The types of numbers, and the vectors that a thread loads or stores at once. 16-bit numbers are held as bits (uint16_t), so
// that host and GPU agree on their layout.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "target.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace tagrank::cuda {

// Tags for the numbers of a call. The first two say how 16 bits are to be read. The others are float32, and say how products
// are computed: from numbers that are rounded to TF32, which has 11 significant bits, or from pairs of TF32 numbers whose sums
// have 22. Three products of these give float32 results.
struct Float16 {};
struct BFloat16 {};
struct Float32 {};
struct Tf32 : Float32 {};
struct Tf32x3 : Float32 {};

// How a number lies in memory: uint16_t or float.
template <typename T>
using Element = std::conditional_t<std::is_base_of_v<Float32, T>, float, uint16_t>;

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
TAGRANK_DEVICE uint16_t to_bits(Float16, float x) { return static_cast<uint16_t>(round_halves(Float16{}, x, 0.0f)); }
TAGRANK_DEVICE uint16_t to_bits(BFloat16, float x) { return static_cast<uint16_t>(round_halves(BFloat16{}, x, 0.0f)); }

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

// The same as a float.
template <typename T>
TAGRANK_DEVICE float half_to_float(T, uint32_t word, int which) {
  return to_float(T{}, half(word, which));
}
#ifdef __CUDACC__
// With one instruction, also if `which` is not known when the kernel is compiled.
TAGRANK_DEVICE float half_to_float(BFloat16, uint32_t word, int which) {
  return __uint_as_float(__byte_perm(word, 0, which == 0 ? 0x1044 : 0x3244));
}
#endif

TAGRANK_DEVICE float to_float(Float32, float x) { return x; }
TAGRANK_DEVICE float to_bits(Float32, float x) { return x; }

TAGRANK_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
TAGRANK_DEVICE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// The bits of a float that a TF32 number has, and half of the last of them.
constexpr uint32_t kTf32Bits = 0xffffe000, kHalfTf32 = 0x1000;

// A word of the operands of a product, from one of an array: Tf32 rounds it to nearest. Infinities and NaN stay what they are.
template <typename T>
TAGRANK_DEVICE uint32_t operand(uint32_t word) {
  if constexpr (!std::is_same_v<T, Tf32>) return word;
  const float x = float_of(word);
  return (x == x ? word + kHalfTf32 : word) & kTf32Bits;
}
template <typename T>
TAGRANK_DEVICE Words4 operand(const Words4& words) {
  return {{operand<T>(words.word[0]), operand<T>(words.word[1]), operand<T>(words.word[2]), operand<T>(words.word[3])}};
}

// Half of each of eight numbers of 16 bits.
template <typename T>
TAGRANK_DEVICE Words4 half_of(Words4 words) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto number = [&](int which) { return 0.5f * to_float(T{}, half(words.word[i], which)); };
    words.word[i] = halves<T>(number(0), number(1));
  }
  return words;
}

// A float as two TF32 numbers: its first 11 significant bits, and what is left.
struct Pair {
  uint32_t big, rest;
};
// An infinity leaves nothing: infinity minus infinity is a NaN whose bits are all ones but the sign, and adding to these gives
// -0. The volatile instruction keeps the compiler from splitting U once for all steps, for which there are no registers.
TAGRANK_DEVICE Pair split(uint32_t word) {
  Pair pair;
#ifdef __CUDACC__
  asm volatile("and.b32 %0, %1, %2;" : "=r"(pair.big) : "r"(word), "n"(kTf32Bits));
#else
  pair.big = word & kTf32Bits;
#endif
  const float rest = float_of(word) - float_of(pair.big);
  pair.rest = bits_of(rest) + kHalfTf32;
#ifndef __CUDACC__
  if (rest != rest) pair.rest = 0x80000000;  // other processors make other NaNs
#endif
  return pair;
}

}  // namespace tagrank::cuda
