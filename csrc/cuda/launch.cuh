// The kernels of a pass, and the launch of one of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <iterator>

#include "number.h"
#include "plan.h"
#include "recurrence.h"

namespace tagrank::cuda {

// A kernel whose one parameter is a Call: a ForwardCall or a BackwardCall.
template <typename Call>
struct Kernel {
  void (*entry)(Call);
  int rows;     // batch rows of a cluster
  int threads;  // of a block
  int shared;   // bytes of shared memory of a block
};

// The kernels that serve one H for one kind of numbers, the one with the fewest rows first.
template <typename Call>
struct Kernels {
  const Kernel<Call>* first;
  int count;
};

// The kernels of a pass for T and H with these numbers of row tiles: Pass::kernel<T, Sizes<kPadded, kTiles>>() of each.
template <typename Pass, typename Call, typename T, int kPadded, int... kTiles>
Kernels<Call> kernels_of_tiles() {
  static const Kernel<Call> all[] = {Pass::template kernel<T, Sizes<kPadded, kTiles>>()...};
  return {all, static_cast<int>(std::size(all))};
}

// The kernels of a pass for T and H: Pass::kernels<T, kPadded>(). Pass is ForwardKernels or BackwardKernels.
template <typename Pass, typename T>
auto kernels_in(int hidden) {
  if constexpr (sizeof(Element<T>) == 4) {
    return padded(hidden) == 128 ? Pass::template kernels<T, 128>() : Pass::template kernels<T, 256>();
  } else {
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
}

// The kernels of a pass for E, for H in 1 .. max_hidden(sizeof(E)).
template <typename Call>
using KernelsFor = Kernels<Call> (*)(int hidden, Numbers numbers);
template <typename Pass, typename E>
auto kernels_of(int hidden, Numbers numbers) {
  if constexpr (sizeof(E) == 4) {
    return numbers == Numbers::kTf32 ? kernels_in<Pass, Tf32>(hidden) : kernels_in<Pass, Tf32x3>(hidden);
  } else {
    return numbers == Numbers::kBFloat16 ? kernels_in<Pass, BFloat16>(hidden) : kernels_in<Pass, Float16>(hidden);
  }
}
template <typename E>
Kernels<ForwardCall<E>> forward_kernels(int hidden, Numbers numbers);
template <typename E>
Kernels<BackwardCall<E>> backward_kernels(int hidden, Numbers numbers);

// Launches one kernel of a pass: the one with the fewest rows whose clusters all run at once or, if there is none, the last
// one that runs on this GPU at all. Calls with an H for which there is no kernel are refused.
template <typename Call>
cudaError_t run(KernelsFor<Call> kernels_for, const Call& call, const Launch& to);

}  // namespace tagrank::cuda
