// The gradient of projected hidden states, r = W_hr h, with respect to the states before the projection: dh = W_hr^T dr.
#pragma once

#include "product.h"
#include "recurrence.h"
#include "workspace.h"

namespace tagrank::cpu::TAGRANK_ISA {

template <typename T>
class ProjectionGradient {
  using C = compute_t<T>;
  static constexpr int64_t L = kLanes<C>;

 public:
  // Without a weight there is nothing to do.
  explicit ProjectionGradient(const BackwardCall<T>& call)
      : weight_hr_(call.weight_hr),
        hidden_(call.hidden),
        outputs_(call.outputs),
        batch_(call.batch),
        blocks_(blocks_of<C>(call.outputs)),
        panels_(call.weight_hr != nullptr ? (blocks_of<C>(call.hidden) + kWidth - 1) / kWidth : 0) {}

  void reserve(Workspace& workspace) {
    workspace.add(weight_, panels_ * panel_size());
    workspace.add(gradients_, panels_ > 0 ? blocks_ * batch_ * L : 0);
  }

  // Packs a worker's share of the weight.
  void pack(int64_t workers, int64_t worker) {
    const Range own = share(panels_, workers, worker);
    for (int64_t p = own.begin; p < own.end; ++p) {
      pack_columns(weight_hr_, outputs_, hidden_, p * kWidth * L, weight_ + p * panel_size());
    }
  }

  // Keeps block p of a row of dr for each_state().
  TAGRANK_INLINE void keep(int64_t p, int64_t row, Vector<C> dr) { store(gradients_ + (p * batch_ + row) * L, dr); }

  // finish(p, row, dh) for each block p in these panels of each of these rows. before(p, row) is called for each panel and row
  // before its product.
  template <typename Before, typename Finish>
  void each_state(Range rows, Range panels, const Before& before, const Finish& finish) {
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      const C* next = weight_ + (p + 1 < panels.end ? p + 1 : panels.begin) * panel_size();
      for_each_tile(rows, [&](Range part, int64_t i) {
        tile<kRows>(p, part, Ahead<C>::of_tile(i, next, blocks_), before, finish);
      });
    }
  }

 private:
  int64_t panel_size() const { return blocks_ * L * kWidth * L; }

  template <int M, typename Before, typename Finish>
  void tile(int64_t p, Range rows, Ahead<C> ahead, const Before& before, const Finish& finish) {
    if constexpr (M > 1) {
      if (rows.end - rows.begin < M) return tile<M - 1>(p, rows, ahead, before, finish);
    }
    for (int m = 0; m < M; ++m) before(p, rows.begin + m);
    Vector<C> dh[M][kWidth] = {};
    multiply<M>(dh, gradients_ + rows.begin * L, batch_ * L, weight_ + p * panel_size(), blocks_, ahead);
    const int64_t there = std::min(kWidth, blocks_of<C>(hidden_) - p * kWidth);
    for (int m = 0; m < M; ++m) {
      for (int64_t v = 0; v < there; ++v) finish(p * kWidth + v, rows.begin + m, dh[m][v]);
    }
  }

  const T* const weight_hr_;
  const int64_t hidden_, outputs_, batch_;
  const int64_t blocks_;  // of dr: K of the product
  const int64_t panels_;  // of W_hr^T
  C* weight_;     // [panels][K][4][L]
  C* gradients_;  // dr in blocks
};

}  // namespace tagrank::cpu::TAGRANK_ISA
