// The instructions of Intel's AMX that csrc/cpu/tiles.h uses, in plain C++, for CPUs that lack them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace emulated {

inline thread_local unsigned char tiles[8][16][64];

inline void load(int tile, const void* from, long stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(tiles[tile][row], static_cast<const char*>(from) + row * stride, 64);
}
inline void store(int tile, void* to, long stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile][row], 64);
}
inline void clear(int tile) { std::memset(tiles[tile], 0, sizeof tiles[tile]); }

inline float widened(const unsigned char* bfloat16) {
  uint32_t bits = 0;
  std::memcpy(reinterpret_cast<unsigned char*>(&bits) + 2, bfloat16, 2);
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// c += a b: each element of c is float32, each of a and b a pair of bfloat16.
inline void multiply(int c, int a, int b) {
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 16; ++column) {
      float sum;
      std::memcpy(&sum, tiles[c][row] + 4 * column, 4);
      for (int k = 0; k < 32; ++k) {
        sum += widened(tiles[a][row] + 2 * k) * widened(tiles[b][k / 2] + 4 * column + 2 * (k % 2));
      }
      std::memcpy(tiles[c][row] + 4 * column, &sum, 4);
    }
  }
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadd(tile, from, stride) emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::store(tile, to, stride)
#define _tile_zero(tile) emulated::clear(tile)
#define _tile_dpbf16ps(c, a, b) emulated::multiply(c, a, b)
#define _tile_loadconfig(config) static_cast<void>(config)
#define _tile_storeconfig(config) static_cast<void>(config)
