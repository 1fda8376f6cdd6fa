// The forward pass of one instruction set.
#pragma once

#include <optional>

#include "activations.h"
#include "product.h"
#include "projection.h"
#include "recurrence.h"
#include "tiles.h"
#include "workspace.h"

namespace tagrank::cpu::TAGRANK_ISA {

template <typename T>
class Forward {
  using C = compute_t<T>;
  static constexpr int64_t L = kLanes<C>;

 public:
  Forward(const ForwardCall<T>& call, int64_t threads)
      : call_(call),
        panels_(blocks_of<C>(call.hidden)),
        inputs_(blocks_of<C>(call.outputs)),
        grid_(Grid::over(threads, call.batch, panels_, elements(), elements() * static_cast<int64_t>(sizeof(C)))),
        first_product_(call.h0 == nullptr ? 1 : 0),
        packed_(call.steps > first_product_ && call.batch * call.steps > kUnpackedRows),
        on_matrix_unit_(kTiles && packed_ && call.batch >= kTilePairRows),
        padded_rows_(padded_rows(call.batch)),
        rows_(call.rows()),
        shares_(grid_, rows_, on_matrix_unit_ ? kTilePairRows : 1),
        projection_(call, packed_) {
    workspace_.add(weight_, packed_ && !on_matrix_unit_ ? panels_ * panel_size() : 0);
    workspace_.add(cells_, call.cells == nullptr ? call.batch * call.hidden : 0);
    for (C*& hidden : hidden_) workspace_.add(hidden, on_matrix_unit_ ? 0 : inputs_ * call.batch * L);
    projection_.reserve(workspace_);
    if (on_matrix_unit_) {
      workspace_.add(tile_weight_, panels_ * tile_panel_size());
      for (uint16_t*& left : left_) workspace_.add(left, tile_blocks(inputs_) * P * padded_rows_ * kBlock);
      workspace_.add(products_, grid_.workers() * kWidth * kTilePairRows * L);
    }
    workspace_.allocate();
  }

  void run(const Threads& threads) {
    Barrier barrier(grid_.workers());
    threads.run(grid_.workers(), [&](int64_t begin, int64_t end) {
      std::optional<TileRegisters> registers;
      if (on_matrix_unit_) registers.emplace();
      for (int64_t worker = begin; worker < end; ++worker) prepare(worker);
      barrier.wait(end - begin);
      for (int64_t t = 0; t < call_.steps; ++t) {
        for (int64_t worker = begin; worker < end; ++worker) step(t, worker);
        if (grid_.columns > 1) barrier.wait(end - begin);
        if (call_.weight_hr == nullptr) continue;
        for (int64_t worker = begin; worker < end; ++worker) project(t, worker);
        if (grid_.columns > 1) barrier.wait(end - begin);
      }
    });
  }

 private:
  int64_t elements() const { return (call_.weight_hr != nullptr ? 5 : 4) * call_.hidden * call_.outputs; }
  // Packing the weight takes about as long as this many products of the weight with a vector.
  static constexpr int64_t kUnpackedRows = 24;

  static constexpr bool kTiles = kHasTiles && std::is_same_v<C, float>;
  static constexpr int64_t P = kParts<T>;

  int64_t panel_size() const { return inputs_ * L * kWidth * L; }
  int64_t tile_panel_size() const { return tile_blocks(inputs_) * P * kWidth * kTileSize; }
  Operand hidden_tiles(int64_t t) const { return left_operand<P>(left_[t % 2], padded_rows_); }
  Operand weight_tiles(int64_t p) const { return right_operand<P>(tile_weight_ + p * tile_panel_size(), kWidth); }

  void pack(int64_t p) {
    if (!on_matrix_unit_) {
      return pack_gates(call_.weight_hh, call_.hidden, call_.outputs, p * L, weight_ + p * panel_size());
    }
    if constexpr (kTiles) {
      const int64_t H = call_.hidden, K = call_.outputs;
      for (int64_t gate = 0; gate < kWidth; ++gate) {
        pack_right<P>(weight_tiles(p), tile_blocks(inputs_), gate, [&](int64_t n, int64_t k) {
          const int64_t unit = p * L + n;
          return unit < H && k < K ? load(call_.weight_hh + (gate * H + unit) * K + k, K - k) : Vector<C>{};
        });
      }
    }
  }

  // Stores block p of a row of h_{t-1} for the product of step t.
  void keep(int64_t t, int64_t p, int64_t row, Vector<C> h) {
    if constexpr (kTiles) {
      if (on_matrix_unit_) {
        store_left<P>(hidden_tiles(t), p, row, h);
        // An odd last block of 16 leaves half of a block of 32, which becomes zeros.
        if (p % 2 == 0 && p == inputs_ - 1) store_left<P>(hidden_tiles(t), p + 1, row, Vector<C>{});
        return;
      }
    }
    store(hidden_[t % 2] + (p * call_.batch + row) * L, h);
  }

  void prepare(int64_t worker) {
    if (packed_ && grid_.rows > 1) {
      const Range own = share(panels_, grid_.workers(), worker);
      for (int64_t p = own.begin; p < own.end; ++p) pack(p);
    }
    projection_.pack(grid_.workers(), worker);
    if (call_.h0 == nullptr) return;
    const Range rows = share(call_.batch, grid_.workers(), worker);
    for (int64_t p = 0; p < inputs_; ++p) {
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        keep(0, p, row, load(call_.h0 + row * call_.outputs + p * L, call_.outputs - p * L));
      }
    }
  }

  void step(int64_t t, int64_t worker) {
    if constexpr (kTiles) {
      if (on_matrix_unit_) return matrix_unit_step(t, worker);
    }
    const Range rows = rows_.in(t, shares_.of(worker)), panels = grid_.column_share(worker, panels_);
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      // A panel that only this worker needs is packed immediately before its first use.
      if (t == first_product_ && packed_ && grid_.rows == 1) pack(p);
      const C* next = weight_ + (p + 1 < panels.end ? p + 1 : panels.begin) * panel_size();
      for_each_tile(rows, [&](Range part, int64_t i) { tile<kRows>(t, p, part, Ahead<C>::of_tile(i, next, inputs_)); });
    }
  }

  // step() on the matrix unit: a product has 32 batch rows of two gates.
  void matrix_unit_step(int64_t t, int64_t worker) {
    const Range rows = rows_.in(t, shares_.of(worker)), panels = grid_.column_share(worker, panels_);
    const int64_t H = call_.hidden;
    float* products = products_ + worker * kWidth * kTilePairRows * L;
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      if (t == first_product_ && grid_.rows == 1) pack(p);
      for (int64_t row = rows.begin; row < rows.end; row += kTilePairRows) {
        for (int64_t gate = 0; t >= first_product_ && gate < kWidth; gate += 2) {
          multiply_tiles<P, P>(products + gate * kTilePairRows * L, kTilePairRows * L, /*fresh=*/true,
                               hidden_tiles(t).tiles_from(row / kTileRows), weight_tiles(p).tiles_from(gate),
                               tile_blocks(inputs_));
        }
        for (int64_t m = 0; m < std::min(kTilePairRows, rows.end - row); ++m) {
          const T* gates_x = call_.gates_x + ((call_.constant ? 0 : rows_.at(t)) + row + m) * 4 * H + p * L;
          Vector<C> gates[kWidth];
          TAGRANK_UNROLL for (int64_t gate = 0; gate < kWidth; ++gate) {
            gates[gate] = load(gates_x + gate * H, H - p * L);
            if (t >= first_product_) gates[gate] += load(products + (gate * kTilePairRows + m) * L);
          }
          cell(t, p, row + m, gates);
        }
      }
    }
  }

  template <int M>
  void tile(int64_t t, int64_t p, Range rows, Ahead<C> ahead) {
    if constexpr (M > 1) {
      if (rows.end - rows.begin < M) return tile<M - 1>(t, p, rows, ahead);
    }
    const int64_t row = rows.begin;
    const int64_t H = call_.hidden, B = call_.batch, count = H - p * L;
    const T* gates_x = call_.gates_x + ((call_.constant ? 0 : rows_.at(t)) + row) * 4 * H + p * L;
    for (int m = 0; m < M; ++m) {
      for (int64_t gate = 0; gate < kWidth; ++gate) __builtin_prefetch(gates_x + (m * 4 + gate) * H);
    }
    Vector<C> gates[M][kWidth] = {};
    if (t >= first_product_) {
      const C* h = hidden_[t % 2] + row * L;
      if (packed_) {
        multiply<M>(gates, h, B * L, weight_ + p * panel_size(), inputs_, ahead);
      } else {
        add_dots<M>(gates, h, p);
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int64_t gate = 0; gate < kWidth; ++gate) gates[m][gate] += load(gates_x + (m * 4 + gate) * H, count);
    }
    for (int m = 0; m < M; ++m) cell(t, p, row + m, gates[m]);
  }

  // Adds the products with the weight as it is, not packed.
  template <int M>
  TAGRANK_INLINE void add_dots(Vector<C> (&gates)[M][kWidth], const C* h, int64_t p) {
    const int64_t H = call_.hidden, K = call_.outputs, unit = p * L;
    for (int m = 0; m < M; ++m) {
      for (int64_t gate = 0; gate < kWidth; ++gate) {
        const T* weight = call_.weight_hh + (gate * H + unit) * K;
        gates[m][gate] += dot(h + m * L, call_.batch * L, weight, K, H - unit);
      }
    }
  }

  // Equations (2)-(7) of Yan, Wang and Liao (2016) for L hidden units of one row, from the gates before activation.
  TAGRANK_INLINE void cell(int64_t t, int64_t p, int64_t row, const Vector<C> (&gates)[kWidth]) {
    const int64_t H = call_.hidden, count = H - p * L, at = row * H + p * L, first = rows_.at(t);
    const Vector<C> i = sigmoid(gates[0]), f = sigmoid(gates[1]), g = tanh(gates[2]), o = sigmoid(gates[3]);
    C* kept = call_.cells == nullptr ? cells_ + at : call_.cells + first * H + at;
    Vector<C> c_prev{};
    if (t > 0) {
      c_prev = load(call_.cells == nullptr ? kept : call_.cells + rows_.at(t - 1) * H + at, count);
    } else if (call_.c0 != nullptr) {
      c_prev = load(call_.c0 + at, count);
    }
    const Vector<C> c = f * c_prev + i * g;
    const Vector<C> h = rounded<T>(o * tanh(c));
    store(kept, c, count);
    if (rows_.ends(t, row)) store(call_.c_n + at, c, count);
    if (call_.weight_hr != nullptr) {
      projection_.keep(p, row, first_lanes<C>(h, count));
    } else {
      finish(t, p, row, h);
    }
    if (call_.gates != nullptr) {
      T* saved = call_.gates + (first + row) * 4 * H + p * L;
      store(saved, i, count);
      store(saved + H, f, count);
      store(saved + 2 * H, g, count);
      store(saved + 3 * H, o, count);
    }
  }

  // Writes block p of a row of h_t.
  TAGRANK_INLINE void finish(int64_t t, int64_t p, int64_t row, Vector<C> h) {
    const int64_t count = call_.outputs - p * L;
    store(call_.output + (rows_.at(t) + row) * call_.outputs + p * L, h, count);
    keep(t + 1, p, row, first_lanes<C>(h, count));
  }

  // Projects the hidden states of step t. Workers in one row of the grid have parts of a hidden state, and share its row.
  void project(int64_t t, int64_t worker) {
    const Range own = grid_.columns == 1 ? rows_.in(t, shares_.of(worker)) : share(rows_.count(t), grid_.workers(), worker);
    projection_.project(own, [&](int64_t p, int64_t row, Vector<C> h) { finish(t, p, row, h); });
  }

  const ForwardCall<T> call_;
  const int64_t panels_;         // the blocks of H
  const int64_t inputs_;         // the blocks of O, which are those of K in the product
  const Grid grid_;
  const int64_t first_product_;  // the first step that has a product
  const bool packed_;            // whether the weight is packed
  const bool on_matrix_unit_;    // whether the matrix unit computes the products
  const int64_t padded_rows_;    // B, rounded up to whole pairs of tiles
  const Rows rows_;
  const RowShares shares_;
  Projection<T> projection_;
  Workspace workspace_;
  C* weight_;              // [panels][K][4][L]
  C* cells_;               // [B, H], if the call does not save the cell states
  C* hidden_[2];           // h_{t-1} and h_t in blocks; they take turns
  // On the matrix unit, instead of weight_ and hidden_:
  uint16_t* tile_weight_;  // [panels][blocks of K][parts][4 tiles]
  uint16_t* left_[2];      // [blocks of K][parts][rows][32]
  float* products_;        // [workers][4][32][L]
};

}  // namespace tagrank::cpu::TAGRANK_ISA
