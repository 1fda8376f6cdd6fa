#include "team.h"

#include <algorithm>
#include <thread>

namespace tagrank::cpu {

Grid Grid::over(int64_t threads, int64_t batch, int64_t panels, int64_t elements, int64_t bytes) {
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

void Barrier::wait(int64_t workers) {
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

}  // namespace tagrank::cpu
