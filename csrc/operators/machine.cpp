#include "machine.h"

#include <torch/csrc/stable/tensor.h>

#include "../cpu/recurrence.h"
#include "threads.h"
#ifdef TAGRANK_CUDA
#include "../cuda/recurrence.h"
#endif

namespace tagrank {

double multiply_add_rate(double seconds) { return cpu::multiply_add_rate(seconds, torch_threads(/*concurrent=*/true)); }

bool has_clusters() {
#ifdef TAGRANK_CUDA
  return true;
#else
  return false;
#endif
}

int64_t active_clusters(int64_t device, int64_t hidden, bool float32, bool backward) {
#ifdef TAGRANK_CUDA
  int clusters;
  const int on = static_cast<int>(device), units = static_cast<int>(hidden);
  const int error = cuda::active_clusters(on, units, float32, backward, clusters);
  STD_TORCH_CHECK(error == 0, "tagrank: the cluster kernels failed: ", cuda::describe(error));
  return clusters;
#else
  STD_TORCH_CHECK(false, "tagrank: this library was built without the cluster kernels; asked for device ", device,
                  ", H = ", hidden, float32 ? ", float32" : ", 16 bit", backward ? ", backward" : ", forward");
#endif
}

}  // namespace tagrank
