// The recurrence of a whole sequence on an NVIDIA GPU with thread-block clusters, for H up to 512 in 16 bit and 256 in float32:
// functions that take device pointers, sizes and a stream and return a cudaError_t. They only launch: they neither allocate
// memory nor wait for the GPU.
//
// Shapes for T steps, B rows and H hidden units. All arrays are contiguous unless they have strides; gates are ordered i, f, g,
// o:
//   gates_x              [T, B, 4H], or [B, 4H] if `constant`
//   weight_hh            [4H, H]
//   output, cells        [T, B, H], cells in float32
//   gates, d_gates       [T, B, 4H]
//   h0, c0, h_n, c_n, d_c0, grad_h_n, grad_c_n   [B, H]
#pragma once

#include <cstdint>

namespace tagrank::cuda {

// E is how numbers lie in memory: uint16_t or float.
template <typename E>
struct ForwardCall {
  int64_t batch, steps;
  int hidden;
  bool constant;
  const E *gates_x, *weight_hh, *h0, *c0;  // h0 and c0 may be null, which means zeros
  const E* addend;         // is added to gates_x at each step; null for none
  int64_t addend_stride;   // 0 if the addend is one row [4H] for all batch rows, 4H if it is [B, 4H]
  E *output, *h_n, *c_n;
  E* gates;      // activated gates; null if they are not saved
  float* cells;  // null if they are not saved
};

template <typename E>
struct BackwardCall {
  int64_t batch, steps;
  int hidden;
  bool constant;
  const E* grad_output;  // [T, B, H], with the strides below; null for zeros
  int grad_output_strides[3];
  const E *grad_h_n, *grad_c_n;  // null for zeros
  const E *weight_hh, *c0;
  // The activated gates. If `gates_x` is not null: the recurrent products h_{t-1} U^T, and `d_gates` may be the same array.
  const E* gates;
  const E* gates_x;  // null unless the gates must be computed again
  const float* cells;
  E* d_gates;
  E* d_gates_x;  // the sum of d_gates over time, [B, 4H]; null if it is not wanted
  E* d_c0;       // null if c0 is null
};

// What the numbers of a call are, and how float32 products are computed: see number.h.
enum class Numbers { kFloat16, kBFloat16, kTf32, kTf32x3 };

// Where a call runs.
struct Launch {
  int device;
  void* stream;  // a cudaStream_t
  Numbers numbers;
};

int forward(const ForwardCall<uint16_t>& call, const Launch& launch);
int forward(const ForwardCall<float>& call, const Launch& launch);
int backward(const BackwardCall<uint16_t>& call, const Launch& launch);
int backward(const BackwardCall<float>& call, const Launch& launch);

// Sets `clusters` to the number of clusters of a pass, with the fewest rows in each, that run at once on a device: 0 if the
// device cannot run them. Returns a cudaError_t.
int active_clusters(int device, int hidden, bool float32, bool backward, int& clusters);

// The text of a cudaError_t.
const char* describe(int error);

}  // namespace tagrank::cuda
