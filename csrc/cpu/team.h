// How the work of a pass is shared out among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

namespace tagrank::cpu {

// The caller's threads. run(n, body) calls body(begin, end) once on each of up to n threads, with ranges that together are
// [0, n). The calls must run at the same time, because they wait for each other.
struct Threads {
  int64_t count;
  std::function<void(int64_t n, const std::function<void(int64_t begin, int64_t end)>& body)> run;
};

struct Range {
  int64_t begin, end;
};

// Part i of [0, n) in `parts` parts whose sizes differ by at most one.
inline Range share(int64_t n, int64_t parts, int64_t i) { return {n * i / parts, n * (i + 1) / parts}; }

// A grid of workers over [batch rows, columns] of a step's result. Each worker has the same part in all steps. Workers in one
// row of the grid need each other's results before the next step; workers in different rows do not.
struct Grid {
  int64_t rows, columns;

  // The grid for a batch and a number of panels (columns that are computed together). `elements` and `bytes` are the size of
  // the weight; a step multiplies each of its elements with all batch rows.
  static Grid over(int64_t threads, int64_t batch, int64_t panels, int64_t elements, int64_t bytes) {
    // The least multiply-adds for a worker. Fewer take less time than a barrier.
    constexpr int64_t kLeastWork = 32768;
    // The batch rows of a worker that hide the reading of the weight behind arithmetic: if the weight is in the second-level
    // cache, and if it comes from memory, where every row of the grid reads it.
    constexpr int64_t kCache = 1 << 20, kLeastRows = 24, kLeastRowsFromMemory = 64;
    const int64_t workers = std::clamp<int64_t>(batch * elements / kLeastWork, 1, threads);
    const int64_t least_rows = bytes <= kCache ? kLeastRows : kLeastRowsFromMemory;
    if (batch >= workers * least_rows) return {workers, 1};
    const int64_t columns = std::min(workers, panels);
    return {std::clamp<int64_t>(workers / columns, 1, std::max<int64_t>(batch / least_rows, 1)), columns};
  }

  int64_t workers() const { return rows * columns; }
  Range row_share(int64_t worker, int64_t n) const { return share(n, rows, worker / columns); }
  Range column_share(int64_t worker, int64_t n) const { return share(n, columns, worker % columns); }
};

// A barrier that can be used again. A thread may wait on behalf of several workers.
class Barrier {
 public:
  explicit Barrier(int64_t workers) : workers_(workers) {}

  void wait(int64_t workers) {
    const int64_t arrived = arrived_.fetch_add(workers, std::memory_order_acq_rel);
    const int64_t all = (arrived / workers_ + 1) * workers_;
    // The other workers are a fraction of a step behind, unless the system suspended their threads.
    for (int64_t spins = 0; arrived_.load(std::memory_order_acquire) < all; ++spins) {
      if (spins < 4096) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  const int64_t workers_;
  alignas(64) std::atomic<int64_t> arrived_{0};
};

}  // namespace tagrank::cpu
