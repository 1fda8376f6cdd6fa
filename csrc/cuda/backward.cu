#include "backward.h"

#include <iterator>

#include "launch.cuh"

namespace tagrank::cuda {
namespace {

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(const __grid_constant__ BackwardCall call) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  Backward<T, S>(call, block).run();
}

struct BackwardKernels {
  using Call = BackwardCall;
  template <typename T, typename S>
  static Kernel<Call> kernel() {
    return {&backward_kernel<T, S>, S::kRows, kThreads, Backward<T, S>::kShared};
  }
  template <typename T, int kPadded>
  static Kernels<Call> kernels() {
    static const Kernel<Call> all[] = {kernel<T, Sizes<kPadded, 1>>(), kernel<T, Sizes<kPadded, 2>>(),
                                       kernel<T, Sizes<kPadded, 4>>()};
    return {all, static_cast<int>(std::size(all))};
  }
};

}  // namespace

Kernels<BackwardCall> backward_kernels(int hidden, bool bfloat16) { return kernels_of<BackwardKernels>(hidden, bfloat16); }

int backward(const BackwardCall& call, const Launch& to) { return run(backward_kernels, call, to); }

}  // namespace tagrank::cuda
