// The functions of one instruction set, for each storage type: this file is compiled once with the flags of each.
#pragma once

#include "backward.h"
#include "forward.h"
#include "linear.h"

namespace tagrank::cpu::TAGRANK_ISA {

template <typename T>
void forward(const ForwardCall<T>& call, const Threads& threads) {
  Forward<T>(call, threads.count).run(threads);
}

template <typename T>
void backward(const BackwardCall<T>& call, const Threads& threads) {
  Backward<T>(call, threads.count).run(threads);
}

int64_t multiply_adds(float* result) {
#if defined(TAGRANK_TILES)
  return tile_multiply_adds(result);
#else
  // Enough independent chains hide the latency. Multiplying by x < 1 keeps the values normal numbers.
  constexpr int64_t kRepeats = 10000, kChains = 4 * kRows > 12 ? 12 : 4 * kRows;
  Vector<float> chains[kChains], x = splat(0.999f), y = splat(1e-3f);
  TAGRANK_UNROLL for (int64_t i = 0; i < kChains; ++i) chains[i] = splat(static_cast<float>(i));
  for (int64_t repeat = 0; repeat < kRepeats; ++repeat) {
    TAGRANK_UNROLL for (int64_t i = 0; i < kChains; ++i) chains[i] = chains[i] * x + y;
  }
  Vector<float> sum{};
  TAGRANK_UNROLL for (int64_t i = 0; i < kChains; ++i) sum += chains[i];
  *result = sum[0];
  return kRepeats * kChains * kLanes<float> * 2;
#endif
}

template <typename T>
constexpr Passes<T> kPasses{forward<T>, backward<T>, linear<T>};

// constexpr, so that no code of this instruction set runs when the library is loaded.
constexpr InstructionSet kFunctions{kPasses<float>, kPasses<double>, kPasses<bfloat16>, multiply_adds};

}  // namespace tagrank::cpu::TAGRANK_ISA
