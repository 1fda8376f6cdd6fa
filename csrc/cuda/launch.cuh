// Launches a kernel as clusters, and knows how many of them run at once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "recurrence.h"

namespace tagrank::cuda {

struct Kernel {
  const void* entry;
  int rows;    // of the batch, for a cluster
  int shared;  // bytes of shared memory, for a block
};

// The kernels of a pass for H, ordered by their rows; their number.
int forward_kernels(int hidden, bool bfloat16, const Kernel*& kernels);
int backward_kernels(int hidden, bool bfloat16, const Kernel*& kernels);

// Launches, of the kernels of a pass, the one with the fewest rows whose clusters all run at once; where there is none, the
// last of those that run at all.
cudaError_t run(int (*kernels_for)(int, bool, const Kernel*&), int hidden, int64_t batch, const void* call,
                const Launch& to);

}  // namespace tagrank::cuda
