// The projection of hidden states to fewer columns in the forward pass: h = W_hr r, where r = o tanh(c).
#pragma once

#include "product.h"
#include "recurrence.h"
#include "workspace.h"

namespace tagrank::cpu::TAGRANK_ISA {

template <typename T>
class Projection {
  using C = compute_t<T>;
  static constexpr int64_t L = kLanes<C>;

 public:
  // Without a weight there is nothing to do. `packed` says whether to pack it.
  Projection(const ForwardCall<T>& call, bool packed)
      : weight_hr_(call.weight_hr),
        hidden_(call.hidden),
        outputs_(call.outputs),
        batch_(call.batch),
        blocks_(blocks_of<C>(call.hidden)),
        panels_(call.weight_hr != nullptr ? (call.outputs + kWidth * L - 1) / (kWidth * L) : 0),
        packed_(packed) {}

  void reserve(Workspace& workspace) {
    workspace.add(weight_, packed_ ? panels_ * panel_size() : 0);
    workspace.add(states_, panels_ > 0 ? blocks_ * batch_ * L : 0);
  }

  // Packs a worker's share of the weight.
  void pack(int64_t workers, int64_t worker) {
    if (!packed_) return;
    const Range own = share(panels_, workers, worker);
    for (int64_t p = own.begin; p < own.end; ++p) {
      for (int64_t v = 0; v < kWidth; ++v) {
        const int64_t first = (p * kWidth + v) * L;
        pack_rows(weight_hr_ + std::min(first, outputs_) * hidden_, hidden_, outputs_ - first, v, weight_ + p * panel_size());
      }
    }
  }

  // Keeps block p of a row of r for project().
  TAGRANK_INLINE void keep(int64_t p, int64_t row, Vector<C> r) { store(states_ + (p * batch_ + row) * L, r); }

  // finish(p, row, h) for each block p of each row of h = W_hr r.
  template <typename Finish>
  void project(Range rows, const Finish& finish) {
    for (int64_t p = 0; p < panels_; ++p) {
      const C* next = weight_ + (p + 1 < panels_ ? p + 1 : 0) * panel_size();
      for_each_tile(rows, [&](Range part, int64_t i) { tile<kRows>(p, part, Ahead<C>::of_tile(i, next, blocks_), finish); });
    }
  }

 private:
  int64_t panel_size() const { return blocks_ * L * kWidth * L; }

  template <int M, typename Finish>
  void tile(int64_t p, Range rows, Ahead<C> ahead, const Finish& finish) {
    if constexpr (M > 1) {
      if (rows.end - rows.begin < M) return tile<M - 1>(p, rows, ahead, finish);
    }
    const C* r = states_ + rows.begin * L;
    const int64_t blocks = std::min(kWidth, blocks_of<C>(outputs_) - p * kWidth);
    Vector<C> h[M][kWidth] = {};
    if (packed_) multiply<M>(h, r, batch_ * L, weight_ + p * panel_size(), blocks_, ahead);
    for (int m = 0; m < M; ++m) {
      for (int64_t v = 0; v < blocks; ++v) {
        const int64_t first = (p * kWidth + v) * L;
        if (!packed_) h[m][v] = dot(r + m * L, batch_ * L, weight_hr_ + first * hidden_, hidden_, outputs_ - first);
        finish(p * kWidth + v, rows.begin + m, rounded<T>(h[m][v]));
      }
    }
  }

  const T* const weight_hr_;
  const int64_t hidden_, outputs_, batch_;
  const int64_t blocks_;  // of r: K of the product
  const int64_t panels_;  // of W_hr
  const bool packed_;
  C* weight_;  // [panels][K][4][L]
  C* states_;  // r in blocks
};

}  // namespace tagrank::cpu::TAGRANK_ISA
