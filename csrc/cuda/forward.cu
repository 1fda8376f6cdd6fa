#include "forward.h"

#include "launch.cuh"

namespace tagrank::cuda {
namespace {

template <typename T, typename S>
__global__ void __launch_bounds__(ForwardLayout<S, sizeof(Element<T>)>::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardCall<Element<T>> call) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  Forward<T, S>(call, block).run();
}

struct ForwardKernels {
  template <typename T, typename S>
  static Kernel<ForwardCall<Element<T>>> kernel() {
    return {&forward_kernel<T, S>, S::kRows, ForwardLayout<S, sizeof(Element<T>)>::kThreads, Forward<T, S>::kShared};
  }
  template <typename T, int kPadded>
  static Kernels<ForwardCall<Element<T>>> kernels() {
    // In float32, the cells of eight tiles would not fit in a lane's registers.
    if constexpr (sizeof(Element<T>) == 4) {
      return kernels_of_tiles<ForwardKernels, ForwardCall<Element<T>>, T, kPadded, 1, 2, 4>();
    } else {
      return kernels_of_tiles<ForwardKernels, ForwardCall<Element<T>>, T, kPadded, 1, 2, 4, 8>();
    }
  }
};

}  // namespace

template <typename E>
Kernels<ForwardCall<E>> forward_kernels(int hidden, Numbers numbers) {
  return kernels_of<ForwardKernels, E>(hidden, numbers);
}
template Kernels<ForwardCall<uint16_t>> forward_kernels(int, Numbers);
template Kernels<ForwardCall<float>> forward_kernels(int, Numbers);

int forward(const ForwardCall<uint16_t>& call, const Launch& to) { return run(forward_kernels<uint16_t>, call, to); }
int forward(const ForwardCall<float>& call, const Launch& to) { return run(forward_kernels<float>, call, to); }

}  // namespace tagrank::cuda
