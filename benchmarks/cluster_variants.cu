// The variants of cluster_variants.h as kernels, for cluster_variants.py, which builds this file.

#include "cluster_variants.h"

#include <cuda_runtime.h>

namespace tagrank::cuda {
namespace {

template <typename Pass, typename Call, int kThreads>
__global__ void __launch_bounds__(kThreads, 1) variant_kernel(const __grid_constant__ Call call) {
  extern __shared__ __align__(16) unsigned char shared[];
  Block block(shared);
  Pass(call, block).run();
}

// A kernel, whose one parameter is a ForwardCall or a BackwardCall.
using Kernel = const void*;
struct Kernels {
  template <typename S, typename V>
  static Kernel forward() {
    using Pass = Forward<BFloat16, S, V>;
    return reinterpret_cast<Kernel>(&variant_kernel<Pass, ForwardCall<uint16_t>, ForwardLayout<S, 2, V::kQuads>::kThreads>);
  }
  template <typename S, typename V>
  static Kernel backward() {
    using Pass = Backward<BFloat16, S, V>;
    return reinterpret_cast<Kernel>(&variant_kernel<Pass, BackwardCall<uint16_t>, Pass::kThreads>);
  }
};

const std::vector<Entry<Kernel>>& entries() {
  static const std::vector<Entry<Kernel>> all = [] {
    std::vector<Entry<Kernel>> found;
    add_variants<Kernels, 128, 1>(found);
    add_variants<Kernels, 128, 2>(found);
    add_variants<Kernels, 256, 1>(found);
    add_variants<Kernels, 256, 2>(found);
    add_variants<Kernels, 512, 1>(found);
    add_variants<Kernels, 512, 2>(found);
    add_variants<Kernels, 512, 4>(found);
    add_variants<Kernels, 512, 8>(found);
    add_variants<Kernels, 768, 1>(found);
    return found;
  }();
  return all;
}

// A launch of clusters of the entry's blocks.
struct Configuration {
  cudaLaunchAttribute cluster{};
  cudaLaunchConfig_t config{};
  Configuration(const Entry<Kernel>& entry, int64_t clusters, void* stream) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = entry.blocks;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.gridDim = dim3(static_cast<unsigned>(clusters * entry.blocks));
    config.blockDim = dim3(entry.threads);
    config.dynamicSmemBytes = entry.shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;
};

}  // namespace
}  // namespace tagrank::cuda

TAGRANK_VARIANTS_INTERFACE(tagrank::cuda::entries)

extern "C" {

// Sets `clusters` to how many clusters run at once; allows the kernel its shared memory and 16 blocks. Returns a cudaError_t.
int variants_active(int index, int* clusters) {
  using namespace tagrank::cuda;
  const Entry<Kernel>& entry = entries()[index];
  *clusters = 0;
  cudaError_t error = cudaFuncSetAttribute(entry.run, cudaFuncAttributeMaxDynamicSharedMemorySize, entry.shared);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(entry.run, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  const Configuration configuration(entry, 1, nullptr);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(clusters, entry.run, &configuration.config);
  cudaGetLastError();  // so that a kernel that this GPU cannot run leaves no error to the next call
  return error;
}
// After variants_active() of the same kernel. `call` is a ForwardCall or a BackwardCall. Returns a cudaError_t.
int variants_launch(int index, void* call, void* stream) {
  using namespace tagrank::cuda;
  const Entry<Kernel>& entry = entries()[index];
  const int64_t batch = *static_cast<const int64_t*>(call);  // what both begin with
  const Configuration configuration(entry, (batch + entry.rows - 1) / entry.rows, stream);
  return cudaLaunchKernelExC(&configuration.config, entry.run, &call);
}
const char* variants_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
}
