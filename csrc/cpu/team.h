// How the work of a pass is shared out among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

namespace tagrank::cpu {

// The caller's threads: run(n, body) calls body(begin, end) once on each of up to n threads, with ranges that make up
// [0, n). The calls have to run at the same time, as they wait for each other.
struct Threads {
  int64_t count;
  std::function<void(int64_t n, const std::function<void(int64_t begin, int64_t end)>& body)> run;
};

struct Range {
  int64_t begin, end;
};

// Part i of n things in `parts` parts whose sizes differ by one at most.
inline Range share(int64_t n, int64_t parts, int64_t i) { return {n * i / parts, n * (i + 1) / parts}; }

// Workers on a grid over [rows, columns] of a step's result; each keeps its part over all steps. Workers of one row of
// the grid need each other's results before the next step. Those of different rows do not.
struct Grid {
  int64_t rows, columns;

  // For a batch, a number of panels (the columns that are computed together) and the size of the weight, of which a step
  // multiplies each element with all rows.
  static Grid over(int64_t threads, int64_t batch, int64_t panels, int64_t elements, int64_t bytes) {
    // The multiply-adds of less than this would be done in the time that a barrier takes.
    constexpr int64_t kLeastWork = 32768;
    // As many rows as it takes to hide the reading of the weight behind arithmetic: from the second-level cache, and from
    // memory, where all rows of the grid read it.
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

// All workers wait until all have come, again and again. A thread may stand for several of them.
class Barrier {
 public:
  explicit Barrier(int64_t workers) : workers_(workers) {}

  void wait(int64_t workers) {
    const int64_t arrived = arrived_.fetch_add(workers, std::memory_order_acq_rel);
    const int64_t all = (arrived / workers_ + 1) * workers_;
    // The others are a fraction of a step behind, unless their threads were put to sleep.
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
