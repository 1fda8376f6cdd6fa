// Products on the CPU's matrix unit (Intel AMX). It multiplies pairs of bfloat16 and adds up in float32, in tiles of 16 x 16
// results.
//
// A float is the exact sum of three bfloat16 parts of 8 bits each, the largest first. The product of two floats is the sum of
// the six largest of the nine products of their parts. The three that are left out are below 2^-23 of the result, like the
// rounding of float32. The unit computes the six in less than half the time that vectors take for the product of the floats.
// A bfloat16 is a single part.
//
// Both operands are kept in tiles of 16 rows of 64 bytes. A row of a left matrix has 32 elements of K; a row of a right matrix
// has two elements of K for each of 16 columns. `Operand` says how far apart the tiles are.
#pragma once

#include "simd.h"
#include "team.h"

namespace tagrank::cpu::TAGRANK_ISA {

// The rows of a tile, and of the two tiles that are multiplied at once.
constexpr int64_t kTileRows = 16, kTilePairRows = 32;
// The elements of K in a block, and the elements of a tile.
constexpr int64_t kBlock = 32, kTileSize = 16 * kBlock;

// The number of bfloat16 parts of a T.
template <typename T>
constexpr int64_t kParts = sizeof(T) == 4 ? 3 : 1;

// The number of rows, rounded up to whole pairs of tiles.
constexpr int64_t padded_rows(int64_t rows) { return (rows + kTilePairRows - 1) / kTilePairRows * kTilePairRows; }

// The number of blocks of 32 elements that hold this many blocks of 16.
constexpr int64_t tile_blocks(int64_t blocks) { return (blocks + 1) / 2; }

// The tiles of a matrix. The strides, in elements, lead to the next tile of the same part and block of K (`tile`), to the next
// part (`part`) and to the next block of K (`block`).
struct Operand {
  uint16_t* at;
  int64_t tile, part, block;

  Operand tiles_from(int64_t first) const { return {at + first * tile, tile, part, block}; }
  Operand blocks_from(int64_t first) const { return {at + first * block, tile, part, block}; }
};

// A left matrix with `rows` rows and P parts: [block][part][row][32].
template <int64_t P>
Operand left_operand(uint16_t* at, int64_t rows) {
  return {at, kTileSize, rows * kBlock, P * rows * kBlock};
}

// A right matrix with `tiles` tiles of columns and P parts: [block][part][tile][16 pairs][16][2].
template <int64_t P>
Operand right_operand(uint16_t* at, int64_t tiles) {
  return {at, kTileSize, tiles * kTileSize, P * tiles * kTileSize};
}

#if defined(TAGRANK_TILES)

// Makes the compiler finish all stores before it: it does not know which memory the instructions of the unit read.
TAGRANK_INLINE void finish_stores() { asm volatile("" ::: "memory"); }

// Sets up the tile registers of the thread. The destructor restores the configuration that the thread had before.
class TileRegisters {
 public:
  TileRegisters() {
    _tile_storeconfig(before_);
    finish_stores();
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; ++i) {
      config[16 + 2 * i] = 64;  // bytes of a row
      config[48 + i] = kTileRows;
    }
    finish_stores();
    _tile_loadconfig(config);
  }
  ~TileRegisters() { _tile_loadconfig(before_); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  alignas(64) uint8_t before_[64];
};

// Removes the first part from x and returns its bits, in the upper halves of the lanes. The part is truncated instead of
// rounded, so that it cannot overflow.
TAGRANK_INLINE Bits take_part(Vector<float>& x) {
  const Bits part = bit_cast<Bits>(x) & 0xffff0000u;
  x -= bit_cast<Vector<float>>(part);
  return part;
}

// The P parts of x, the largest first.
template <int P>
TAGRANK_INLINE void split(Vector<float> x, HalfBits (&parts)[P]) {
  TAGRANK_UNROLL for (HalfBits& part : parts) part = __builtin_convertvector(take_part(x) >> 16, HalfBits);
}

// Writes block p of 16 elements of K in a row of a left matrix.
template <int P>
TAGRANK_INLINE void store_left(const Operand& left, int64_t p, int64_t row, Vector<float> x) {
  HalfBits parts[P];
  split<P>(x, parts);
  uint16_t* to = left.at + p / 2 * left.block + row * kBlock + p % 2 * 16;
  TAGRANK_UNROLL for (int part = 0; part < P; ++part) std::memcpy(to + part * left.part, &parts[part], 32);
}

// Writes the 16 columns of a tile in row k of a right matrix.
template <int P>
TAGRANK_INLINE void store_right(const Operand& right, int64_t k, int64_t tile, Vector<float> x) {
  const __mmask32 lanes = k % 2 == 0 ? 0x55555555u : 0xaaaaaaaau;
  uint16_t* to = right.at + k / kBlock * right.block + tile * right.tile + k % kBlock / 2 * kBlock;
  TAGRANK_UNROLL for (int part = 0; part < P; ++part, to += right.part) {
    const Bits bits = take_part(x);
    _mm512_mask_storeu_epi16(to, lanes, bit_cast<__m512i>(k % 2 == 0 ? bits >> 16 : bits));
  }
}

// Writes the 16 columns of a tile in the rows k and k + 1 of a right matrix, for an even k.
template <int P>
TAGRANK_INLINE void store_right_pair(const Operand& right, int64_t k, int64_t tile, Vector<float> x, Vector<float> y) {
  uint16_t* to = right.at + k / kBlock * right.block + tile * right.tile + k % kBlock / 2 * kBlock;
  TAGRANK_UNROLL for (int part = 0; part < P; ++part, to += right.part) {
    const Bits pair = take_part(x) >> 16 | take_part(y);
    std::memcpy(to, &pair, 64);
  }
}

// Writes a tile of a right matrix in each block of K, from the transposed matrix: elements(n, k) returns the elements
// [k, k + 16) of column n.
template <int P, typename Elements>
TAGRANK_INLINE void pack_right(const Operand& right, int64_t blocks, int64_t tile, const Elements& elements) {
  for (int64_t block = 0; block < blocks; ++block) {
    Vector<float> pairs[P][16];
    TAGRANK_UNROLL for (int64_t n = 0; n < 16; ++n) {
      HalfBits halves[2][P];
      split<P>(elements(n, block * kBlock), halves[0]);
      split<P>(elements(n, block * kBlock + 16), halves[1]);
      TAGRANK_UNROLL for (int part = 0; part < P; ++part) {
        const HalfBits both[2] = {halves[0][part], halves[1][part]};
        std::memcpy(&pairs[part][n], both, 64);
      }
    }
    for (int part = 0; part < P; ++part) {
      transpose<float>(pairs[part]);
      uint16_t* to = right.at + block * right.block + part * right.part + tile * right.tile;
      TAGRANK_UNROLL for (int64_t k = 0; k < 16; ++k) std::memcpy(to + k * kBlock, &pairs[part][k], 64);
    }
  }
}

#define TAGRANK_LOAD_LEFT(i)                    \
  _tile_loadd(4, left + (i)*a.part, 2 * kBlock); \
  _tile_loadd(5, left + (i)*a.part + a.tile, 2 * kBlock)
#define TAGRANK_LOAD_RIGHT(i)                    \
  _tile_loadd(6, right + (i)*b.part, 2 * kBlock); \
  _tile_loadd(7, right + (i)*b.part + b.tile, 2 * kBlock)
#define TAGRANK_MULTIPLY   \
  _tile_dpbf16ps(0, 4, 6); \
  _tile_dpbf16ps(1, 4, 7); \
  _tile_dpbf16ps(2, 5, 6); \
  _tile_dpbf16ps(3, 5, 7)

// to += a b (or, if `fresh`, to = a b) for the first two tiles of rows of a and the first two tiles of columns of b, which have
// P and Q parts. `to` has 32 rows of 16 floats for the first tile of columns. The 32 rows for the second tile are `column`
// floats further.
template <int64_t P, int64_t Q>
TAGRANK_INLINE void multiply_tiles(float* to, int64_t column, bool fresh, const Operand& a, const Operand& b,
                                   int64_t blocks) {
  finish_stores();
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, to, 64);
    _tile_loadd(1, to + column, 64);
    _tile_loadd(2, to + kTileRows * 16, 64);
    _tile_loadd(3, to + column + kTileRows * 16, 64);
  }
  const uint16_t *left = a.at, *right = b.at;
  for (int64_t block = 0; block < blocks; ++block, left += a.block, right += b.block) {
    TAGRANK_LOAD_LEFT(0);
    TAGRANK_LOAD_RIGHT(0);
    TAGRANK_MULTIPLY;
    if constexpr (Q == 3) {
      TAGRANK_LOAD_RIGHT(2);
      TAGRANK_MULTIPLY;
      TAGRANK_LOAD_RIGHT(1);
      TAGRANK_MULTIPLY;
    }
    if constexpr (P == 3) {
      TAGRANK_LOAD_LEFT(1);
      TAGRANK_MULTIPLY;
      if constexpr (Q == 3) {
        TAGRANK_LOAD_RIGHT(0);
        TAGRANK_MULTIPLY;
      }
      TAGRANK_LOAD_LEFT(2);
      TAGRANK_MULTIPLY;
    }
  }
  _tile_stored(0, to, 64);
  _tile_stored(1, to + column, 64);
  _tile_stored(2, to + kTileRows * 16, 64);
  _tile_stored(3, to + column + kTileRows * 16, 64);
}

// Multiplies tiles in registers and writes a result that depends on all products. Returns the number of operations, counted as
// products of floats.
inline int64_t tile_multiply_adds(float* result) {
  constexpr int64_t kRepeats = 1000, kProducts = 6;
  const TileRegisters registers;
  alignas(64) float zeros[kTileRows * 16] = {};
  finish_stores();
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t repeat = 0; repeat < kRepeats; ++repeat) {
    TAGRANK_MULTIPLY;
  }
  _tile_stored(0, zeros, 64);
  *result = zeros[0];
  return kRepeats * 4 * 2 * kTileRows * 16 * kBlock / kProducts;
}

#undef TAGRANK_LOAD_LEFT
#undef TAGRANK_LOAD_RIGHT
#undef TAGRANK_MULTIPLY

constexpr bool kHasTiles = true;

#else

constexpr bool kHasTiles = false;
struct TileRegisters {
  TileRegisters() {}
};
// These are never called, because kHasTiles is false.
template <int P>
void store_left(const Operand& left, int64_t p, int64_t row, Vector<float> x);
template <int P>
void store_right(const Operand& right, int64_t k, int64_t tile, Vector<float> x);
template <int P>
void store_right_pair(const Operand& right, int64_t k, int64_t tile, Vector<float> x, Vector<float> y);
template <int P, typename Elements>
void pack_right(const Operand& right, int64_t blocks, int64_t tile, const Elements& elements);
template <int64_t P, int64_t Q>
void multiply_tiles(float* to, int64_t column, bool fresh, const Operand& a, const Operand& b, int64_t blocks);

#endif

}  // namespace tagrank::cpu::TAGRANK_ISA
