#include "launch.cuh"

#include <map>
#include <mutex>
#include <tuple>

#include "plan.h"

#define TAGRANK_TRY(call) \
  if (const cudaError_t error_ = (call); error_ != cudaSuccess) return error_

namespace tagrank::cuda {
namespace {

// Makes a device the current one of the calling thread; the destructor restores the previous one.
class OnDevice {
 public:
  explicit OnDevice(int device) : error_(cudaGetDevice(&before_)) {
    if (error_ == cudaSuccess) error_ = cudaSetDevice(device);
  }
  ~OnDevice() {
    if (error_ == cudaSuccess) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  cudaError_t error_;
};

// A launch of clusters of `blocks` blocks each.
class Configuration {
 public:
  Configuration(int threads, int shared, int64_t clusters, int blocks, void* stream) {
    cluster_.id = cudaLaunchAttributeClusterDimension;
    cluster_.val.clusterDim.x = blocks;
    cluster_.val.clusterDim.y = cluster_.val.clusterDim.z = 1;
    config_.gridDim = dim3(static_cast<unsigned>(clusters * blocks));
    config_.blockDim = dim3(static_cast<unsigned>(threads));
    config_.dynamicSmemBytes = static_cast<std::size_t>(shared);
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

// How many clusters of `blocks` blocks run at once, after allowing the kernel its shared memory and more than 8 blocks.
template <typename Call>
cudaError_t count_active(const Kernel<Call>& kernel, int blocks, int& clusters) {
  TAGRANK_TRY(cudaFuncSetAttribute(kernel.entry, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared));
  TAGRANK_TRY(cudaFuncSetAttribute(kernel.entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  const Configuration configuration(kernel.threads, kernel.shared, 1, blocks, nullptr);
  return cudaOccupancyMaxActiveClusters(&clusters, kernel.entry, configuration.get());
}

// How many clusters of `blocks` blocks run at once on the current device, whose number is `device`; 0 if none can run.
// Each answer is computed once.
template <typename Call>
cudaError_t active(const Kernel<Call>& kernel, int blocks, int device, int& clusters) {
  static std::mutex mutex;
  static std::map<std::tuple<void (*)(Call), int, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(kernel.entry, blocks, device);
  const auto found = known.find(key);
  if (found != known.end()) {
    clusters = found->second;
    return cudaSuccess;
  }
  clusters = 0;
  const cudaError_t error = count_active(kernel, blocks, clusters);
  // These errors say that the GPU cannot have such a cluster or so much shared memory, or that the library has no code for
  // it. It runs none.
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

}  // namespace

template <typename Call>
cudaError_t run(KernelsFor<Call> kernels_for, const Call& call, const Launch& to) {
  if (call.hidden < 1 || call.hidden > max_hidden(sizeof *call.weight_hh)) return cudaErrorInvalidValue;
  const OnDevice current(to.device);
  TAGRANK_TRY(current.error());
  const Kernels<Call> kernels = kernels_for(call.hidden, to.numbers);
  const int blocks = blocks_for(call.hidden);
  Kernel<Call> chosen{};
  int64_t needed = 0;
  for (int i = 0; i < kernels.count; ++i) {
    int clusters;
    TAGRANK_TRY(active(kernels.first[i], blocks, to.device, clusters));
    if (clusters == 0) continue;
    chosen = kernels.first[i];
    needed = (call.batch + chosen.rows - 1) / chosen.rows;
    if (needed <= clusters) break;
  }
  if (chosen.entry == nullptr) return cudaErrorInvalidClusterSize;
  const Configuration configuration(chosen.threads, chosen.shared, needed, blocks, to.stream);
  return cudaLaunchKernelEx(configuration.get(), chosen.entry, call);
}

template cudaError_t run(KernelsFor<ForwardCall<uint16_t>>, const ForwardCall<uint16_t>&, const Launch&);
template cudaError_t run(KernelsFor<ForwardCall<float>>, const ForwardCall<float>&, const Launch&);
template cudaError_t run(KernelsFor<BackwardCall<uint16_t>>, const BackwardCall<uint16_t>&, const Launch&);
template cudaError_t run(KernelsFor<BackwardCall<float>>, const BackwardCall<float>&, const Launch&);

namespace {

template <typename E>
cudaError_t active_of(Numbers numbers, int device, int hidden, bool backward, int& clusters) {
  if (hidden < 1 || hidden > max_hidden(sizeof(E))) return cudaSuccess;
  const int blocks = blocks_for(hidden);
  return backward ? active(*backward_kernels<E>(hidden, numbers).first, blocks, device, clusters)
                  : active(*forward_kernels<E>(hidden, numbers).first, blocks, device, clusters);
}

}  // namespace

int active_clusters(int device, int hidden, bool float32, bool backward, int& clusters) {
  clusters = 0;
  const OnDevice current(device);
  TAGRANK_TRY(current.error());
  return float32 ? active_of<float>(Numbers::kTf32, device, hidden, backward, clusters)
                 : active_of<uint16_t>(Numbers::kFloat16, device, hidden, backward, clusters);
}

const char* describe(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace tagrank::cuda
