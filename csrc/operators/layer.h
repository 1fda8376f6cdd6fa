// The operators of a layer: a pass of an LSTM layer over a whole sequence, with the products before and after the recurrence.
#pragma once

#include <vector>

#include "passes.h"

namespace tagrank {

// The forward pass. x_t = [input_t, context], of which one may be missing:
//
//     gates_t = W x_t + b_ih + b_hh + U h_{t-1}
//
// Some of this may be ready. Without weight_ih, the context [B, 4H] or the input [T, B, 4H] is its share of the gates itself.
// With a weight_ih that has only the input's columns, the context [B, 4H] is.
//
//   context [B, C], input [T, B, I] (or [B, I] if T is 1), h0 and c0 [B, H]
//   weight_ih [4H, I + C], weight_hh [4H, H], bias_ih and bias_hh [4H]
//   state_dimensions   3 for h_n and c_n as [1, B, H]; 2 for [B, H], with h_n the last step of the output and not a copy, for
//                      callers that return one of the two or copy it themselves. h0 and c0 may have either
//   save_gates, save_cells   what backward will read. With cells and no gates, it computes the gates again
//   launch             how and where the recurrence runs, see passes.h
//
// Returns output [T, B, H], h_n, c_n, and if save_cells: the activated gates [T, B, 4H] (without save_gates: the gates before
// the recurrence, [B, 4H] or [T, B, 4H]), and the cell states [T, B, H].
std::vector<Tensor> layer_forward(const MaybeTensor& context, const MaybeTensor& input, const MaybeTensor& h0,
                                  const MaybeTensor& c0, const MaybeTensor& weight_ih, const Tensor& weight_hh,
                                  const MaybeTensor& bias_ih, const MaybeTensor& bias_hh, int64_t steps,
                                  int64_t state_dimensions, bool save_gates, bool save_cells, Launch launch);

// The gradients that layer_backward can be asked for, in the order in which it returns them. Only packed_backward knows the last.
enum Wanted { kContext = 1, kInput = 2, kWeightIh = 4, kWeightHh = 8, kBias = 16, kH0 = 32, kC0 = 64, kWeightHr = 128 };

// The backward pass. Missing gradients of the results are zeros. `saved` is the gates as layer_forward returned them, activated
// unless `recompute`; `constant` is whether there was only a context, and `summed` whether the sum of the gates' gradients over
// time is wanted, if T is not 1. `context` and `input` may be missing if weight_ih is, and `output` if T is 1. Returns the
// gradients whose bits are set in `wanted`; both biases have the same one.
std::vector<Tensor> layer_backward(const MaybeTensor& grad_output, const MaybeTensor& grad_h_n, const MaybeTensor& grad_c_n,
                                   const MaybeTensor& context, const MaybeTensor& input, const MaybeTensor& h0,
                                   const MaybeTensor& c0, const MaybeTensor& weight_ih, const Tensor& weight_hh,
                                   const MaybeTensor& output, const Tensor& saved, const Tensor& cells, bool constant,
                                   bool summed, bool recompute, int64_t wanted, Launch launch);

}  // namespace tagrank
