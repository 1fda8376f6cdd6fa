// The passes of one instruction set, for each storage type.
#pragma once

#include "backward.h"
#include "forward.h"

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
  // Enough independent chains to hide the latency; x contracts, so that the values stay normal numbers.
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

template void forward(const ForwardCall<float>&, const Threads&);
template void forward(const ForwardCall<double>&, const Threads&);
template void forward(const ForwardCall<bfloat16>&, const Threads&);
template void backward(const BackwardCall<float>&, const Threads&);
template void backward(const BackwardCall<double>&, const Threads&);
template void backward(const BackwardCall<bfloat16>&, const Threads&);

}  // namespace tagrank::cpu::TAGRANK_ISA
