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

template void forward(const ForwardCall<float>&, const Threads&);
template void forward(const ForwardCall<double>&, const Threads&);
template void forward(const ForwardCall<bfloat16>&, const Threads&);
template void backward(const BackwardCall<float>&, const Threads&);
template void backward(const BackwardCall<double>&, const Threads&);
template void backward(const BackwardCall<bfloat16>&, const Threads&);

}  // namespace tagrank::cpu::TAGRANK_ISA
