#include "forward.h"
#include "launch.cuh"

namespace tagrank::cuda {
namespace {

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const __grid_constant__ ForwardCall call) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  Forward<T, S>(call, block).run();
}

template <typename T, typename S>
Kernel kernel() {
  return {reinterpret_cast<const void*>(&forward_kernel<T, S>), S::kRows, Forward<T, S>::kShared};
}

template <typename T, int kPadded>
int sizes(const Kernel*& kernels) {
  static const Kernel all[] = {kernel<T, Sizes<kPadded, 1>>(), kernel<T, Sizes<kPadded, 2>>(),
                               kernel<T, Sizes<kPadded, 4>>(), kernel<T, Sizes<kPadded, 8>>()};
  kernels = all;
  return 4;
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

int forward_kernels(int hidden, bool bfloat16, const Kernel*& kernels) {
  return bfloat16 ? depths<BFloat16>(hidden, kernels) : depths<Float16>(hidden, kernels);
}

int forward(const ForwardCall& call, const Launch& to) {
  return run(forward_kernels, call.hidden, call.batch, &call, to);
}

}  // namespace tagrank::cuda
