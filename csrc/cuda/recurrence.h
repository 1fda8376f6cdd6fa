// The recurrence of a whole sequence on an NVIDIA GPU with thread-block clusters, for 16-bit numbers and H up to 512:
// device pointers and sizes in, a stream to launch on, a cudaError_t out. Nothing is allocated and nothing waited for.
//
// For T steps, B rows and H hidden units, all contiguous; gates are ordered i, f, g, o:
//   gates_x, d_gates_x   [T, B, 4H], or [B, 4H] where `constant`
//   weight_hh            [4H, H]
//   output, cells        [T, B, H], cells in float32
//   gates, d_gates       [T, B, 4H]
//   h0, c0, c_n, d_c0, grad_c_n   [B, H]
#pragma once

#include <cstdint>

namespace tagrank::cuda {

struct ForwardCall {
  int64_t batch, steps;
  int hidden;
  bool constant;
  const uint16_t *gates_x, *weight_hh, *h0, *c0;  // h0 and c0 may be null: zeros
  uint16_t *output, *c_n;
  uint16_t* gates;  // activated; null where they are not kept
  float* cells;     // null where they are not kept
};

struct BackwardCall {
  int64_t batch, steps;
  int hidden;
  bool constant;
  const uint16_t *grad_output, *grad_c_n, *weight_hh, *c0;
  const uint16_t* gates;    // activated; where `gates_x` is there the recurrent products instead, and `d_gates` may be the same
  const uint16_t* gates_x;  // null unless gates are to be computed again
  const float* cells;
  uint16_t* d_gates;
  uint16_t* d_gates_x;  // the sum of d_gates over time, where `constant`
  uint16_t* d_c0;       // null where c0 is
};

// Where a call runs.
struct Launch {
  int device;
  void* stream;  // a cudaStream_t
  bool bfloat16;
};

int forward(const ForwardCall& call, const Launch& launch);
int backward(const BackwardCall& call, const Launch& launch);

// How many clusters of a pass run at once on a device, with the fewest rows in each; 0 where none can.
int active_clusters(int device, int hidden, bool backward, int& clusters);

const char* describe(int error);

}  // namespace tagrank::cuda
