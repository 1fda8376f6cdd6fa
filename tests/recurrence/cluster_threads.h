// A pass of csrc/cuda on the host: a thread for each block of a cluster.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "cluster.h"
#include "number.h"
#include "recurrence.h"

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

// The calls of both passes on a small problem in 16 bit, and their memory, for the thread sanitizer. Which gradients there are is
// the caller's choice.
template <typename T>
struct Example {
  Example(int batch, int hidden, int steps)
      : gates_x(batch * 4 * hidden), weight(4 * hidden * hidden), output(steps * batch * hidden), gates(4 * output.size()),
        d_gates(gates.size()), d_gates_x(gates_x.size()), h_n(batch * hidden), c_n(batch * hidden), cells(output.size()) {
    for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = to_bits(T{}, float(i % 7) / 40 - 0.08f);
    forward.batch = backward.batch = batch;
    forward.hidden = backward.hidden = hidden;
    forward.steps = backward.steps = steps;
    forward.constant = backward.constant = true;
    forward.weight_hh = backward.weight_hh = weight.data();
    forward.gates_x = gates_x.data();
    forward.output = output.data();
    forward.h_n = h_n.data();
    forward.c_n = c_n.data();
    backward.gates = gates.data();
    backward.cells = cells.data();
    backward.d_gates = d_gates.data();
    backward.d_gates_x = d_gates_x.data();
  }
  Example(const Example&) = delete;
  Example& operator=(const Example&) = delete;

  std::vector<uint16_t> gates_x, weight, output, gates, d_gates, d_gates_x, h_n, c_n;
  std::vector<float> cells;
  ForwardCall<uint16_t> forward{};
  BackwardCall<uint16_t> backward{};
};

}  // namespace tagrank::cuda
