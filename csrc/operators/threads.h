// torch's threads, for csrc/cpu.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <functional>

#include "../cpu/team.h"

namespace tagrank {

// torch's threads if they run at the same time (`concurrent`), else only the calling thread.
inline cpu::Threads torch_threads(bool concurrent) {
  return {concurrent ? static_cast<int64_t>(torch::stable::get_num_threads()) : 1,
          [](int64_t n, const std::function<void(int64_t, int64_t)>& body) {
            torch::stable::parallel_for(0, n, /*grain_size=*/1, body);
          }};
}

}  // namespace tagrank
