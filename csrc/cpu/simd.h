// Vectors of one instruction set, in the compiler's vector extensions, which have the operators of scalars. The file of each
// instruction set (portable.cpp, avx2.cpp, avx512.cpp, amx.cpp) includes this file once. Its namespace is TAGRANK_ISA and its
// registers have TAGRANK_VECTOR_BYTES bytes.
//
// Every function that these files instantiate must be in that namespace or inlined. If two of them compile the same function
// of the standard library out of line, the linker keeps only one copy, which may use instructions that the CPU lacks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtypes.h"

#if defined(TAGRANK_TILES)
#include <immintrin.h>
#endif

#if !defined(TAGRANK_ISA) || !defined(TAGRANK_VECTOR_BYTES) || !defined(TAGRANK_ROWS)
#error "include this from the file of an instruction set"
#endif

#define TAGRANK_INLINE inline __attribute__((always_inline))
#define TAGRANK_UNROLL _Pragma("GCC unroll 16")

namespace tagrank::cpu::TAGRANK_ISA {

// A vector of compute type C, which is float or double, and its number of lanes.
template <typename C>
struct VectorOf {
  typedef C type __attribute__((vector_size(TAGRANK_VECTOR_BYTES)));
};
template <typename C>
using Vector = typename VectorOf<C>::type;
template <typename C>
constexpr int64_t kLanes = TAGRANK_VECTOR_BYTES / sizeof(C);

typedef uint32_t Bits __attribute__((vector_size(TAGRANK_VECTOR_BYTES)));
typedef uint16_t HalfBits __attribute__((vector_size(TAGRANK_VECTOR_BYTES / 2)));

template <typename To, typename From>
TAGRANK_INLINE To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

// A scalar in all lanes.
template <typename C>
TAGRANK_INLINE Vector<C> splat(C value) {
  return value - Vector<C>{};
}

template <typename C>
TAGRANK_INLINE Vector<C> load(const C* from) {
  Vector<C> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename C>
TAGRANK_INLINE void store(C* to, Vector<C> value) {
  std::memcpy(to, &value, sizeof(value));
}

TAGRANK_INLINE Vector<float> load(const bfloat16* from) {
  HalfBits half;
  std::memcpy(&half, from, sizeof(half));
  return bit_cast<Vector<float>>(__builtin_convertvector(half, Bits) << 16);
}

TAGRANK_INLINE void store(bfloat16* to, Vector<float> value) {
  // Rounds to nearest, ties to even. NaN is treated apart, because rounding could turn its payload into infinity.
  const Bits bits = bit_cast<Bits>(value);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits chosen = value == value ? rounded : Bits{} + 0x7fc0u;
  const HalfBits half = __builtin_convertvector(chosen, HalfBits);
  std::memcpy(to, &half, sizeof(half));
}

// One element in all lanes.
template <typename T>
TAGRANK_INLINE Vector<compute_t<T>> all_lanes(const T* from) {
  T filled[kLanes<compute_t<T>>];
  for (T& lane : filled) lane = *from;
  return load(static_cast<const T*>(filled));
}

// Loads and stores of only the first `count` lanes: at the end of a row these are not all. Lanes that are not loaded are zero.
template <typename T>
TAGRANK_INLINE Vector<compute_t<T>> load(const T* from, int64_t count) {
  constexpr int64_t L = kLanes<compute_t<T>>;
  if (__builtin_expect(count >= L, 1)) return load(from);
  T padded[L] = {};
  for (int64_t l = 0; l < count; ++l) padded[l] = from[l];
  return load(static_cast<const T*>(padded));
}

template <typename T>
TAGRANK_INLINE void store(T* to, Vector<compute_t<T>> value, int64_t count) {
  constexpr int64_t L = kLanes<compute_t<T>>;
  if (__builtin_expect(count >= L, 1)) return store(to, value);
  T padded[L];
  store(static_cast<T*>(padded), value);
  for (int64_t l = 0; l < count; ++l) to[l] = padded[l];
}

// The value with zeros in all but the first `count` lanes. Lanes beyond the end of a row are multiplied with zeros, and must not
// hold an infinity or NaN that came from an operand.
template <typename C>
TAGRANK_INLINE Vector<C> first_lanes(Vector<C> value, int64_t count) {
  if (__builtin_expect(count >= kLanes<C>, 1)) return value;
  using Index = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  typedef Index Lanes __attribute__((vector_size(TAGRANK_VECTOR_BYTES)));
  Lanes lanes{};
  TAGRANK_UNROLL for (int64_t l = 0; l < kLanes<C>; ++l) lanes[l] = static_cast<Index>(l);
  return lanes < static_cast<Index>(count) ? value : Vector<C>{};
}

// The value as it is after it was stored as a T and loaded again.
template <typename T>
TAGRANK_INLINE Vector<compute_t<T>> rounded(Vector<compute_t<T>> value) {
  if constexpr (sizeof(T) == sizeof(compute_t<T>)) {
    return value;
  } else {
    T stored[kLanes<compute_t<T>>];
    store(static_cast<T*>(stored), value);
    return load(static_cast<const T*>(stored));
  }
}

// The first (or, if `second`, the second) halves of a and b, their lanes in turn: a0, b0, a1, b1, ...
template <bool second, typename C>
TAGRANK_INLINE Vector<C> interleave(Vector<C> a, Vector<C> b) {
  constexpr int64_t L = kLanes<C>;
#if defined(__clang__)
  // clang makes one shuffle of this loop. gcc would move the lanes one by one, but has a builtin for shuffles.
  Vector<C> result{};
  TAGRANK_UNROLL for (int64_t l = 0; l < L; ++l) result[l] = (l % 2 == 0 ? a : b)[l / 2 + (second ? L / 2 : 0)];
  return result;
#else
  using Index = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  typedef Index Mask __attribute__((vector_size(TAGRANK_VECTOR_BYTES)));
  Mask mask{};
  TAGRANK_UNROLL for (int64_t l = 0; l < L; ++l) mask[l] = l / 2 + (second ? L / 2 : 0) + (l % 2) * L;
  return __builtin_shuffle(a, b, mask);
#endif
}

// Transposes an L x L matrix that has a vector for each row.
template <typename C>
TAGRANK_INLINE void transpose(Vector<C> (&rows)[kLanes<C>]) {
  constexpr int64_t L = kLanes<C>;
  TAGRANK_UNROLL for (int64_t stage = 1; stage < L; stage *= 2) {
    Vector<C> next[L];
    TAGRANK_UNROLL for (int64_t i = 0; i < L / 2; ++i) {
      next[2 * i] = interleave<false, C>(rows[i], rows[i + L / 2]);
      next[2 * i + 1] = interleave<true, C>(rows[i], rows[i + L / 2]);
    }
    TAGRANK_UNROLL for (int64_t i = 0; i < L; ++i) rows[i] = next[i];
  }
}

// Lane l of the result is the sum of all lanes of rows[l].
template <typename C>
TAGRANK_INLINE Vector<C> sums(Vector<C> (&rows)[kLanes<C>]) {
  TAGRANK_UNROLL for (int64_t half = kLanes<C> / 2; half > 0; half /= 2) {
    TAGRANK_UNROLL for (int64_t i = 0; i < half; ++i) {
      const Vector<C> first = interleave<false, C>(rows[i], rows[i + half]);
      rows[i] = first + interleave<true, C>(rows[i], rows[i + half]);
    }
  }
  return rows[0];
}

}  // namespace tagrank::cpu::TAGRANK_ISA
