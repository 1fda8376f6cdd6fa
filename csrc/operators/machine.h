// What the library can run on this machine.
#pragma once

#include <cstdint>

namespace tagrank {

// The rate of cpu/recurrence.h on torch's threads.
double multiply_add_rate(double seconds);

// Whether the library has the cluster kernels.
bool has_clusters();

// The number of cuda/recurrence.h. Raises an error if the GPU does, or if the library has no cluster kernels.
int64_t active_clusters(int64_t device, int64_t hidden, bool float32, bool backward);

}  // namespace tagrank
