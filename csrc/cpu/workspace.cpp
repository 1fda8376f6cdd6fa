#include "workspace.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tagrank::cpu {

// The first cache line of a block's memory: there is no block without memory, and nothing else to allocate.
struct Block {
  int64_t bytes;
};

namespace {

// In bytes: a cache line, a large page, and the largest block that is kept for the next call.
constexpr int64_t kLine = 64, kLargePage = 2 << 20, kMaxSpare = 64 << 20;
static_assert(sizeof(Block) <= kLine);

// The block that is kept for the next call, or null.
std::atomic<Block*> spare{nullptr};

int64_t round_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

Block* new_block(int64_t least) {
  const int64_t unit = least < kLargePage ? kLine : kLargePage, bytes = round_up(least, unit);
  void* memory = std::aligned_alloc(static_cast<std::size_t>(unit), static_cast<std::size_t>(bytes));
  if (memory == nullptr) throw std::runtime_error(out_of_memory(bytes));
  prefer_large_pages(memory, bytes);
  return new (memory) Block{bytes};
}

}  // namespace

void Workspace::add(void** pointer, int64_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return;
  parts_.push_back({pointer, bytes_});
  bytes_ += round_up(bytes, kLine);
}

void Workspace::allocate() {
  const int64_t least = kLine + bytes_;
  block_ = spare.exchange(nullptr);
  if (block_ != nullptr && block_->bytes < least) {
    std::free(block_);
    block_ = nullptr;
  }
  if (block_ == nullptr) block_ = new_block(least);
  for (const Part& part : parts_) *part.pointer = reinterpret_cast<char*>(block_) + kLine + part.offset;
}

Workspace::~Workspace() {
  if (block_ != nullptr && block_->bytes <= kMaxSpare) block_ = spare.exchange(block_);
  std::free(block_);
}

std::string out_of_memory(int64_t bytes) {
  const std::string wanted = bytes == 0 ? "a few" : std::to_string(bytes);
  return "DefaultCPUAllocator: can't allocate memory: you tried to allocate " + wanted + " bytes.";
}

void prefer_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const std::uintptr_t last = (begin + static_cast<std::uintptr_t>(bytes)) / kLargePage * kLargePage;
  // The system may ignore the request. That changes only the time.
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace tagrank::cpu
