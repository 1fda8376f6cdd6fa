// The variants of benchmarks/cluster_variants.h on the host, behind the same interface. Those of one size:
// -DTAGRANK_PADDED=128 -DTAGRANK_TILES=2. Built without CUDA.

#include <cstdlib>
#include <cstring>

#include "cluster_threads.h"
#include "cluster_variants.h"

namespace tagrank::cuda {
namespace {

using Run = void (*)(const Call&);
struct OnHost {
  template <typename S, typename V>
  static Run of() {
    using Pass = Forward<BFloat16, S, V>;
    return [](const Call& call) { run<Pass>(call, S::kRows, Pass::kShared, S::kUnits); };
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
  tagrank::cuda::entries()[index].run(*static_cast<const tagrank::cuda::Call*>(call));
  return 0;
}
const char* variants_error(int) { return "none"; }
}

#ifdef TAGRANK_MAIN
// Runs the variant with the given name on a small problem, for the thread sanitizer.
int main(int, char** arguments) {
  using namespace tagrank::cuda;
  const int batch = 9, hidden = TAGRANK_PADDED, steps = 5;
  std::vector<uint16_t> gates_x(batch * 4 * hidden), weight(4 * hidden * hidden), output(steps * batch * hidden);
  std::vector<uint16_t> h_n(batch * hidden), c_n(batch * hidden);
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = to_bits(BFloat16{}, float(i % 7) / 40 - 0.08f);
  Call call{};
  call.batch = batch;
  call.hidden = hidden;
  call.steps = steps;
  call.constant = true;
  call.gates_x = gates_x.data();
  call.weight_hh = weight.data();
  call.output = output.data();
  call.h_n = h_n.data();
  call.c_n = c_n.data();
  for (const auto& entry : entries()) {
    if (std::strcmp(entry.name, arguments[1]) != 0) continue;
    entry.run(call);
    return EXIT_SUCCESS;
  }
  return EXIT_FAILURE;
}
#endif
