// A pass over all time steps, on the CPU or on a GPU: what it reads and writes, with everything allocated and checked.
// All tensors are contiguous unless said otherwise, of the dtype and on the device of weight_hh; `cells` has the cells' dtype.
#pragma once

#include <vector>

#include "tensors.h"

namespace tagrank {

// How and where to run a pass: the numbers that a backend's `launch` in Python returns.
using Launch = std::vector<int64_t>;
// What the first numbers of a launch on a GPU are.
enum GpuLaunch {
  kStream,  // a cudaStream_t
  kTf32,    // whether float32 products may be computed in TF32
  kGpuNumbers
};

// T steps, B rows, H hidden units.
struct Sizes {
  int64_t steps, batch, hidden;
};

// The rows of a packed batch, as PackedSequence has them: arrays are [N, ...] where they would be [T, B, ...].
struct PackedRows {
  std::vector<int64_t> first;   // [T + 1]: the first row of each step, and N
  std::vector<int64_t> before;  // [N]: the row of the same sequence one step before, from the second step on
  int64_t count() const { return first.back(); }
};

struct ForwardPass {
  Sizes sizes;
  bool constant;         // whether gates_x is the same at each step
  Tensor gates_x;        // [T, B, 4H], or [B, 4H] if `constant`
  MaybeTensor addend;    // [4H], or [B, 4H]: is added to gates_x at each step. Only GPUs take one
  Tensor weight_hh;      // [4H, H]
  MaybeTensor h0, c0;    // [B, H], in any number of dimensions; zeros if missing
  Tensor output;         // [T, B, H]
  Tensor h_n, c_n;       // [B, H], in any number of dimensions. h_n may be the last step of output
  MaybeTensor gates;     // [T, B, 4H]: the activated gates, if they are to be saved
  MaybeTensor cells;     // [T, B, H], likewise
  const PackedRows* packed = nullptr;  // Only CPUs take a packed batch
  // [P, H], which projects each hidden state: weight_hh is then [4H, P], and h0, output and h_n have P columns. Likewise.
  MaybeTensor weight_hr = std::nullopt;
};

struct BackwardPass {
  Sizes sizes;
  bool summed;                                    // whether the sum of the gates' gradients over time is wanted
  MaybeTensor grad_output, grad_h_n, grad_c_n;    // [T, B, H] with any strides, and [B, H]; zeros if missing
  bool constant;                                  // as in the forward pass
  MaybeTensor gates_x;                            // as the forward pass read it, if the gates were not saved
  MaybeTensor gates;                              // as the forward pass wrote it, otherwise
  Tensor weight_hh;
  MaybeTensor h0, c0;
  MaybeTensor output;                             // as the forward pass wrote it. Not needed if T is 1
  Tensor cells;
  bool weight_wanted, h0_wanted, c0_wanted;
  const PackedRows* packed = nullptr;  // as in the forward pass. A packed batch has `gates`
  MaybeTensor weight_hr = std::nullopt;  // as in the forward pass, only for a packed batch
  bool weight_hr_wanted = false;
};

// Gradients that were not asked for are missing.
struct Gradients {
  MaybeTensor gates;      // [T, B, 4H]. On CPUs missing if `summed`, except where T is 1
  MaybeTensor gates_sum;  // [B, 4H], if `summed`
  MaybeTensor weight_hh, h0, c0, weight_hr;
};

void cpu_forward(const ForwardPass& pass, const Launch& launch);
Gradients cpu_backward(const BackwardPass& pass, const Launch& launch);
void gpu_forward(const ForwardPass& pass, const Launch& launch);
Gradients gpu_backward(const BackwardPass& pass, const Launch& launch);

}  // namespace tagrank
