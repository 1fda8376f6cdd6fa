// The kernels of a pass, and the launch of one of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "number.h"
#include "plan.h"
#include "recurrence.h"

namespace tagrank::cuda {

// A kernel whose one parameter is a Call: a ForwardCall or a BackwardCall.
template <typename Call>
struct Kernel {
  void (*entry)(Call);
  int rows;     // batch rows of a cluster
  int threads;  // of a block
  int shared;   // bytes of shared memory of a block
};

// The kernels that serve one H in one dtype, the one with the fewest rows first.
template <typename Call>
struct Kernels {
  const Kernel<Call>* first;
  int count;
};

// The kernels of a pass for T and H: Pass::kernels<T, kPadded>(). Pass is ForwardKernels or BackwardKernels.
template <typename Pass, typename T>
Kernels<typename Pass::Call> kernels_in(int hidden) {
  switch (padded(hidden)) {
    case 128:
      return Pass::template kernels<T, 128>();
    case 256:
      return Pass::template kernels<T, 256>();
    case 384:
      return Pass::template kernels<T, 384>();
    default:
      return Pass::template kernels<T, 512>();
  }
}
template <typename Pass>
Kernels<typename Pass::Call> kernels_of(int hidden, bool bfloat16) {
  return bfloat16 ? kernels_in<Pass, BFloat16>(hidden) : kernels_in<Pass, Float16>(hidden);
}

// For H in 1 .. kMaxHidden.
Kernels<ForwardCall> forward_kernels(int hidden, bool bfloat16);
Kernels<BackwardCall> backward_kernels(int hidden, bool bfloat16);

// Launches one kernel of a pass: the one with the fewest rows whose clusters all run at once or, if there is none, the last
// one that runs on this GPU at all. Calls with H outside 1 .. kMaxHidden are refused.
template <typename Call>
cudaError_t run(Kernels<Call> (*kernels_for)(int hidden, bool bfloat16), const Call& call, const Launch& to);

}  // namespace tagrank::cuda
