#include "workspace.h"

#include <atomic>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tagrank::cpu {

struct Block {
  void* memory;
  int64_t bytes;
};

namespace {

// In bytes: a cache line, a large page, and the largest block that is kept for the next call.
constexpr int64_t kLine = 64, kLargePage = 2 << 20, kMaxSpare = 64 << 20;

// The block that is kept for the next call, or null.
std::atomic<Block*> spare{nullptr};

int64_t round_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

void release(Block* block) {
  if (block == nullptr) return;
  std::free(block->memory);
  delete block;
}

}  // namespace

void Workspace::add(void** pointer, int64_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return;
  parts_.push_back({pointer, bytes_});
  bytes_ += round_up(bytes, kLine);
}

void Workspace::allocate() {
  block_ = spare.exchange(nullptr);
  if (block_ == nullptr || block_->bytes < bytes_) {
    release(block_);
    const int64_t unit = bytes_ < kLargePage ? kLine : kLargePage, bytes = round_up(bytes_ + 1, unit);
    block_ = new Block{std::aligned_alloc(static_cast<std::size_t>(unit), static_cast<std::size_t>(bytes)), bytes};
    if (block_->memory == nullptr) throw std::bad_alloc();
    prefer_large_pages(block_->memory, bytes);
  }
  for (const Part& part : parts_) *part.pointer = static_cast<char*>(block_->memory) + part.offset;
}

Workspace::~Workspace() {
  if (block_ != nullptr && block_->bytes <= kMaxSpare) block_ = spare.exchange(block_);
  release(block_);
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
