#include "backward.h"

#include "launch.cuh"

namespace tagrank::cuda {
namespace {

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(const __grid_constant__ BackwardCall<Element<T>> call) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  Backward<T, S>(call, block).run();
}

struct BackwardKernels {
  template <typename T, typename S>
  static Kernel<BackwardCall<Element<T>>> kernel() {
    return {&backward_kernel<T, S>, S::kRows, kThreads, Backward<T, S>::kShared};
  }
  template <typename T, int kPadded>
  static Kernels<BackwardCall<Element<T>>> kernels() {
    return kernels_of_tiles<BackwardKernels, BackwardCall<Element<T>>, T, kPadded, 1, 2, 4>();
  }
};

}  // namespace

template <typename E>
Kernels<BackwardCall<E>> backward_kernels(int hidden, Numbers numbers) {
  return kernels_of<BackwardKernels, E>(hidden, numbers);
}
template Kernels<BackwardCall<uint16_t>> backward_kernels(int, Numbers);
template Kernels<BackwardCall<float>> backward_kernels(int, Numbers);

int backward(const BackwardCall<uint16_t>& call, const Launch& to) { return run(backward_kernels<uint16_t>, call, to); }
int backward(const BackwardCall<float>& call, const Launch& to) { return run(backward_kernels<float>, call, to); }

}  // namespace tagrank::cuda
