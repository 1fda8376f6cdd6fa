// Every variant of the cluster kernels in bfloat16, behind a C interface for cluster_variants.py.

#include <cuda_runtime.h>

#include <iterator>

#include "backward.h"
#include "direct.h"
#include "direct_backward.h"
#include "forward.h"

namespace tagrank::cuda {
namespace {

using T = BFloat16;

template <typename Pass, int kThreadCount, typename Call>
__global__ void __launch_bounds__(kThreadCount, 1) variant_kernel(const __grid_constant__ Call call) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  Pass(call, block).run();
}

struct Entry {
  const void* kernel;
  int padded, rows, threads, shared;
};

template <typename S>
struct Old {
  static Entry entry() {
    using Pass = Forward<T, S>;
    return {reinterpret_cast<const void*>(&variant_kernel<Pass, kThreads, ForwardCall>), S::kPadded, S::kRows, kThreads,
            Pass::kShared};
  }
};
template <typename P>
struct New {
  template <typename S>
  struct Of {
    static Entry entry() {
      using Pass = Direct<T, S, P>;
      // U takes too many registers.
      if constexpr (P::kWhole && S::kPadded > 256) {
        return {};
      } else {
        return {reinterpret_cast<const void*>(&variant_kernel<Pass, P::kThreads, ForwardCall>), S::kPadded, S::kRows,
                P::kThreads, Pass::kShared};
      }
    }
  };
};
// A kernel that only meets, for the cost of a launch.
template <typename S>
__global__ void __launch_bounds__(kThreads, 1) empty_kernel(const __grid_constant__ ForwardCall) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  block.arrive();
  block.wait();
}
template <typename S>
struct Nothing {
  static Entry entry() {
    using Pass = Direct<T, S, Policy<Division::kPairs, Activations::kFast, 16>>;
    return {reinterpret_cast<const void*>(&empty_kernel<S>), S::kPadded, S::kRows, kThreads, Pass::kShared};
  }
};
template <typename S>
struct OldBackward {
  static Entry entry() {
    using Pass = Backward<T, S>;
    return {reinterpret_cast<const void*>(&variant_kernel<Pass, kThreads, BackwardCall>), S::kPadded, S::kRows, kThreads,
            Pass::shared(blocks_for(S::kPadded))};
  }
};

template <Activations kActivations>
struct NewBackward {
  template <typename S>
  struct Of {
    static Entry entry() {
      using Pass = DirectBackward<T, S, kActivations>;
      return {reinterpret_cast<const void*>(&variant_kernel<Pass, kThreads, BackwardCall>), S::kPadded, S::kRows, kThreads,
              Pass::kShared};
    }
  };
};

constexpr int kSizes = 9;
struct Variant {
  const char* name;
  bool backward;
  Entry entries[kSizes];  // for each H, the one with the fewest rows first
};
template <template <typename> typename Of>
Variant variant(const char* name, bool backward = false) {
  Variant made = {name, backward, {Of<Sizes<128, 1>>::entry(), Of<Sizes<128, 2>>::entry(), Of<Sizes<256, 1>>::entry(),
                                   Of<Sizes<256, 2>>::entry(), Of<Sizes<256, 4>>::entry(), Of<Sizes<512, 1>>::entry(),
                                   Of<Sizes<512, 2>>::entry(), Of<Sizes<512, 4>>::entry(), {}}};
  return made;
}

const Variant kVariants[] = {
    variant<Old>("forward"),
    variant<New<Policy<Division::kPairs, Activations::kExact, 16>>::Of>("pairs-exact-16"),
    variant<New<Policy<Division::kPairs, Activations::kFast, 16>>::Of>("pairs-fast-16"),
    variant<New<Policy<Division::kPairs, Activations::kApproximate, 16>>::Of>("pairs-approximate-16"),
    variant<New<Policy<Division::kPairs, Activations::kApproximate, 4>>::Of>("pairs-approximate-4"),
    variant<New<Policy<Division::kQuarters, Activations::kApproximate, 4>>::Of>("quarters-approximate-4"),
    variant<New<Policy<Division::kQuarters, Activations::kApproximate, 8>>::Of>("quarters-approximate-8"),
    variant<New<Policy<Division::kWhole, Activations::kApproximate, 4>>::Of>("whole-approximate-4"),
    variant<New<Policy<Division::kWhole, Activations::kApproximate, 8>>::Of>("whole-approximate-8"),
    variant<New<Policy<Division::kWhole, Activations::kApproximate, 16>>::Of>("whole-approximate-16"),
    variant<New<Policy<Division::kWhole, Activations::kFast, 16>>::Of>("whole-fast-16"),
    variant<New<Policy<Division::kPairs, Activations::kApproximate, 16, true>>::Of>("pairs-approximate-16-spin"),
    variant<New<Policy<Division::kWhole, Activations::kApproximate, 16, true>>::Of>("whole-approximate-16-spin"),
    variant<Nothing>("nothing"),
    variant<OldBackward>("backward", true),
    variant<NewBackward<Activations::kFast>::Of>("backward-direct-fast", true),
    variant<NewBackward<Activations::kApproximate>::Of>("backward-direct-approximate", true),
};

template <typename Call>
int launch(const Variant& variant, const Call& call, void* stream, int* rows) {
  const int blocks = blocks_for(call.hidden);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = blocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = 1;
  const Entry* chosen = nullptr;
  for (const Entry& entry : variant.entries) {
    if (entry.padded != padded(call.hidden) || entry.kernel == nullptr) continue;
    cudaError_t error = cudaFuncSetAttribute(entry.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, entry.shared);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(entry.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(entry.threads);
    config.dynamicSmemBytes = entry.shared;
    int clusters = 0;
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&clusters, entry.kernel, &config);
    if (error != cudaSuccess) return error;
    if (clusters == 0) continue;
    chosen = &entry;
    if ((call.batch + entry.rows - 1) / entry.rows <= clusters) break;
  }
  if (chosen == nullptr) return cudaErrorInvalidClusterSize;
  config.gridDim = dim3(static_cast<unsigned>((call.batch + chosen->rows - 1) / chosen->rows * blocks));
  config.blockDim = dim3(chosen->threads);
  config.dynamicSmemBytes = chosen->shared;
  *rows = chosen->rows;
  Call copy = call;
  void* arguments[] = {&copy};
  return cudaLaunchKernelExC(&config, chosen->kernel, arguments);
}

}  // namespace
}  // namespace tagrank::cuda

extern "C" {

int variant_count() { return static_cast<int>(std::size(tagrank::cuda::kVariants)); }
const char* variant_name(int index) { return tagrank::cuda::kVariants[index].name; }
bool variant_is_backward(int index) { return tagrank::cuda::kVariants[index].backward; }

// Launches a variant and says how many batch rows a cluster has. `call` is a ForwardCall or a BackwardCall. Returns a
// cudaError_t, -1 if the variant has no kernel for this H.
int variant_launch(int index, const void* call, void* stream, int* rows) {
  using namespace tagrank::cuda;
  const Variant& variant = kVariants[index];
  return variant.backward ? launch(variant, *static_cast<const BackwardCall*>(call), stream, rows)
                          : launch(variant, *static_cast<const ForwardCall*>(call), stream, rows);
}
const char* variant_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
}
