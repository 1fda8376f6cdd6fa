// A pass of csrc/cuda on the host: a thread for each block of a cluster.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "cluster.h"

namespace tagrank::cuda {

// Runs all clusters of a pass in turn. Shared memory begins as NaN, so that reads of unwritten memory show.
template <typename Pass, typename Call>
void run(const Call& call, int rows, int bytes, int units = kUnits) {
  const int blocks = (call.hidden + units - 1) / units;
  for (int cluster = 0; cluster * int64_t{rows} < call.batch; ++cluster) {
    std::vector<std::vector<uint64_t>> memory(blocks, std::vector<uint64_t>(bytes / 8 + 1, ~uint64_t{0}));
    std::vector<unsigned char*> shared;
    for (auto& block : memory) {
      auto* start = reinterpret_cast<unsigned char*>(block.data());
      shared.push_back(start + reinterpret_cast<uintptr_t>(start) % 16);
    }
    Meeting meeting(blocks);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < blocks; ++rank) {
      threads.emplace_back([&, rank] {
        Block block(rank, cluster, shared, meeting);
        Pass(call, block).run();
      });
    }
    for (auto& thread : threads) thread.join();
  }
}

}  // namespace tagrank::cuda
