// Memory for the length of a call.
#pragma once

#include <cstdint>
#include <vector>

namespace tagrank::cpu {

// One block for all that a call needs. The largest recent one, up to 64 MB, is kept for the next call: fresh memory costs
// a page fault every 4 KB, which would take longer than the recurrence where that is small.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  // Makes `pointer` point to `count` elements, aligned to a cache line and not initialised, once allocate() was called;
  // null where there are none.
  template <typename C>
  void add(C*& pointer, int64_t count) {
    add(reinterpret_cast<void**>(&pointer), count * static_cast<int64_t>(sizeof(C)));
  }
  // Throws std::bad_alloc.
  void allocate();

 private:
  struct Part {
    void** pointer;
    int64_t offset;
  };
  void add(void** pointer, int64_t bytes);

  std::vector<Part> parts_;
  int64_t bytes_ = 0;
  struct Block* block_ = nullptr;
};

// Asks the system for large pages behind an array that is about to be written for the first time.
void prefer_large_pages(void* memory, int64_t bytes);

}  // namespace tagrank::cpu
