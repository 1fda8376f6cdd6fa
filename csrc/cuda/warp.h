// A warp and its matrix instructions. On the host they are computed lane after lane, by the layout that the PTX ISA documents
// (9.7.14, "Matrix fragments for mma.m16n8k16 with floating point types", and the same for mma.m16n8k8 with .tf32).
//
// In what follows a lane is (g, q) = (lane / 4, lane % 4). The inner dimension of a product may be in any order that is the
// same in both operands. Two instructions multiply 64 bytes of it: 32 numbers of 16 bits, or 16 of 32. Lane q takes the bytes
// 16q .. 16q+15, because it can load these neighbours at once. The instruction for 16 elements of 16 bits and that for 8 of 32
// take the same words from each lane.
#pragma once

#include <cstdint>

#include "number.h"
#include "target.h"

namespace tagrank::cuda {

constexpr int kLanes = 32;

#ifdef __CUDACC__

// One value for each lane of a warp. On a GPU it is a register.
template <typename V>
struct Lanes {
  V value;
  TAGRANK_DEVICE V& operator[](int) { return value; }
  TAGRANK_DEVICE const V& operator[](int) const { return value; }
};

// function(lane) in each lane of the warp.
template <typename Function>
TAGRANK_DEVICE void each_lane(const Function& function) {
  function(static_cast<int>(threadIdx.x) % kLanes);
}

TAGRANK_DEVICE void mma(Float16, Float4& c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c.at[0]), "+f"(c.at[1]), "+f"(c.at[2]), "+f"(c.at[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
TAGRANK_DEVICE void mma(BFloat16, Float4& c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c.at[0]), "+f"(c.at[1]), "+f"(c.at[2]), "+f"(c.at[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
TAGRANK_DEVICE void mma(Tf32, Float4& c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c.at[0]), "+f"(c.at[1]), "+f"(c.at[2]), "+f"(c.at[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// c += a b, with a [16, 16], b [16, 8] and c [16, 8] spread over the lanes. In TF32 a is [16, 8] and b is [8, 8].
template <typename T>
TAGRANK_DEVICE void mma(Lanes<Float4>& c, const Lanes<Words4>& a, const Lanes<Words2>& b) {
  mma(T{}, c.value, a.value.word[0], a.value.word[1], a.value.word[2], a.value.word[3], b.value.word[0],
      b.value.word[1]);
}

// Loads four 8 x 8 matrices from shared memory and transposes them. `row` of lane l points to row l % 8 of matrix l / 8. Word p
// of a lane becomes the elements [2q][g] and [2q+1][g] of matrix p.
TAGRANK_DEVICE void load_transposed(Lanes<Words4>& to, const Lanes<const uint16_t*>& row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row.value));
  uint32_t* word = to.value.word;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(address)
               : "memory");
}

// Transposes an 8 x 8 matrix: a lane gives the elements [g][2q] and [g][2q+1] and gets [2q][g] and [2q+1][g].
TAGRANK_DEVICE void transpose(Lanes<uint32_t>& matrix) {
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(matrix.value));
}

// Keeps what comes after it after what comes before it. The compiler moves matrix instructions ahead of everything but a
// branch, so this is one that is never taken: `address` is not 0, which the compiler does not know.
TAGRANK_DEVICE void keep_order(uint32_t address) {
  asm volatile("{.reg .pred there; setp.ne.u32 there, %0, 0; @there bra THERE; trap; THERE: }" : : "r"(address) : "memory");
}

// Each lane gets the value of lane ^ mask.
template <typename V>
TAGRANK_DEVICE void swap_lanes(Lanes<V>& values, int mask) {
  values.value = __shfl_xor_sync(0xffffffff, values.value, mask);
}

#else

template <typename V>
struct Lanes {
  V value[kLanes];
  V& operator[](int lane) { return value[lane]; }
  const V& operator[](int lane) const { return value[lane]; }
};

template <typename Function>
void each_lane(const Function& function) {
  for (int lane = 0; lane < kLanes; ++lane) function(lane);
}

// The numbers of a word: two of 16 bits or one of TF32, whose other bits the instruction does not read.
template <typename T>
float number_in(uint32_t word, int which) {
  if constexpr (sizeof(Element<T>) == 4) {
    return float_of(word & kTf32Bits);
  } else {
    return to_float(T{}, half(word, which));
  }
}

template <typename T>
void mma(Lanes<Float4>& c, const Lanes<Words4>& a, const Lanes<Words2>& b) {
  constexpr int kWord = 4 / static_cast<int>(sizeof(Element<T>)), kHalf = 4 * kWord;  // numbers of a word; of half of the inner
  float left[16][2 * kHalf], right[2 * kHalf][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int e = 0; e < kWord; ++e) {
      // 16 bits: a0: (g, 2q), a1: (g+8, 2q), a2: (g, 2q+8), a3: (g+8, 2q+8); TF32: q and q+4 for 2q and 2q+8
      for (int r = 0; r < 4; ++r) left[g + 8 * (r % 2)][kWord * q + kHalf * (r / 2) + e] = number_in<T>(a[lane].word[r], e);
      // 16 bits: b0: (2q, g), b1: (2q+8, g)
      for (int r = 0; r < 2; ++r) right[kWord * q + kHalf * r + e][g] = number_in<T>(b[lane].word[r], e);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int r = 0; r < 4; ++r) {  // c0: (g, 2q), c1: (g, 2q+1), c2: (g+8, 2q), c3: (g+8, 2q+1)
      for (int k = 0; k < 2 * kHalf; ++k) c[lane].at[r] += left[g + 8 * (r / 2)][k] * right[k][2 * q + r % 2];
    }
  }
}

inline void load_transposed(Lanes<Words4>& to, const Lanes<const uint16_t*>& row) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int p = 0; p < 4; ++p) {
      to[lane].word[p] = row[8 * p + 2 * q][g] | static_cast<uint32_t>(row[8 * p + 2 * q + 1][g]) << 16;
    }
  }
}

inline void transpose(Lanes<uint32_t>& matrix) {
  const Lanes<uint32_t> before = matrix;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, q = lane % 4;
    const auto element = [&](int row) { return half(before[4 * row + g / 2], g % 2); };
    matrix[lane] = element(2 * q) | static_cast<uint32_t>(element(2 * q + 1)) << 16;
  }
}

inline void keep_order(uint32_t) {}

template <typename V>
void swap_lanes(Lanes<V>& values, int mask) {
  const Lanes<V> before = values;
  for (int lane = 0; lane < kLanes; ++lane) values[lane] = before[lane ^ mask];
}

#endif

// The left operand of the first or the second of two instructions, from what a lane has of both: the bytes 16q .. 16q+15 of row
// g (`upper`) and of row g + 8 (`lower`).
TAGRANK_DEVICE Words4 left_half(const Words4& upper, const Words4& lower, int half) {
  const uint32_t *up = upper.word + 2 * half, *low = lower.word + 2 * half;
  return {{up[0], low[0], up[1], low[1]}};
}

// c += a b over 64 bytes of the inner dimension. Each lane gives the bytes 16q .. 16q+15 of row g of a (`upper`), of row g + 8
// of a (`lower`) and of column g of b (`right`).
template <typename T>
TAGRANK_DEVICE void multiply(Lanes<Float4>& c, const Lanes<Words4>& upper, const Lanes<Words4>& lower,
                             const Lanes<Words4>& right) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Lanes<Words4> a;
    Lanes<Words2> b;
    each_lane([&](int lane) {
      const uint32_t* in = right[lane].word + 2 * half;
      a[lane] = left_half(upper[lane], lower[lane], half);
      b[lane] = {{in[0], in[1]}};
    });
    if constexpr (std::is_same_v<T, Tf32x3>) {
      // What is left out is the product of the two rests, 2^-22 of the whole at most.
      Lanes<Words4> a_big, a_rest;
      Lanes<Words2> b_big, b_rest;
      each_lane([&](int lane) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Pair pair = split(a[lane].word[i]);
          a_big[lane].word[i] = pair.big;
          a_rest[lane].word[i] = pair.rest;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Pair pair = split(b[lane].word[i]);
          b_big[lane].word[i] = pair.big;
          b_rest[lane].word[i] = pair.rest;
        }
      });
      mma<Tf32>(c, a_rest, b_big);
      mma<Tf32>(c, a_big, b_rest);
      mma<Tf32>(c, a_big, b_big);
    } else {
      mma<T>(c, a, b);
    }
  }
}

// The same with the left_half() of both instructions.
template <typename T>
TAGRANK_DEVICE void multiply_halves(Lanes<Float4>& c, const Lanes<Words4> (&left)[2], const Lanes<Words4>& right) {
  static_assert(!std::is_same_v<T, Tf32x3>, "the left operand is one number each");
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Lanes<Words2> b;
    each_lane([&](int lane) { b[lane] = {{right[lane].word[2 * half], right[lane].word[2 * half + 1]}}; });
    mma<T>(c, left[half], b);
  }
}

}  // namespace tagrank::cuda
