#include "backward.h"
#include "launch.cuh"

namespace tagrank::cuda {
namespace {

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(const __grid_constant__ BackwardCall call) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  Backward<T, S>(call, block).run();
}

template <typename T, typename S>
Kernel kernel() {
  // The most that a cluster of this size needs, so that the kernel is the same whatever H is.
  return {reinterpret_cast<const void*>(&backward_kernel<T, S>), S::kRows,
          Backward<T, S>::shared(blocks_for(S::kPadded))};
}

template <typename T, int kPadded>
int sizes(const Kernel*& kernels) {
  static const Kernel all[] = {kernel<T, Sizes<kPadded, 1>>(), kernel<T, Sizes<kPadded, 2>>(),
                               kernel<T, Sizes<kPadded, 4>>()};
  kernels = all;
  return 3;
}

template <typename T>
int depths(int hidden, const Kernel*& kernels) {
  switch (padded(hidden)) {
    case 128:
      return sizes<T, 128>(kernels);
    case 256:
      return sizes<T, 256>(kernels);
    case 384:
      return sizes<T, 384>(kernels);
    default:
      return sizes<T, 512>(kernels);
  }
}

}  // namespace

int backward_kernels(int hidden, bool bfloat16, const Kernel*& kernels) {
  return bfloat16 ? depths<BFloat16>(hidden, kernels) : depths<Float16>(hidden, kernels);
}

int backward(const BackwardCall& call, const Launch& to) {
  return run(backward_kernels, call.hidden, call.batch, &call, to);
}

}  // namespace tagrank::cuda
