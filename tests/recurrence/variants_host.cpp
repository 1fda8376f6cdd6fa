// The variants of benchmarks/cluster_variants.h on the host, behind the same interface. Those of one size:
// -DTAGRANK_PADDED=128 -DTAGRANK_TILES=2. Built without CUDA.

#include <cstdlib>
#include <cstring>

#include "cluster_threads.h"
#include "cluster_variants.h"

namespace tagrank::cuda {
namespace {

// Runs a ForwardCall or a BackwardCall.
using Run = void (*)(const void*);
struct OnHost {
  template <typename S, typename V>
  static Run forward() {
    return of<Forward<BFloat16, S, V>, ForwardCall<uint16_t>, S>();
  }
  template <typename S, typename V>
  static Run backward() {
    return of<Backward<BFloat16, S, V>, BackwardCall<uint16_t>, S>();
  }
  template <typename Pass, typename Call, typename S>
  static Run of() {
    return [](const void* call) { run<Pass>(*static_cast<const Call*>(call), S::kRows, Pass::kShared, S::kUnits); };
  }
};

const std::vector<Entry<Run>>& entries() {
  static const std::vector<Entry<Run>> all = [] {
    std::vector<Entry<Run>> found;
    add_variants<OnHost, TAGRANK_PADDED, TAGRANK_TILES>(found);
    return found;
  }();
  return all;
}

}  // namespace
}  // namespace tagrank::cuda

TAGRANK_VARIANTS_INTERFACE(tagrank::cuda::entries)

extern "C" {

int variants_active(int, int* clusters) {
  *clusters = 1;
  return 0;
}
int variants_launch(int index, const void* call, void*) {
  tagrank::cuda::entries()[index].run(call);
  return 0;
}
const char* variants_error(int) { return "none"; }
}

#ifdef TAGRANK_MAIN
// Runs the variant of the given pass and name on a small problem, for the thread sanitizer.
int main(int, char** arguments) {
  using namespace tagrank::cuda;
  const int batch = 9, hidden = TAGRANK_PADDED, steps = 5;
  std::vector<uint16_t> gates_x(batch * 4 * hidden), weight(4 * hidden * hidden), output(steps * batch * hidden);
  std::vector<uint16_t> gates(4 * output.size()), d_gates(gates.size()), d_gates_x(gates_x.size());
  std::vector<uint16_t> h_n(batch * hidden), c_n(batch * hidden);
  std::vector<float> cells(output.size());
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = to_bits(BFloat16{}, float(i % 7) / 40 - 0.08f);
  ForwardCall<uint16_t> forward{};
  forward.batch = batch;
  forward.hidden = hidden;
  forward.steps = steps;
  forward.constant = true;
  forward.gates_x = gates_x.data();
  forward.weight_hh = weight.data();
  forward.output = output.data();
  forward.h_n = h_n.data();
  forward.c_n = c_n.data();
  BackwardCall<uint16_t> backward{};
  backward.batch = batch;
  backward.hidden = hidden;
  backward.steps = steps;
  backward.constant = true;
  backward.grad_h_n = h_n.data();
  backward.weight_hh = weight.data();
  backward.gates = gates.data();
  backward.cells = cells.data();
  backward.d_gates = d_gates.data();
  backward.d_gates_x = d_gates_x.data();
  for (const auto& entry : entries()) {
    if (std::strcmp(entry.pass, arguments[1]) != 0 || std::strcmp(entry.name, arguments[2]) != 0) continue;
    const bool is_forward = std::strcmp(entry.pass, "forward") == 0;
    entry.run(is_forward ? static_cast<const void*>(&forward) : &backward);
    return EXIT_SUCCESS;
  }
  return EXIT_FAILURE;
}
#endif
