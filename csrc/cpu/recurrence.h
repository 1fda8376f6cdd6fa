// The LSTM recurrence over a whole sequence, on CPUs. The functions take plain pointers and sizes. Arrays are contiguous unless
// strides are given. A row of gates is i, f, g, o, each of H columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "capability.h"
#include "dtypes.h"
#include "team.h"

namespace tagrank::cpu {

// Where the batch rows of each step are in an array [T, B, ...], or in a packed array [N, ...]: there step t has the rows
// [first[t], first[t + 1]), one for each sequence that has not ended, and no step has more rows than the step before.
struct Rows {
  int64_t batch, steps;
  const int64_t* first;  // [T + 1], or null if each step has all rows

  // The first row of step t.
  int64_t at(int64_t t) const { return first != nullptr ? first[t] : t * batch; }
  // The number of rows of step t.
  int64_t count(int64_t t) const { return first != nullptr ? first[t + 1] - first[t] : batch; }
  // The rows of `range` that step t has.
  Range in(int64_t t, Range range) const { return {range.begin, std::clamp(count(t), range.begin, range.end)}; }
  // Whether step t is the last one of a row.
  bool ends(int64_t t, int64_t row) const { return t == steps - 1 || (first != nullptr && row >= count(t + 1)); }
};

// The batch rows of each worker, in whole units of `unit` rows. In a packed batch those of later rows are more, because these
// have fewer steps.
class RowShares {
 public:
  RowShares(const Grid& grid, const Rows& rows, int64_t unit);

  Range of(int64_t worker) const;

 private:
  const Grid grid_;
  const int64_t batch_, unit_;
  std::vector<int64_t> bounds_;
};

// The arguments of a forward pass; T is float, double or bfloat16.
template <typename T>
struct ForwardCall {
  int64_t batch, hidden, steps;  // B, H, T
  bool constant;                 // whether gates_x is the same at each step: [B, 4H]
  const T* gates_x;              // [B, 4H] or [T, B, 4H], the input's share of the gates
  const T* weight_hh;            // [4H, O]
  const T* weight_hr;            // [O, H], which projects each hidden state, or null
  int64_t outputs;               // O: the columns of a hidden state after the projection, and H if there is none
  const T* h0;                   // [B, O], or null for zeros
  const T* c0;                   // [B, H], or null for zeros
  T* output;                     // [T, B, O]  h_1..h_T
  T* c_n;                        // [B, H]     c_T
  T* gates;                      // [T, B, 4H] the activated gates, or null if they are not saved
  compute_t<T>* cells;           // [T, B, H]  c_1..c_T, or null if they are not saved
  const int64_t* first_rows;     // [T + 1] of a packed batch, whose arrays are [N, ...] and not [T, B, ...]; otherwise null

  Rows rows() const { return {batch, steps, first_rows}; }
};

template <typename T>
struct BackwardCall {
  int64_t batch, hidden, steps;
  bool constant;
  const T* grad_output;            // [T, B, O], with the strides below
  int64_t grad_output_strides[3];  // the last is 1, or 0 if all columns share one element
  const T* grad_h_n;               // [B, O], a further gradient of h_T, or null for zeros
  const T* grad_c_n;               // [B, H], or null for zeros
  const T* gates_x;                // as in ForwardCall; read only if gates is null
  const T* weight_hh;              // [4H, O]
  const T* weight_hr;              // [O, H], as in ForwardCall: then `gates` are there
  int64_t outputs;                 // O
  const T* h0;                     // [B, O], or null for zeros
  const T* c0;                     // [B, H], or null for zeros
  const T* output;                 // [T, B, O]
  const T* gates;                  // [T, B, 4H] activated, or null: they are computed again, a chunk of steps at a time
  const compute_t<T>* cells;       // [T, B, H]
  T* d_gates_x;                    // [T, B, 4H], or [B, 4H] if `constant`: the sum over time
  T* d_weight_hh;                  // [4H, O], or null to leave it out
  T* d_h0;                         // [B, O], or null to leave it out
  T* d_c0;                         // [B, H], or null to leave it out
  T* d_projected;                  // [T, B, O] with weight_hr: all that each projected state's gradient consists of, or null
  T* states;                       // [T, B, H] with weight_hr: the hidden states before the projection, or null
  const int64_t* first_rows;       // as in ForwardCall. A packed batch has `gates`
  const int64_t* rows_before;      // [N] of a packed batch: the row of the same sequence one step before, from the second step on

  Rows rows() const { return {batch, steps, first_rows}; }

  // The hidden state before a row, of which there are `batch` for each step; null if it is zeros.
  const T* hidden_before(int64_t row) const {
    if (row < batch) return h0 != nullptr ? h0 + row * outputs : nullptr;
    return output + (rows_before != nullptr ? rows_before[row] : row - batch) * outputs;
  }
};

// out = x W^T + bias + other_bias.
template <typename T>
struct LinearCall {
  int64_t rows, inputs, outputs;
  const T* x;                     // [rows, inputs]
  const T* weight;                // [outputs, inputs], rows `weight_stride` apart
  int64_t weight_stride;
  const T *bias, *other_bias;     // [outputs], or null for none
  T* out;                         // [rows, outputs]
};

// The two passes for one storage type, and a small product.
template <typename T>
struct Passes {
  void (*forward)(const ForwardCall<T>&, const Threads&);
  void (*backward)(const BackwardCall<T>&, const Threads&);
  void (*linear)(const LinearCall<T>&);
};

// The functions that were compiled for one instruction set.
struct InstructionSet {
  Passes<float> float32;
  Passes<double> float64;
  Passes<bfloat16> bfloat16_;
  int64_t (*multiply_adds)(float* result);

  const Passes<float>& passes(float) const { return float32; }
  const Passes<double>& passes(double) const { return float64; }
  const Passes<bfloat16>& passes(bfloat16) const { return bfloat16_; }
};

namespace portable {
extern const InstructionSet kFunctions;
}
#if defined(TAGRANK_X86)
namespace avx2 {
extern const InstructionSet kFunctions;
}
namespace avx512 {
extern const InstructionSet kFunctions;
}
#if defined(TAGRANK_AMX)
namespace amx {
extern const InstructionSet kFunctions;
}
#endif
#endif

// Run a pass with the functions of the instruction set that capability() chooses.
template <typename T>
void forward(const ForwardCall<T>& call, const Threads& threads);
template <typename T>
void backward(const BackwardCall<T>& call, const Threads& threads);

// Run a product on the calling thread, for products that are too small to share out.
template <typename T>
void linear(const LinearCall<T>& call);

// The rate at which the threads multiply and add float32 numbers in registers, in 10^9 operations a second (two for each
// multiply-add; on a matrix unit, as products of parts). It bounds the two passes. Measured for `seconds`.
double multiply_add_rate(double seconds, const Threads& threads);

}  // namespace tagrank::cpu
