// Launches a kernel as clusters, and knows how many of them run at once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "recurrence.h"

#define TAGRANK_TRY(call) \
  if (const cudaError_t error_ = (call); error_ != cudaSuccess) return error_

namespace tagrank::cuda {

struct Kernel {
  const void* entry;
  int rows;    // of the batch, for a cluster
  int shared;  // bytes of shared memory, for a block
};

// Makes a device the calling thread's current one, and the one before again at its end.
class OnDevice {
 public:
  explicit OnDevice(int device) : error_(cudaGetDevice(&before_)) {
    if (error_ == cudaSuccess) error_ = cudaSetDevice(device);
  }
  ~OnDevice() {
    if (error_ == cudaSuccess) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  cudaError_t error_;
};

// How many clusters of `blocks` blocks run at once on the current device, which is `device`; 0 where none does.
cudaError_t active(const Kernel& kernel, int blocks, int device, int& clusters);

// Of `count` kernels, ordered by their rows, the one with the fewest rows whose clusters all run at once; where there is
// none, the last of those that run at all. Its entry is null where none does.
cudaError_t choose(const Kernel* kernels, int count, int64_t batch, int blocks, int device, Kernel& chosen);

// Launches `entry(call)`.
cudaError_t launch(const Kernel& kernel, int64_t batch, int blocks, const void* call, void* stream);

// The kernels of a pass for H, ordered by their rows; their number.
int forward_kernels(int hidden, bool bfloat16, const Kernel*& kernels);
int backward_kernels(int hidden, bool bfloat16, const Kernel*& kernels);

}  // namespace tagrank::cuda
