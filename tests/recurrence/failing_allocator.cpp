// For LD_PRELOAD: an allocator that fails once, at a place that a test chooses.
//
// The places are counted from fail_at() on: allocations of the library whose name ends in "_C.so" under tagrank/, and those of
// torch for the data of tensors.

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <new>

namespace {

std::atomic<long> until_failure{-1}, seen{0};

bool called_by(void* address, const char* name) {
  Dl_info info;
  return dladdr(address, &info) != 0 && info.dli_fname != nullptr && strstr(info.dli_fname, name) != nullptr;
}

bool fails() {
  if (until_failure < 0) return false;
  ++seen;
  return until_failure-- == 0;
}

template <typename Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

// The allocation number `place`, counted from 0, fails. None does if it is negative. Returns how many there were since the last
// call.
long fail_at(long place) {
  until_failure = place;
  return seen.exchange(0);
}

void* aligned_alloc(size_t unit, size_t bytes) {
  static auto* original = next<void*(size_t, size_t)>("aligned_alloc");
  if (until_failure >= 0 && called_by(__builtin_return_address(0), "tagrank/_C.so") && fails()) return nullptr;
  return original(unit, bytes);
}

int posix_memalign(void** memory, size_t unit, size_t bytes) {
  static auto* original = next<int(void**, size_t, size_t)>("posix_memalign");
  if (until_failure >= 0 && called_by(__builtin_return_address(0), "libc10.so") && fails()) return ENOMEM;
  return original(memory, unit, bytes);
}

}  // extern "C"

void* operator new(size_t bytes) {
  if (until_failure >= 0 && called_by(__builtin_return_address(0), "tagrank/_C.so") && fails()) throw std::bad_alloc();
  void* memory = malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
