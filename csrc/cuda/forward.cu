#include "forward.h"

#include <iterator>

#include "launch.cuh"

namespace tagrank::cuda {
namespace {

template <typename T, typename S>
__global__ void __launch_bounds__(ForwardLayout<S>::kThreads, 1) forward_kernel(const __grid_constant__ ForwardCall call) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  Forward<T, S>(call, block).run();
}

struct ForwardKernels {
  using Call = ForwardCall;
  template <typename T, typename S>
  static Kernel<Call> kernel() {
    return {&forward_kernel<T, S>, S::kRows, ForwardLayout<S>::kThreads, Forward<T, S>::kShared};
  }
  template <typename T, int kPadded>
  static Kernels<Call> kernels() {
    static const Kernel<Call> all[] = {kernel<T, Sizes<kPadded, 1>>(), kernel<T, Sizes<kPadded, 2>>(),
                                       kernel<T, Sizes<kPadded, 4>>(), kernel<T, Sizes<kPadded, 8>>()};
    return {all, static_cast<int>(std::size(all))};
  }
};

}  // namespace

Kernels<ForwardCall> forward_kernels(int hidden, bool bfloat16) { return kernels_of<ForwardKernels>(hidden, bfloat16); }

int forward(const ForwardCall& call, const Launch& to) { return run(forward_kernels, call, to); }

}  // namespace tagrank::cuda
