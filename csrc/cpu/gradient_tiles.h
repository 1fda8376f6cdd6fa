// The products of the backward pass on the matrix unit, and the tiles of their operands.
#pragma once

#include "product.h"
#include "recurrence.h"
#include "tiles.h"
#include "workspace.h"

namespace tagrank::cpu::TAGRANK_ISA {

template <typename T>
class GradientTiles {
  using C = compute_t<T>;
  static constexpr int64_t L = kLanes<C>;
  // The number of parts of the weight and the hidden states (P), and of the gates' gradients (Q), which are kept as C.
  static constexpr int64_t P = kParts<T>, Q = kParts<C>;

 public:
  // Whether this instruction set has a matrix unit that takes T: float or bfloat16.
  static constexpr bool kAvailable = kHasTiles && std::is_same_v<C, float>;

  // For chunks of `chunk` steps.
  GradientTiles(const BackwardCall<T>& call, int64_t chunk)
      : call_(call),
        blocks_(blocks_of<C>(call.hidden)),
        inputs_(blocks_of<C>(call.outputs)),
        panels_((inputs_ + kWidth - 1) / kWidth),
        rows_(padded_rows(call.batch)),
        chunk_blocks_((chunk * call.batch + kBlock - 1) / kBlock) {}

  void reserve(Workspace& workspace, int64_t workers) {
    workspace.add(weight_, panels_ * panel_size());
    for (uint16_t*& gates : gates_) workspace.add(gates, 2 * blocks_ * Q * rows_ * kBlock);
    workspace.add(hidden_columns_, columns() ? units() * P * chunk_blocks_ * kTileSize : 0);
    workspace.add(gate_columns_, columns() ? 4 * blocks_ * Q * chunk_blocks_ * kTileSize : 0);
    workspace.add(products_, std::max(panels_ * rows_, workers * kTilePairRows) * kWidth * L);
  }

  // Packs panel p of the weight (4 L columns) for multiply().
  void pack(int64_t p) {
    const int64_t H = call_.hidden, O = call_.outputs;
    for (int64_t k = 0; k < 4 * blocks_ * L; k += 2) {
      const int64_t gate = k / (blocks_ * L), unit = k % (blocks_ * L);
      for (int64_t v = 0; v < kWidth; ++v) {
        const int64_t column = (p * kWidth + v) * L, count = O - column;
        const auto row = [&](int64_t i) {
          return i < H && count > 0 ? load(call_.weight_hh + (gate * H + i) * O + column, count) : Vector<C>{};
        };
        store_right_pair<P>(weight(p), k, v, row(unit), row(unit + 1));
      }
    }
  }

  // Packs a worker's share of the hidden states before the steps [first, last). The last block of rows may not be full: the
  // missing rows of the gates' gradients become zeros.
  void gather(int64_t first, int64_t last, int64_t workers, int64_t worker) {
    const int64_t before = call_.rows().at(first), rows = call_.rows().at(last) - before;
    const int64_t blocks = (rows + kBlock - 1) / kBlock;
    const Range own = share(units(), workers, worker), gates = share(4 * blocks_, workers, worker);
    for (int64_t unit = own.begin; unit < own.end; ++unit) {
      const int64_t count = call_.outputs - unit * L;
      for (int64_t k = 0; k < 2 * blocks; ++k) {
        Vector<C> square[L];
        for (int64_t l = 0; l < L; ++l) {
          const int64_t row = k * L + l;
          const T* h = row < rows && count > 0 ? call_.hidden_before(before + row) : nullptr;
          square[l] = h != nullptr ? load(h + unit * L, count) : Vector<C>{};
        }
        transpose<C>(square);
        for (int64_t l = 0; l < L; ++l) store_left<P>(hidden_columns().tiles_from(unit), k, l, square[l]);
      }
    }
    for (int64_t tile = gates.begin; tile < gates.end; ++tile) {
      for (int64_t row = rows; row < blocks * kBlock; ++row) store_right<Q>(gate_columns(), row, tile, Vector<C>{});
    }
  }

  // Stores block p of the gates' gradients of step t: for the product that step t - 1 needs, and as a row of its chunk for the
  // weight's gradient.
  TAGRANK_INLINE void keep(int64_t t, int64_t row, int64_t chunk_row, int64_t p, Vector<C> gradient) {
    store_left<Q>(gates(t), p, row, gradient);
    if (columns()) store_right<Q>(gate_columns(), chunk_row, p, gradient);
  }

  // The number of parts of K to multiply one after another. With it, one part of `rows` rows of the gates' gradients stays in
  // the second-level cache for all panels.
  int64_t parts(int64_t rows) const {
    constexpr int64_t kCached = 1 << 19;
    return (2 * blocks_ * rows * Q * kBlock * static_cast<int64_t>(sizeof(uint16_t)) + kCached - 1) / kCached;
  }

  // Multiplies the gates' gradients of step t with panel p of the weight for 32 rows. Each call adds one part of K.
  void multiply(int64_t t, int64_t p, int64_t row, int64_t part, int64_t parts) {
    const Range k = share(2 * blocks_, parts, part);
    for (int64_t v = 0; v < std::min(kWidth, inputs_ - p * kWidth); v += 2) {
      multiply_tiles<Q, P>(products_ + (p * kWidth + v) * rows_ * L + row * L, rows_ * L, part == 0,
                           gates(t).tiles_from(row / kTileRows).blocks_from(k.begin),
                           weight(p).tiles_from(v).blocks_from(k.begin), k.end - k.begin);
    }
  }

  // Block p of a row of the product.
  Vector<C> product(int64_t p, int64_t row) const { return load(products_ + (p * rows_ + row) * L); }

  // A worker's share of the tiles of the weight's gradient: the gates' gradients, transposed, times the hidden states, summed
  // over these blocks of rows of the chunk. Calls add(row, block, vector) for each block of each row of the weight's gradient.
  template <typename Function>
  void multiply_columns(Range blocks, int64_t workers, int64_t worker, const Function& add) {
    // A product has two tiles of gates and two tiles of hidden units, and is computed transposed.
    const Range own = share(2 * blocks_ * (units() / 2), workers, worker);
    float* products = products_ + worker * kWidth * kTilePairRows * L;
    for (int64_t pair = own.begin; pair < own.end; ++pair) {
      const int64_t gates = pair / (units() / 2) * 2, unit = pair % (units() / 2) * 2;
      multiply_tiles<P, Q>(products, kTilePairRows * L, /*fresh=*/true,
                           hidden_columns().tiles_from(unit).blocks_from(blocks.begin),
                           gate_columns().tiles_from(gates).blocks_from(blocks.begin), blocks.end - blocks.begin);
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t tile = gates + i / 2, first = tile % blocks_ * L;
        if (unit + i % 2 >= inputs_) continue;
        Vector<C> square[L];
        TAGRANK_UNROLL for (int64_t l = 0; l < L; ++l) {
          square[l] = load(products + (i / 2 * kTilePairRows + i % 2 * kTileRows + l) * L);
        }
        transpose<C>(square);
        for (int64_t l = 0; l < std::min(L, call_.hidden - first); ++l) {
          add(tile / blocks_ * call_.hidden + first + l, unit + i % 2, square[l]);
        }
      }
    }
  }

 private:
  // Whether columns are packed: only the weight's gradient needs them.
  bool columns() const { return call_.d_weight_hh != nullptr; }
  // The number of tiles of hidden states, rounded up to an even number.
  int64_t units() const { return tile_blocks(inputs_) * 2; }
  int64_t panel_size() const { return 2 * blocks_ * P * kWidth * kTileSize; }
  Operand weight(int64_t p) const { return right_operand<P>(weight_ + p * panel_size(), kWidth); }
  Operand gates(int64_t t) const { return left_operand<Q>(gates_[t % 2], rows_); }
  Operand hidden_columns() const {
    return {hidden_columns_, P * chunk_blocks_ * kTileSize, kTileSize, P * kTileSize};
  }
  Operand gate_columns() const { return {gate_columns_, Q * chunk_blocks_ * kTileSize, kTileSize, Q * kTileSize}; }

  const BackwardCall<T> call_;
  const int64_t blocks_, inputs_;  // of H, and of O
  const int64_t panels_, rows_, chunk_blocks_;
  uint16_t* weight_;          // [panels][blocks of K][parts][4 tiles]
  uint16_t* gates_[2];        // [blocks of K][parts][rows][32], for two steps that take turns
  uint16_t* hidden_columns_;  // [tiles of hidden states][blocks of the chunk's rows][parts][tile]
  uint16_t* gate_columns_;    // [tiles of gates][blocks of the chunk's rows][parts][tile]
  float* products_;           // [panels][4][rows][L]
};

}  // namespace tagrank::cpu::TAGRANK_ISA
