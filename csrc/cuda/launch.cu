#include "launch.cuh"

#include <map>
#include <mutex>
#include <utility>

#include "plan.h"

namespace tagrank::cuda {
namespace {

// A launch of clusters of `blocks` blocks each.
class Configuration {
 public:
  Configuration(const Kernel& kernel, int64_t clusters, int blocks, void* stream) {
    cluster_.id = cudaLaunchAttributeClusterDimension;
    cluster_.val.clusterDim.x = blocks;
    cluster_.val.clusterDim.y = cluster_.val.clusterDim.z = 1;
    config_.gridDim = dim3(static_cast<unsigned>(clusters * blocks));
    config_.blockDim = dim3(kThreads);
    config_.dynamicSmemBytes = kernel.shared;
    config_.stream = static_cast<cudaStream_t>(stream);
    config_.attrs = &cluster_;
    config_.numAttrs = 1;
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;
  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchAttribute cluster_{};
  cudaLaunchConfig_t config_{};
};

// Allows the kernel its shared memory, and clusters of more than 8 blocks, before it asks.
cudaError_t count_active(const Kernel& kernel, int blocks, int& clusters) {
  TAGRANK_TRY(cudaFuncSetAttribute(kernel.entry, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared));
  TAGRANK_TRY(cudaFuncSetAttribute(kernel.entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  const Configuration configuration(kernel, 1, blocks, nullptr);
  return cudaOccupancyMaxActiveClusters(&clusters, kernel.entry, configuration.get());
}

}  // namespace

cudaError_t active(const Kernel& kernel, int blocks, int device, int& clusters) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, std::pair<int, int>>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_pair(kernel.entry, std::make_pair(blocks, device));
  const auto found = known.find(key);
  if (found != known.end()) {
    clusters = found->second;
    return cudaSuccess;
  }
  clusters = 0;
  const cudaError_t error = count_active(kernel, blocks, clusters);
  // A GPU that cannot have such a cluster, or so much shared memory, or has no code of the kernel: it runs none.
  switch (error) {
    case cudaSuccess:
      break;
    case cudaErrorInvalidClusterSize:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidValue:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorNotSupported:
      cudaGetLastError();
      clusters = 0;
      break;
    default:
      return error;
  }
  known[key] = clusters;
  return cudaSuccess;
}

cudaError_t choose(const Kernel* kernels, int count, int64_t batch, int blocks, int device, Kernel& chosen) {
  chosen = {};
  for (int i = 0; i < count; ++i) {
    int clusters;
    TAGRANK_TRY(active(kernels[i], blocks, device, clusters));
    if (clusters == 0) continue;
    chosen = kernels[i];
    if ((batch + chosen.rows - 1) / chosen.rows <= clusters) break;
  }
  return cudaSuccess;
}

cudaError_t launch(const Kernel& kernel, int64_t batch, int blocks, const void* call, void* stream) {
  const Configuration configuration(kernel, (batch + kernel.rows - 1) / kernel.rows, blocks, stream);
  void* arguments[] = {const_cast<void*>(call)};
  return cudaLaunchKernelExC(configuration.get(), kernel.entry, arguments);
}

int active_clusters(int device, int hidden, bool backward, int& clusters) {
  clusters = 0;
  if (hidden < 1 || hidden > kMaxHidden) return cudaSuccess;
  const OnDevice current(device);
  TAGRANK_TRY(current.error());
  const Kernel* kernels;
  (backward ? backward_kernels : forward_kernels)(hidden, /*bfloat16=*/false, kernels);
  return active(kernels[0], blocks_for(hidden), device, clusters);
}

const char* describe(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace tagrank::cuda
