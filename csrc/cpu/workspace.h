// Memory that lasts for one call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tagrank::cpu {

// One block of memory for all arrays of a call. A block of up to 64 MB is kept for the next call: new memory costs a page
// fault every 4 KB, which would take longer than a small recurrence.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  // allocate() will make `pointer` point to `count` elements, aligned to a cache line and not initialised. The pointer is null
  // if count is 0.
  template <typename C>
  void add(C*& pointer, int64_t count) {
    add(reinterpret_cast<void**>(&pointer), count * static_cast<int64_t>(sizeof(C)));
  }
  // Sets all pointers. Throws std::runtime_error with the text of out_of_memory().
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

// What an error says if there is no memory: the words of torch's CPU allocator, by which callers recognise that a smaller batch
// may help. `bytes` is 0 if it is not known how many were wanted.
std::string out_of_memory(int64_t bytes);

// Requests large pages for an array that was not written yet.
void prefer_large_pages(void* memory, int64_t bytes);

}  // namespace tagrank::cpu
