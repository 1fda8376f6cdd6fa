#include "driver.h"

#include <dlfcn.h>
#include <torch/csrc/stable/tensor.h>

namespace tagrank::driver {

namespace {

// CUresult, CUfunction, CUstream and CUstreamCaptureStatus in plain C++ types.
using LaunchKernel = int(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
using LaunchCooperativeKernel = int(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**);
using StreamIsCapturing = int(void*, int*);
using Clear = int(unsigned long long, unsigned, std::size_t, void*);
using GetErrorString = int(int, const char**);

struct Driver {
  LaunchKernel* launch_kernel;
  LaunchCooperativeKernel* launch_cooperative_kernel;
  StreamIsCapturing* stream_is_capturing;
  Clear* clear;
  GetErrorString* get_error_string;
};

Driver load() {
  void* library = dlopen("libcuda.so.1", RTLD_LAZY);
  STD_TORCH_CHECK(library != nullptr, "tagrank: the CUDA driver cannot be loaded: ", dlerror());
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    STD_TORCH_CHECK(function != nullptr, "tagrank: the CUDA driver has no ", name);
  };
  Driver driver;
  find(driver.launch_kernel, "cuLaunchKernel");
  find(driver.launch_cooperative_kernel, "cuLaunchCooperativeKernel");
  find(driver.stream_is_capturing, "cuStreamIsCapturing");
  find(driver.clear, "cuMemsetD32Async");
  find(driver.get_error_string, "cuGetErrorString");
  return driver;
}

const Driver& loaded() {
  static const Driver driver = load();
  return driver;
}

void check(int result) {
  if (result == 0) return;
  const char* text = nullptr;
  loaded().get_error_string(result, &text);
  STD_TORCH_CHECK(false, "tagrank: a Triton kernel failed: ", text == nullptr ? "unknown error" : text);
}

}  // namespace

void launch(void* function, int64_t tiles, int64_t slices, int64_t threads, int64_t shared, void* stream, bool cooperative,
            void** parameters) {
  const auto as = [](int64_t number) { return static_cast<unsigned>(number); };
  const Driver& driver = loaded();
  const unsigned x = as(tiles), y = as(slices), per_program = as(threads), bytes = as(shared);
  check(cooperative
            ? driver.launch_cooperative_kernel(function, x, y, 1, per_program, 1, 1, bytes, stream, parameters)
            : driver.launch_kernel(function, x, y, 1, per_program, 1, 1, bytes, stream, parameters, nullptr));
}

bool capturing(void* stream) {
  int status = 0;
  check(loaded().stream_is_capturing(stream, &status));
  return status != 0;
}

void clear(void* memory, int64_t bytes, void* stream) {
  check(loaded().clear(reinterpret_cast<unsigned long long>(memory), 0, static_cast<std::size_t>(bytes / 4), stream));
}

}  // namespace tagrank::driver
