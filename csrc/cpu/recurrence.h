// The LSTM recurrence over a whole sequence, on CPUs. Plain pointers and sizes; arrays are contiguous where no strides are
// given, with H the innermost dimension. A row of gates is i, f, g, o, each of H columns.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "team.h"

namespace tagrank::cpu {

// T is float, double or bfloat16.
template <typename T>
struct ForwardCall {
  int64_t batch, hidden, steps;  // B, H, T
  bool constant;                 // whether gates_x is the same at each step
  const T* gates_x;              // [B, 4H] or [T, B, 4H], the input's share of the gates
  const T* weight_hh;            // [4H, H]
  const T* h0;                   // [B, H], or null for zeros
  const T* c0;                   // [B, H], or null for zeros
  T* output;                     // [T, B, H]  h_1..h_T
  T* c_n;                        // [B, H]     c_T
  T* gates;                      // [T, B, 4H] the activated gates, or null where they are not kept
  compute_t<T>* cells;           // [T, B, H]  c_1..c_T, or null where they are not kept
};

template <typename T>
struct BackwardCall {
  int64_t batch, hidden, steps;
  bool constant;
  const T* grad_output;         // [T, B, H], of the strides below
  int64_t grad_output_strides[3];  // the last is 1, or 0 where all columns share one element
  const T* grad_c_n;            // [B, H]
  const T* gates_x;             // as in ForwardCall; read where gates is null
  const T* weight_hh;           // [4H, H]
  const T* h0;                  // [B, H], or null for zeros
  const T* c0;                  // [B, H], or null for zeros
  const T* output;              // [T, B, H]
  const T* gates;               // [T, B, 4H], or null: they are computed again, some steps at a time
  const compute_t<T>* cells;    // [T, B, H]
  T* d_gates_x;                 // [B, 4H], the sum over time, or [T, B, 4H]
  T* d_weight_hh;               // [4H, H], or null where it is not wanted
  T* d_h0;                      // [B, H], or null where it is not wanted
  T* d_c0;                      // [B, H], or null where it is not wanted

  // The hidden state before step t of the row `row` of those that begin with step t; null for zeros.
  const T* hidden_before(int64_t t, int64_t row) const {
    const int64_t before = (t - 1) * batch + row;
    if (before >= 0) return output + before * hidden;
    return h0 != nullptr ? h0 + (before + batch) * hidden : nullptr;
  }
};

template <typename T>
void forward(const ForwardCall<T>& call, const Threads& threads);
template <typename T>
void backward(const BackwardCall<T>& call, const Threads& threads);

// 10^9 operations a second, two for each multiply-add in float32 (on a matrix unit, as products of parts), that the threads
// do out of registers: what bounds the two passes. Measured for so many seconds.
double multiply_add_rate(double seconds, const Threads& threads);

}  // namespace tagrank::cpu
