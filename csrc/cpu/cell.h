// The LSTM cell, forward and backward, for one time step: all that lies between two matrix products, in one pass.
// Plain pointers and sizes. Arrays are contiguous; a row of gates is i, f, g, o, each of H columns.
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace tagrank::cpu {

// T is float, double or bfloat16.
template <typename T>
struct ForwardStep {
  int64_t hidden;              // H
  const T* product;            // [B, 4H]  h_{t-1} U^T
  const T* gates_x;            // [B, 4H]  the input's share of the gates
  const compute_t<T>* c_prev;  // [B, H]
  compute_t<T>* c;             // [B, H]   c_t; may be c_prev
  T* h;                        // [B, H]   h_t
  T* gates;                    // [B, 4H]  the activated gates, or null where they are not kept
};

template <typename T>
struct BackwardStep {
  int64_t hidden;              // H
  const T* grad_output;        // [B, H]   the gradient of h_t as an output
  const T* grad_h;             // [B, H]   the gradient of h_t as the state of step t + 1
  const T* gates;              // [B, 4H]  the activated gates
  const compute_t<T>* c_prev;  // [B, H]
  const compute_t<T>* c;       // [B, H]
  compute_t<T>* grad_c;        // [B, H]   the gradient of c_t, replaced by that of c_{t-1}
  T* grad_gates;               // [B, 4H]  the gradient of the gates before their activation
  compute_t<T>* grad_sum;      // [B, 4H]  to which grad_gates is added before it is rounded, or null
};

// Both compute the elements [begin, end) of the B * H, for the caller to share them out among threads.
template <typename T>
void cell_forward(const ForwardStep<T>& step, int64_t begin, int64_t end);
template <typename T>
void cell_backward(const BackwardStep<T>& step, int64_t begin, int64_t end);

}  // namespace tagrank::cpu
