// The matrix products of the recurrence, a register tile at a time, and the layout of their operands.
//
// L is the number of lanes of a vector. A matrix [rows, K] is kept in blocks [ceil(K / L)][rows][L], so that a tile reads
// neighbouring memory whatever K is. The last block is filled up with zeros. Blocks are `stride` elements apart. The weight is
// kept in panels [K][4][L] of 4 L columns, so that the four vectors which a tile reads at each k are neighbours.
#pragma once

#include <algorithm>

#include "simd.h"
#include "team.h"

namespace tagrank::cpu::TAGRANK_ISA {

// The vectors in a row of a tile. In the forward pass there is one for each gate.
constexpr int64_t kWidth = 4;
// The rows of the largest tile that the registers hold together with the operands of its product.
constexpr int64_t kRows = TAGRANK_ROWS;

// How many elements ahead to prefetch in a row of the weight: the processor does not prefetch so many rows by itself.
template <typename C>
constexpr int64_t kAhead = 8 * kLanes<C>;

template <typename C>
constexpr int64_t blocks_of(int64_t columns) {
  return (columns + kLanes<C> - 1) / kLanes<C>;
}

// tile(part, i) for the tiles that divide `rows` evenly: their heights differ by at most one, instead of a low tile at the end.
template <typename Function>
TAGRANK_INLINE void for_each_tile(Range rows, const Function& tile) {
  const int64_t height = rows.end - rows.begin, tiles = (height + kRows - 1) / kRows;
  for (int64_t i = 0; i < tiles; ++i) {
    const Range part = share(height, tiles, i);
    tile(Range{rows.begin + part.begin, rows.begin + part.end}, i);
  }
}

// The memory that a tile prefetches while it multiplies, one vector for each k, so that memory and arithmetic are busy at the
// same time. It is the part of the weight that is multiplied next; each of the first kWidth tiles prefetches a share of it.
template <typename C>
struct Ahead {
  const C* from;
  int64_t step;

  // For tile i of a product over `blocks` blocks of K. The next product reads as many blocks from `next` on.
  static Ahead of_tile(int64_t i, const C* next, int64_t blocks) {
    constexpr int64_t L = kLanes<C>;
    return i < kWidth ? Ahead{next + i * blocks * L * L, L} : Ahead{next, 0};
  }
};

// tile += a b, for M rows of a and one panel of b, over `blocks` blocks of K.
template <int M, typename C>
TAGRANK_INLINE void multiply(Vector<C> (&tile)[M][kWidth], const C* a, int64_t stride, const C* b, int64_t blocks,
                             Ahead<C> ahead) {
  constexpr int64_t L = kLanes<C>;
  for (int64_t block = 0; block < blocks; ++block, a += stride) {
    TAGRANK_UNROLL for (int m = 0; m < M; ++m) __builtin_prefetch(a + stride + m * L);
    _Pragma("GCC unroll 4") for (int64_t k = 0; k < L; ++k, b += kWidth * L) {
      Vector<C> row[kWidth];
      TAGRANK_UNROLL for (int64_t v = 0; v < kWidth; ++v) row[v] = load(b + v * L);
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from += ahead.step;
      TAGRANK_UNROLL for (int m = 0; m < M; ++m) {
        const Vector<C> scalar = splat(a[m * L + k]);
        TAGRANK_UNROLL for (int64_t v = 0; v < kWidth; ++v) tile[m][v] += scalar * row[v];
      }
    }
  }
}

// tile += a^T b over `rows` rows, for R columns of the block at a and the N blocks at b.
template <int R, int N, typename C>
TAGRANK_INLINE void multiply_transposed(Vector<C> (&tile)[R][N], const C* a, const C* b, int64_t stride, int64_t rows) {
  constexpr int64_t L = kLanes<C>;
  _Pragma("GCC unroll 4") for (int64_t row = 0; row < rows; ++row, a += L, b += L) {
    Vector<C> right[N];
    TAGRANK_UNROLL for (int n = 0; n < N; ++n) right[n] = load(b + n * stride);
    TAGRANK_UNROLL for (int r = 0; r < R; ++r) {
      const Vector<C> scalar = splat(a[r]);
      TAGRANK_UNROLL for (int n = 0; n < N; ++n) tile[r][n] += scalar * right[n];
    }
  }
}

// The products of one row of a blocked matrix with L rows of an unpacked weight [rows, columns]. Only the first `rows` of the L
// rows exist.
template <typename T, typename C>
TAGRANK_INLINE Vector<C> dot(const C* a, int64_t stride, const T* weight, int64_t columns, int64_t rows) {
  constexpr int64_t L = kLanes<C>;
  // kFew rows of the weight at a time, kChains vectors of each. The processor does not prefetch more rows by itself. Fewer
  // chains of additions would not hide their latency.
  constexpr int64_t kFew = L < 4 ? L : 4, kChains = 4;
  const int64_t whole = rows >= L ? columns / (kChains * L) * kChains : 0;
  Vector<C> products[L];
  TAGRANK_UNROLL for (int64_t first = 0; first < L; first += kFew) {
    Vector<C> partial[kFew][kChains] = {};
    for (int64_t block = 0; block < whole; block += kChains) {
      TAGRANK_UNROLL for (int64_t n = 0; n < kChains; ++n) {
        const Vector<C> part = load(a + (block + n) * stride);
        TAGRANK_UNROLL for (int64_t i = 0; i < kFew; ++i) {
          partial[i][n] += part * load(weight + (first + i) * columns + (block + n) * L);
        }
      }
    }
    TAGRANK_UNROLL for (int64_t i = 0; i < kFew; ++i) {
      products[first + i] = (partial[i][0] + partial[i][1]) + (partial[i][2] + partial[i][3]);
    }
  }
  for (int64_t block = whole; block * L < columns; ++block) {
    const Vector<C> part = load(a + block * stride);
    for (int64_t l = 0; l < std::min(L, rows); ++l) {
      products[l] += part * load(weight + l * columns + block * L, columns - block * L);
    }
  }
  return sums<C>(products);
}

// Packs the L rows at `weight`, which has `columns` columns, as vector v of a panel: transposed. Only the first `count` of the
// rows exist, and the others become zeros.
template <typename T, typename C>
TAGRANK_INLINE void pack_rows(const T* weight, int64_t columns, int64_t count, int64_t v, C* panel) {
  constexpr int64_t L = kLanes<C>;
  for (int64_t k = 0; k < columns; k += L) {
    Vector<C> square[L];
    TAGRANK_UNROLL for (int64_t l = 0; l < L; ++l) {
      const T* row = weight + l * columns + k;
      __builtin_prefetch(row + kAhead<C>);
      square[l] = l < count ? load(row, columns - k) : Vector<C>{};
    }
    transpose<C>(square);
    TAGRANK_UNROLL for (int64_t l = 0; l < L; ++l) store(panel + ((k + l) * kWidth + v) * L, square[l]);
  }
}

// Packs the panel of the forward product for the hidden units [unit, unit + L): the rows of weight [4H, columns] for their four
// gates.
template <typename T, typename C>
TAGRANK_INLINE void pack_gates(const T* weight, int64_t hidden, int64_t columns, int64_t unit, C* panel) {
  for (int64_t gate = 0; gate < kWidth; ++gate) {
    pack_rows(weight + (gate * hidden + unit) * columns, columns, hidden - unit, gate, panel);
  }
}

// Packs the columns [column, column + 4 L) of a weight [rows, columns] as a panel. K is the rows, in blocks; the last one is filled
// up with zeros.
template <typename T, typename C>
TAGRANK_INLINE void pack_columns(const T* weight, int64_t rows, int64_t columns, int64_t column, C* panel) {
  constexpr int64_t L = kLanes<C>;
  const int64_t padded = blocks_of<C>(rows) * L;
  for (int64_t k = 0; k < padded; ++k, panel += kWidth * L) {
    const T* row = weight + k * columns + column;
    for (int64_t v = 0; v < kWidth; ++v) {
      const int64_t count = k < rows ? columns - column - v * L : 0;
      store(panel + v * L, count > 0 ? load(row + v * L, count) : Vector<C>{});
    }
  }
}

// Packs the panel of the backward product for the columns [column, column + 4 L) of weight [4H, columns]. K runs over the gates,
// each in blocks of its own.
template <typename T, typename C>
TAGRANK_INLINE void pack_gate_columns(const T* weight, int64_t hidden, int64_t columns, int64_t column, C* panel) {
  const int64_t of_gate = blocks_of<C>(hidden) * kLanes<C> * kWidth * kLanes<C>;
  for (int64_t gate = 0; gate < kWidth; ++gate) {
    pack_columns(weight + gate * hidden * columns, hidden, columns, column, panel + gate * of_gate);
  }
}

}  // namespace tagrank::cpu::TAGRANK_ISA
