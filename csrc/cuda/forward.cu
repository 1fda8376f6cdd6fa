#include "direct.h"

#include <iterator>
#include <type_traits>

#include "launch.cuh"

namespace tagrank::cuda {
namespace {

// If H is small, every warp can read all of h, and warps need not exchange sums.
constexpr Division division_for(int padded, int tiles) {
  if (padded == 128) return Division::kQuarters;
  return padded == 256 && tiles <= 2 ? Division::kWhole : Division::kPairs;
}
// The hardware's tanh suffices for bfloat16 only.
template <typename T, typename S>
using Chosen = Policy<division_for(S::kPadded, S::kTiles),
                      std::is_same_v<T, BFloat16> ? Activations::kApproximate : Activations::kFast,
                      S::kPadded == 128 ? 8 : 16>;

template <typename T, typename S>
__global__ void __launch_bounds__(Chosen<T, S>::kThreads, 1) forward_kernel(const __grid_constant__ ForwardCall call) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  Direct<T, S, Chosen<T, S>>(call, block).run();
}

struct ForwardKernels {
  using Call = ForwardCall;
  template <typename T, typename S>
  static Kernel<Call> kernel() {
    using Policy = Chosen<T, S>;
    return {&forward_kernel<T, S>, S::kRows, Policy::kThreads, Direct<T, S, Policy>::kShared};
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
