// Memory for the length of a call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace tagrank::cpu {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// `count` elements, aligned to a cache line, not initialised.
template <typename C>
using Scratch = std::unique_ptr<C[], Free>;

template <typename C>
Scratch<C> scratch(int64_t count) {
  const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(C) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes == 0 ? 64 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return Scratch<C>(static_cast<C*>(memory));
}

}  // namespace tagrank::cpu
