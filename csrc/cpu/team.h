// How the work of a pass is shared out among threads. What is longer than a line is in team.cpp: each instruction set would have
// a copy of its own, of which the linker keeps any one for all CPUs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

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
  static Grid over(int64_t threads, int64_t batch, int64_t panels, int64_t elements, int64_t bytes);

  int64_t workers() const { return rows * columns; }
  Range row_share(int64_t worker, int64_t n) const { return share(n, rows, worker / columns); }
  Range column_share(int64_t worker, int64_t n) const { return share(n, columns, worker % columns); }
};

// A barrier that can be used again. A thread may wait on behalf of several workers.
class Barrier {
 public:
  explicit Barrier(int64_t workers) : workers_(workers) {}

  void wait(int64_t workers);

 private:
  const int64_t workers_;
  alignas(64) std::atomic<int64_t> arrived_{0};
};

}  // namespace tagrank::cpu
