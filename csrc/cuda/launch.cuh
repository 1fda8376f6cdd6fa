// The kernels of a pass, and the launch of one of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "number.h"
#include "plan.h"
#include "recurrence.h"

namespace tagrank::cuda {

struct Kernel {
  const void* entry;
  int rows;    // of the batch, for a cluster
  int shared;  // bytes of shared memory, for a block
};

// Those that serve one H in one dtype, ordered by their rows.
struct Kernels {
  const Kernel* first;
  int count;
};

// Pass::template kernels<T, kPadded>() for H.
template <typename Pass, typename T>
Kernels kernels_in(int hidden) {
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
Kernels kernels_of(int hidden, bool bfloat16) {
  return bfloat16 ? kernels_in<Pass, BFloat16>(hidden) : kernels_in<Pass, Float16>(hidden);
}

// For H in 1 .. kMaxHidden.
Kernels forward_kernels(int hidden, bool bfloat16);
Kernels backward_kernels(int hidden, bool bfloat16);

// Launches, of the kernels of a pass, the one with the fewest rows whose clusters all run at once; where there is none, the
// last of those that run at all.
cudaError_t run(Kernels (*kernels_for)(int, bool), int hidden, int64_t batch, const void* call, const Launch& to);

}  // namespace tagrank::cuda
