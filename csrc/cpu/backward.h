// The backward pass of one instruction set. It goes back in time a chunk of steps at a time. The chunk's part of the weight's
// gradient is computed while its operands are in the cache, and the gates' gradients and recomputed gates are kept only for a
// chunk.
#pragma once

#include <optional>

#include "activations.h"
#include "gradient_tiles.h"
#include "product.h"
#include "projection_gradient.h"
#include "recurrence.h"
#include "workspace.h"

namespace tagrank::cpu::TAGRANK_ISA {

template <typename T>
class Backward {
  using C = compute_t<T>;
  static constexpr int64_t L = kLanes<C>;

 public:
  Backward(const BackwardCall<T>& call, int64_t threads)
      : call_(call),
        recompute_(call.gates == nullptr),
        projects_(call.weight_hr != nullptr),
        blocks_(blocks_of<C>(call.hidden)),
        panels_((blocks_ + kWidth - 1) / kWidth),
        inputs_(blocks_of<C>(call.outputs)),
        grid_(Grid::over(threads, call.batch, panels_, elements(), elements() * static_cast<int64_t>(sizeof(C)))),
        chunk_(std::clamp<int64_t>(kChunkRows / std::max<int64_t>(call.batch, 1), 1, call.steps)),
        stride_(chunk_ * call.batch * L),
        on_matrix_unit_(GradientTiles<T>::kAvailable && !recompute_ && call.steps > 1 && call.batch >= kTilePairRows),
        rows_(call.rows()),
        shares_(grid_, rows_, on_matrix_unit_ ? kTilePairRows : 1),
        tiles_(call, chunk_),
        projection_(call) {
    const int64_t sums = call.constant ? call.batch * 4 * call.hidden : 0;
    workspace_.add(weight_, has_products() && !on_matrix_unit_ ? product_panels() * panel_size() : 0);
    workspace_.add(gate_weight_, recompute_ ? blocks_ * gate_panel_size() : 0);
    workspace_.add(gates_, recompute_ ? chunk_ * call.batch * 4 * call.hidden : 0);
    workspace_.add(hidden_, has_hidden() && !on_matrix_unit_ ? inputs_ * stride_ : 0);
    workspace_.add(grad_gates_[0], !on_matrix_unit_ ? 4 * blocks_ * stride_ : 0);
    workspace_.add(grad_gates_[1], !on_matrix_unit_ && chunk_ < call.steps ? 4 * blocks_ * stride_ : 0);
    if (on_matrix_unit_) tiles_.reserve(workspace_, grid_.workers());
    workspace_.add(grad_c_, call.batch * call.hidden);
    workspace_.add(partial_, grid_.columns * call.batch * kWidth * L);
    // Sums are kept in C: in the result itself if T is C.
    workspace_.add(grad_sum_, kSame ? 0 : sums);
    workspace_.add(grad_weight_, kSame || !has_weight() ? 0 : 4 * call.hidden * call.outputs);
    projection_.reserve(workspace_);
    workspace_.allocate();
    if constexpr (kSame) {
      grad_sum_ = call.d_gates_x;
      grad_weight_ = call.d_weight_hh;
    }
  }

  void run(const Threads& threads) {
    Barrier barrier(grid_.workers());
    threads.run(grid_.workers(), [&](int64_t begin, int64_t end) {
      const auto each = [&](auto&& phase) {
        for (int64_t worker = begin; worker < end; ++worker) phase(worker);
      };
      const auto meet = [&] { barrier.wait(end - begin); };
      std::optional<TileRegisters> registers;
      if (on_matrix_unit_) registers.emplace();
      each([&](int64_t worker) { prepare(worker); });
      meet();
      for (int64_t last = call_.steps; last > 0; last -= chunk_) {
        const int64_t first = std::max<int64_t>(last - chunk_, 0);
        if (has_hidden()) each([&](int64_t worker) { gather(first, last, worker); });
        if (recompute_) {
          meet();
          each([&](int64_t worker) { recompute(first, last, worker); });
          meet();
        }
        for (int64_t t = last - 1; t >= first; --t) {
          each([&](int64_t worker) { step(t, worker); });
          if (grid_.columns > 1) meet();
          if (!projects_) continue;
          each([&](int64_t worker) { project(t, worker); });
          if (grid_.columns > 1) meet();
        }
        meet();
        if (!has_weight()) continue;
        each([&](int64_t worker) { add_to_weight(first, last, worker); });
        meet();
      }
      if (call_.d_h0 != nullptr) each([&](int64_t worker) { step(-1, worker); });
    });
  }

 private:
  int64_t elements() const { return (projects_ ? 5 : 4) * call_.hidden * call_.outputs; }
  static constexpr bool kSame = sizeof(T) == sizeof(C);
  // The rows of the product for the weight's gradient: so many that reading and writing that gradient is cheap.
  static constexpr int64_t kChunkRows = 256;
  // The blocks of K that are multiplied at once: this part of a panel (256 KB) stays in the cache for all rows.
  static constexpr int64_t kDepth = 262144 / (L * kWidth * L * sizeof(C));
  // The size of a tile of the weight's gradient: kTileGates gates by kTileVectors vectors of hidden units.
  static constexpr int kTileGates = std::min<int64_t>(L, kRows > 4 ? 8 : 4);
  static constexpr int kTileVectors = 3;

  // How many rows ahead cell()'s reads are prefetched.
  static constexpr int64_t kRowsAhead = 2;

  // Whether the weight's gradient is computed, and whether the hidden states are gathered: for that gradient, or to compute the
  // gates again.
  bool has_weight() const { return call_.d_weight_hh != nullptr; }
  bool has_hidden() const { return has_weight() || recompute_; }
  bool has_products() const { return call_.steps > 1 || call_.d_h0 != nullptr; }
  int64_t first_product() const { return call_.steps - 2; }
  // The panels of the product with the weight, which has a column for each of O.
  int64_t product_panels() const { return (inputs_ + kWidth - 1) / kWidth; }
  int64_t panel_size() const { return 4 * blocks_ * L * kWidth * L; }
  int64_t gate_panel_size() const { return blocks_ * L * kWidth * L; }
  // The first step of the chunk of step t. Chunks are counted from the last step.
  int64_t first_of(int64_t t) const {
    return std::max<int64_t>(call_.steps - ((call_.steps - 1 - t) / chunk_ + 1) * chunk_, 0);
  }
  // The rows of its chunk before step t.
  int64_t in_chunk(int64_t t) const { return rows_.at(t) - rows_.at(first_of(t)); }
  // The gates' gradients of step t, in blocks. Chunks have two buffers in turn, because a chunk begins with the gradients of
  // the chunk after it.
  C* grad_gates(int64_t t) const {
    const int64_t buffer = (call_.steps - 1 - t) / chunk_ % 2;
    return grad_gates_[buffer] + in_chunk(t) * L;
  }
  const T* gates_of(int64_t t) const {
    return recompute_ ? gates_ + in_chunk(t) * 4 * call_.hidden : call_.gates + rows_.at(t) * 4 * call_.hidden;
  }
  const T* grad_output(int64_t t, int64_t row, int64_t p) const {
    const int64_t* strides = call_.grad_output_strides;
    const int64_t before = call_.first_rows != nullptr ? rows_.at(t) * strides[1] : t * strides[0];
    return call_.grad_output + before + row * strides[1] + p * L * strides[2];
  }

  void pack(int64_t p) {
    if constexpr (GradientTiles<T>::kAvailable) {
      if (on_matrix_unit_) return tiles_.pack(p);
    }
    pack_gate_columns(call_.weight_hh, call_.hidden, call_.outputs, p * kWidth * L, weight_ + p * panel_size());
  }
  // Whether a panel is packed immediately before its first use, because only one worker needs it.
  bool packs_late() const { return grid_.rows == 1 && !projects_; }

  void prepare(int64_t worker) {
    if (has_products() && !packs_late()) {
      const Range own = share(product_panels(), grid_.workers(), worker);
      for (int64_t p = own.begin; p < own.end; ++p) pack(p);
    }
    projection_.pack(grid_.workers(), worker);
    if (recompute_) {
      const Range own = share(blocks_, grid_.workers(), worker);
      for (int64_t p = own.begin; p < own.end; ++p) {
        pack_gates(call_.weight_hh, call_.hidden, call_.outputs, p * L, gate_weight_ + p * gate_panel_size());
      }
    }
    const Range rows = shares_.of(worker);
    const Range panels = grid_.column_share(worker, panels_);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      for (int64_t p = panels.begin * kWidth; p < std::min(panels.end * kWidth, blocks_); ++p) {
        const int64_t at = row * call_.hidden + p * L, count = call_.hidden - p * L;
        store(grad_c_ + at, call_.grad_c_n != nullptr ? load(call_.grad_c_n + at, count) : Vector<C>{}, count);
      }
    }
  }

  // Copies the hidden states before the steps [first, last) into blocks.
  void gather(int64_t first, int64_t last, int64_t worker) {
    if constexpr (GradientTiles<T>::kAvailable) {
      if (on_matrix_unit_) return tiles_.gather(first, last, grid_.workers(), worker);
    }
    const Range rows = grid_.row_share(worker, rows_.at(last) - rows_.at(first)), own = grid_.column_share(worker, inputs_);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const T* h = call_.hidden_before(rows_.at(first) + row);
      for (int64_t p = own.begin; p < own.end; ++p) {
        store(hidden_ + p * stride_ + row * L, h != nullptr ? load(h + p * L, call_.outputs - p * L) : Vector<C>{});
      }
    }
  }

  // Computes the gates of the steps [first, last) again.
  void recompute(int64_t first, int64_t last, int64_t worker) {
    const Range rows = grid_.row_share(worker, (last - first) * call_.batch), own = grid_.column_share(worker, blocks_);
    for (int64_t p = own.begin; p < own.end; ++p) {
      for_each_tile(rows, [&](Range part, int64_t) { gate_tile<kRows>(first, p, part); });
    }
  }

  template <int M>
  void gate_tile(int64_t first, int64_t p, Range rows) {
    if constexpr (M > 1) {
      if (rows.end - rows.begin < M) return gate_tile<M - 1>(first, p, rows);
    }
    const int64_t H = call_.hidden, B = call_.batch, count = H - p * L;
    Vector<C> gates[M][kWidth];
    for (int m = 0; m < M; ++m) {
      const int64_t row = rows.begin + m;
      const T* gates_x = call_.gates_x + (call_.constant ? row % B : first * B + row) * 4 * H + p * L;
      for (int64_t gate = 0; gate < kWidth; ++gate) gates[m][gate] = load(gates_x + gate * H, count);
    }
    multiply<M>(gates, hidden_ + rows.begin * L, stride_, gate_weight_ + p * gate_panel_size(), blocks_,
                {gate_weight_, 0});
    for (int m = 0; m < M; ++m) {
      T* to = gates_ + (rows.begin + m) * 4 * H + p * L;
      store(to, sigmoid(gates[m][0]), count);
      store(to + H, sigmoid(gates[m][1]), count);
      store(to + 2 * H, tanh(gates[m][2]), count);
      store(to + 3 * H, sigmoid(gates[m][3]), count);
    }
  }

  // Computes the gates' gradients of step t from those of step t + 1 or, for t = -1, the gradient of h0. With a projection, the
  // gradients of the projected states, of which project() computes the gates' gradients.
  void step(int64_t t, int64_t worker) {
    if constexpr (GradientTiles<T>::kAvailable) {
      if (on_matrix_unit_) return matrix_unit_step(t, worker);
    }
    const Range own = product_rows(worker), panels = product_columns(worker);
    // Only the rows that step t + 1 has get a product.
    const int64_t all = t + 1 < call_.steps ? 4 * blocks_ : 0;
    const Range rows = all > 0 ? rows_.in(t + 1, own) : Range{own.begin, own.begin};
    const Range others{rows.end, t < 0 ? own.end : rows_.in(t, own).end};
    const int64_t depth = rows.end - rows.begin > kRows ? kDepth : all;
    C* partial = partial_ + worker % grid_.columns * call_.batch * kWidth * L;
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      if (all > 0 && t == first_product() && packs_late()) pack(p);
      for_each_tile(others, [&](Range part, int64_t) {
        tile<kRows>(t, p, part, Range{0, 0}, /*complete=*/true, nullptr, Ahead<C>{weight_, 0});
      });
      Range k{0, std::min(depth, all)};
      while (rows.end > rows.begin) {
        // Prefetches the part of the weight that follows this one, or the worker's first panel after its last one.
        const int64_t from = (p - panels.begin) * all + k.end, next = from < (panels.end - panels.begin) * all ? from : 0;
        const C* there = weight_ + panels.begin * panel_size() + next * L * kWidth * L;
        for_each_tile(rows, [&](Range part, int64_t i) {
          tile<kRows>(t, p, part, k, k.end == all, partial + part.begin * kWidth * L,
                      Ahead<C>::of_tile(i, there, k.end - k.begin));
        });
        if (k.end == all) break;
        k = {k.end, std::min(k.end + depth, all)};
      }
    }
  }

  // A worker's share of the product with the weight. If a projection leaves fewer panels than there are workers for a row, the
  // workers share the rows instead.
  bool by_rows() const { return product_panels() < grid_.columns; }
  Range product_rows(int64_t worker) const {
    if (!by_rows()) return shares_.of(worker);
    const int64_t unit = on_matrix_unit_ ? kTilePairRows : 1;
    const Range own = share((call_.batch + unit - 1) / unit, grid_.workers(), worker);
    return {own.begin * unit, std::min(own.end * unit, call_.batch)};
  }
  Range product_columns(int64_t worker) const {
    return by_rows() ? Range{0, product_panels()} : grid_.column_share(worker, product_panels());
  }

  // step() on the matrix unit, 32 batch rows at a time.
  void matrix_unit_step(int64_t t, int64_t worker) {
    const Range own = product_rows(worker), rows = t < 0 ? own : rows_.in(t, own);
    const Range panels = product_columns(worker);
    // Only the rows up to here, which step t + 1 has, get a product.
    const int64_t products = t + 1 < call_.steps ? rows_.in(t + 1, own).end : own.begin;
    const int64_t parts = products > own.begin ? tiles_.parts(rows.end - rows.begin) : 1;
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t p = panels.begin; p < panels.end; ++p) {
        if (part == 0 && t == first_product() && packs_late()) pack(p);
        for (int64_t row = rows.begin; row < rows.end; row += kTilePairRows) {
          if (row < products) tiles_.multiply(t + 1, p, row, part, parts);
          if (part < parts - 1) continue;
          for (int64_t m = row; m < std::min(row + kTilePairRows, rows.end); ++m) {
            if (t >= 0 && !projects_) prefetch(t, p, std::min(m + kRowsAhead, rows.end - 1));
            for (int64_t v = p * kWidth; v < std::min((p + 1) * kWidth, inputs_); ++v) {
              state(t, v, m, m < products ? tiles_.product(v, m) : Vector<C>{});
            }
          }
        }
      }
    }
  }

  template <int M>
  void tile(int64_t t, int64_t p, Range rows, Range k, bool complete, C* partial, Ahead<C> ahead) {
    if constexpr (M > 1) {
      if (rows.end - rows.begin < M) return tile<M - 1>(t, p, rows, k, complete, partial, ahead);
    }
    if (complete && t >= 0 && !projects_) {
      for (int m = 0; m < M; ++m) prefetch(t, p, rows.begin + m);
    }
    Vector<C> grad_h[M][kWidth] = {};
    if (k.begin > 0) {
      for (int64_t i = 0; i < M * kWidth; ++i) grad_h[i / kWidth][i % kWidth] = load(partial + i * L);
    }
    if (k.end > k.begin) {
      multiply<M>(grad_h, grad_gates(t + 1) + k.begin * stride_ + rows.begin * L, stride_,
                  weight_ + p * panel_size() + k.begin * L * kWidth * L, k.end - k.begin, ahead);
    }
    if (!complete) {
      for (int64_t i = 0; i < M * kWidth; ++i) store(partial + i * L, grad_h[i / kWidth][i % kWidth]);
      return;
    }
    for (int m = 0; m < M; ++m) {
      for (int64_t v = 0; v < std::min(kWidth, inputs_ - p * kWidth); ++v) {
        state(t, p * kWidth + v, rows.begin + m, grad_h[m][v]);
      }
    }
  }

  // Completes the gradient of block p of a row of h_t, which gets grad_h from step t + 1, and goes on with it: to the cell or, with
  // a projection, to project(). For t = -1 stores the gradient of h0.
  TAGRANK_INLINE void state(int64_t t, int64_t p, int64_t row, Vector<C> grad_h) {
    const int64_t count = call_.outputs - p * L, at = row * call_.outputs + p * L;
    if (t < 0) return store(call_.d_h0 + at, grad_h, count);
    const T* from_output = grad_output(t, row, p);
    Vector<C> dh = grad_h + (call_.grad_output_strides[2] == 0 ? all_lanes(from_output) : load(from_output, count));
    if (rows_.ends(t, row) && call_.grad_h_n != nullptr) dh += load(call_.grad_h_n + at, count);
    if (!projects_) return cell(t, p, row, dh);
    projection_.keep(p, row, first_lanes<C>(dh, count));
    if (call_.d_projected != nullptr) store(call_.d_projected + rows_.at(t) * call_.outputs + at, dh, count);
  }

  // Computes the gates' gradients of step t from those of the projected states.
  void project(int64_t t, int64_t worker) {
    projection_.each_state(
        rows_.in(t, shares_.of(worker)), grid_.column_share(worker, panels_),
        [&](int64_t p, int64_t row) { prefetch(t, p, row); },
        [&](int64_t p, int64_t row, Vector<C> dh) { cell(t, p, row, dh); });
  }

  // Prefetches what cell() will read for one row of a panel. Meanwhile the product is computed.
  TAGRANK_INLINE void prefetch(int64_t t, int64_t p, int64_t row) const {
    const int64_t H = call_.hidden, at = row * H + p * kWidth * L;
    const T* gates = gates_of(t) + row * 4 * H + p * kWidth * L;
    for (int64_t v = 0; v < kWidth; ++v) {
      for (int64_t gate = 0; gate < kWidth; ++gate) __builtin_prefetch(gates + gate * H + v * L);
      __builtin_prefetch(call_.cells + rows_.at(t) * H + at + v * L);
      __builtin_prefetch(call_.cells + rows_.at(std::max<int64_t>(t - 1, 0)) * H + at + v * L);
      if (!projects_) __builtin_prefetch(grad_output(t, row, p * kWidth + v));
      __builtin_prefetch(grad_c_ + at + v * L);
      for (int64_t gate = 0; on_matrix_unit_ && call_.constant && gate < kWidth; ++gate) {
        __builtin_prefetch(grad_sum_ + (row * 4 + gate) * H + (p * kWidth + v) * L);
      }
    }
  }

  // The chain rule through equations (2)-(7) of Yan, Wang and Liao (2016), from the last to the first, for L hidden units
  // of one row. dh is the gradient of h_t.
  TAGRANK_INLINE void cell(int64_t t, int64_t p, int64_t row, Vector<C> dh) {
    const int64_t H = call_.hidden, count = H - p * L, at = row * H + p * L;
    const T* gates = gates_of(t) + row * 4 * H + p * L;
    const Vector<C> i = load(gates, count), f = load(gates + H, count);
    const Vector<C> g = load(gates + 2 * H, count), o = load(gates + 3 * H, count);
    const C* c = call_.cells + rows_.at(t) * H + at;
    const bool ends = rows_.ends(t, row);
    Vector<C> c_prev{};
    if (t > 0) {
      c_prev = load(call_.cells + rows_.at(t - 1) * H + at, count);
    } else if (call_.c0 != nullptr) {
      c_prev = load(call_.c0 + at, count);
    }
    const Vector<C> tanh_c = tanh(load(c, count));
    if (call_.states != nullptr) store(call_.states + rows_.at(t) * H + at, o * tanh_c, count);
    const Vector<C> dc = load(grad_c_ + at, count) + dh * o * (1 - tanh_c * tanh_c);
    const Vector<C> grads[kWidth] = {dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g * g),
                                     dh * tanh_c * o * (1 - o)};
    store(grad_c_ + at, dc * f, count);
    if (t == 0 && call_.d_c0 != nullptr) store(call_.d_c0 + at, dc * f, count);
    T* d_gates_x = call_.d_gates_x + ((call_.constant ? 0 : rows_.at(t)) + row) * 4 * H + p * L;
    for (int64_t gate = 0; gate < kWidth; ++gate) {
      keep(t, gate * blocks_ + p, row, first_lanes<C>(grads[gate], count));
      if (!call_.constant) {
        store(d_gates_x + gate * H, grads[gate], count);
        continue;
      }
      C* sum = grad_sum_ + row * 4 * H + gate * H + p * L;
      const Vector<C> total = ends ? grads[gate] : load(sum, count) + grads[gate];
      if (t > 0) {
        store(sum, total, count);
      } else {
        store(d_gates_x + gate * H, total, count);
      }
    }
  }

  // Stores block p of the gates' gradients of step t for the products that follow.
  TAGRANK_INLINE void keep(int64_t t, int64_t p, int64_t row, Vector<C> gradient) {
    if constexpr (GradientTiles<T>::kAvailable) {
      if (on_matrix_unit_) return tiles_.keep(t, row, in_chunk(t) + row, p, gradient);
    }
    store(grad_gates(t) + p * stride_ + row * L, gradient);
  }

  // Adds the chunk's part to the weight's gradient: the sum of gates' gradients times hidden states over steps and batch rows.
  void add_to_weight(int64_t first, int64_t last, int64_t worker) {
    const int64_t groups = (inputs_ + kTileVectors - 1) / kTileVectors;
    const Range own = share(groups * 4 * blocks_, grid_.workers(), worker);
    // Without h0 there is no hidden state before the first step. The matrix unit takes whole blocks of rows.
    const int64_t none = first == 0 && call_.h0 == nullptr ? call_.batch : 0, end = rows_.at(last) - rows_.at(first);
    const int64_t begin = on_matrix_unit_ ? none / kBlock * kBlock : none;
    for (int64_t row = begin; row == begin || row < end; row += kChunkRows) {
      const Range rows{row, std::min(row + kChunkRows, end)};
      const bool fresh = last == call_.steps && row == begin, complete = first == 0 && row + kChunkRows >= end;
      if constexpr (GradientTiles<T>::kAvailable) {
        if (on_matrix_unit_) {
          const Range blocks{row / kBlock, std::max(row, rows.end + kBlock - 1) / kBlock};
          tiles_.multiply_columns(blocks, grid_.workers(), worker, [&](int64_t gate, int64_t p, Vector<C> part) {
            add(gate, p, part, fresh, complete);
          });
          continue;
        }
      }
      for (int64_t tile = own.begin; tile < own.end; ++tile) {
        const int64_t group = tile % groups, block = tile / groups;
        weight_tile<kTileVectors>(grad_gates(first), rows, block, share(inputs_, groups, group), fresh, complete);
      }
    }
  }

  // Adds a part to block p of a row of the weight's gradient. `fresh` marks the first part, `complete` the last one.
  TAGRANK_INLINE void add(int64_t row, int64_t p, Vector<C> part, bool fresh, bool complete) {
    const int64_t at = row * call_.outputs + p * L, count = call_.outputs - p * L;
    const Vector<C> sum = fresh ? part : load(grad_weight_ + at, count) + part;
    if (complete) {
      store(call_.d_weight_hh + at, sum, count);
    } else {
      store(grad_weight_ + at, sum, count);
    }
  }

  template <int N>
  void weight_tile(const C* grad_gates, Range rows, int64_t block, Range columns, bool fresh, bool complete) {
    if constexpr (N > 1) {
      if (columns.end - columns.begin < N) return weight_tile<N - 1>(grad_gates, rows, block, columns, fresh, complete);
    }
    const int64_t column = columns.begin;
    const int64_t H = call_.hidden, gate = block / blocks_, unit = block % blocks_ * L;
    for (int64_t r = 0; r < L && unit + r < H; r += kTileGates) {
      const int64_t there = std::min<int64_t>(kTileGates, H - unit - r);
      const int64_t at = (gate * H + unit + r) * call_.outputs + column * L;
      for (int64_t i = 0; i < there; ++i) {
        for (int64_t n = 0; n < N; ++n) __builtin_prefetch(grad_weight_ + at + i * call_.outputs + n * L, 1);
      }
      Vector<C> tile[kTileGates][N] = {};
      multiply_transposed<kTileGates, N>(tile, grad_gates + block * stride_ + rows.begin * L + r,
                                         hidden_ + column * stride_ + rows.begin * L, stride_,
                                         rows.end - rows.begin);
      for (int64_t i = 0; i < there; ++i) {
        for (int64_t n = 0; n < N; ++n) add(gate * H + unit + r + i, column + n, tile[i][n], fresh, complete);
      }
    }
  }

  const BackwardCall<T> call_;
  const bool recompute_;
  const bool projects_;            // whether hidden states are projected
  const int64_t blocks_, panels_;  // of H
  const int64_t inputs_;           // the blocks of O
  const Grid grid_;
  const int64_t chunk_, stride_;  // the steps of a chunk, and the elements of a block of its rows
  // Whether the matrix unit computes the products. Its operands take more memory than recomputation is meant to save.
  const bool on_matrix_unit_;
  const Rows rows_;
  const RowShares shares_;
  GradientTiles<T> tiles_;
  ProjectionGradient<T> projection_;
  Workspace workspace_;
  C* weight_;         // [panels of O][4 K][4][L]
  C* gate_weight_;    // [blocks][K][4][L], if the gates are computed again
  T* gates_;          // [chunk, B, 4H], if the gates are computed again
  C* hidden_;         // [blocks of O][chunk * B][L]
  C* grad_gates_[2];  // [4 blocks][chunk * B][L]
  C* grad_c_;         // [B, H]
  C* partial_;        // [columns of the grid][B][4][L]
  C* grad_sum_;       // [B, 4H]
  C* grad_weight_;    // [4H, O]
};

}  // namespace tagrank::cpu::TAGRANK_ISA
