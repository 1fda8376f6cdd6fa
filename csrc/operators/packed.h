// The operators of the recurrence over a packed batch, on CPUs: sequences of different lengths, without padding.
#pragma once

#include <vector>

#include "passes.h"

namespace tagrank {

// The forward pass. Step t has batch_sizes[t] rows, of which there are N in all, as in torch's PackedSequence.
//
//   gates_x [N, 4H], or [B, 4H] if `constant`: the input's share of the gates, then the same at each step of a sequence
//   weight_hh [4H, H], h0 and c0 [B, H]
//   weight_hr [P, H], which projects each hidden state: weight_hh is then [4H, P], and h0, output and h_n have P columns
//   save   whether backward will follow
//
// Returns output [N, H], h_n and c_n [B, H], each sequence's at its own end, and if `save`: the activated gates [N, 4H] and the
// cell states [N, H].
std::vector<Tensor> packed_forward(const Tensor& gates_x, const Tensor& weight_hh, const MaybeTensor& h0, const MaybeTensor& c0,
                                   const MaybeTensor& weight_hr, std::vector<int64_t> batch_sizes, bool constant, bool save,
                                   Launch launch);

// The backward pass. Missing gradients of the results are zeros. Returns the gradient of gates_x, and those of weight_hh, h0, c0
// and weight_hr whose bits (see layer.h) are set in `wanted`.
std::vector<Tensor> packed_backward(const MaybeTensor& grad_output, const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n,
                                    const Tensor& weight_hh, const MaybeTensor& h0, const MaybeTensor& c0,
                                    const MaybeTensor& weight_hr, std::vector<int64_t> batch_sizes, const Tensor& output,
                                    const Tensor& gates, const Tensor& cells, bool constant, int64_t wanted, Launch launch);

}  // namespace tagrank
