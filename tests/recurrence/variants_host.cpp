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
  Example<BFloat16> example(/*batch=*/9, TAGRANK_PADDED, /*steps=*/5);
  example.backward.grad_h_n = example.h_n.data();
  for (const auto& entry : entries()) {
    if (std::strcmp(entry.pass, arguments[1]) != 0 || std::strcmp(entry.name, arguments[2]) != 0) continue;
    const bool is_forward = std::strcmp(entry.pass, "forward") == 0;
    entry.run(is_forward ? static_cast<const void*>(&example.forward) : &example.backward);
    return EXIT_SUCCESS;
  }
  return EXIT_FAILURE;
}
#endif
