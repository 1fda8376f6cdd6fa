// Three functions of the CUDA driver, loaded when they are first used: the kernels that Triton compiles are the driver's, and
// launching them needs no CUDA toolkit when tagrank is built. Each raises an error if the driver does.
#pragma once

#include <cstdint>

namespace tagrank::driver {

// Launches tiles x slices programs of `threads` threads with `shared` bytes of shared memory each. `function` is a CUfunction,
// `stream` a CUstream, and `parameters` has a pointer to each parameter. Programs of a cooperative launch all run at once.
void launch(void* function, int64_t tiles, int64_t slices, int64_t threads, int64_t shared, void* stream, bool cooperative,
            void** parameters);

// Whether the stream records a CUDA graph.
bool capturing(void* stream);

// Sets bytes, of which there are a multiple of four, to zero.
void clear(void* memory, int64_t bytes, void* stream);

}  // namespace tagrank::driver
