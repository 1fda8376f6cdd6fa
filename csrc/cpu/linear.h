// A small product with the weights of a layer, on the calling thread. For one row of a small layer a library takes several
// times as long as the arithmetic: to choose a kernel, to copy the bias, and to wake threads.
#pragma once

#include <algorithm>

#include "recurrence.h"
#include "simd.h"

namespace tagrank::cpu::TAGRANK_ISA {

template <typename T>
void linear(const LinearCall<T>& call) {
  using C = compute_t<T>;
  constexpr int64_t L = kLanes<C>;
  const auto part = [&](const T* bias, int64_t output, int64_t count) {
    return bias != nullptr ? load(bias + output, count) : Vector<C>{};
  };
  for (int64_t row = 0; row < call.rows; ++row) {
    const T* x = call.x + row * call.inputs;
    for (int64_t output = 0; output < call.outputs; output += L) {
      const int64_t count = std::min(L, call.outputs - output);
      // A vector of partial sums for each output. Outputs beyond the last one repeat it.
      Vector<C> products[L] = {};
      for (int64_t i = 0; i < call.inputs; i += L) {
        const Vector<C> some = load(x + i, call.inputs - i);
        TAGRANK_UNROLL for (int64_t l = 0; l < L; ++l) {
          const T* weights = call.weight + (output + std::min(l, count - 1)) * call.weight_stride + i;
          products[l] += some * load(weights, call.inputs - i);
        }
      }
      const Vector<C> biases = part(call.bias, output, count) + part(call.other_bias, output, count);
      store(call.out + row * call.outputs + output, sums<C>(products) + biases, count);
    }
  }
}

}  // namespace tagrank::cpu::TAGRANK_ISA
