// A small product with the weights of a layer, on the calling thread. For one row of a small layer a library takes several
// times as long as the arithmetic: to choose a kernel, to copy the bias, and to wake threads.
#pragma once

#include <algorithm>

#include "recurrence.h"
#include "simd.h"

namespace tagrank::cpu::TAGRANK_ISA {

template <typename T>
class Linear {
  using C = compute_t<T>;
  static constexpr int64_t L = kLanes<C>;

 public:
  explicit Linear(const LinearCall<T>& call) : call_(call) {}

  void run() const {
    for (int64_t output = 0; output < call_.outputs; output += L) {
      const int64_t count = std::min(L, call_.outputs - output);
      const Vector<C> bias = part(call_.bias, output, count) + part(call_.other_bias, output, count);
      for (int64_t row = 0; row < call_.rows; ++row) {
        const T* x = call_.x + row * call_.inputs;
        const Vector<C> sum = count == L ? products<true>(x, output, count) : products<false>(x, output, count);
        store(call_.out + row * call_.outputs + output, sum + bias, count);
      }
    }
  }

 private:
  static Vector<C> part(const T* bias, int64_t output, int64_t count) {
    return bias != nullptr ? load(bias + output, count) : Vector<C>{};
  }

  // x times the weights of L outputs from `output` on. If not all exist (`kAll`), the last one stands for those beyond it.
  template <bool kAll>
  TAGRANK_INLINE Vector<C> products(const T* x, int64_t output, int64_t count) const {
    const T* weights = call_.weight + output * call_.weight_stride;
    const auto row = [&](int64_t l) { return weights + (kAll ? l : std::min(l, count - 1)) * call_.weight_stride; };
    Vector<C> sums_of[L] = {};
    int64_t i = 0;
    for (; i + L <= call_.inputs; i += L) {
      const Vector<C> some = load(x + i);
      TAGRANK_UNROLL for (int64_t l = 0; l < L; ++l) sums_of[l] += some * load(row(l) + i);
    }
    if (i < call_.inputs) {
      const Vector<C> some = load(x + i, call_.inputs - i);
      TAGRANK_UNROLL for (int64_t l = 0; l < L; ++l) sums_of[l] += some * load(row(l) + i, call_.inputs - i);
    }
    return sums<C>(sums_of);
  }

  const LinearCall<T>& call_;
};

template <typename T>
void linear(const LinearCall<T>& call) {
  Linear<T>(call).run();
}

}  // namespace tagrank::cpu::TAGRANK_ISA
