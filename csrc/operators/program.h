// The recurrence as saved programs name it, for processes that have the library and no Python.
#pragma once

#include <string>
#include <tuple>

#include "tensors.h"

namespace tagrank {

// The forward pass of tagrank/recurrence/operators.py, which takes this one's place where tagrank is imported.
//
//   gates_x [B, 4H] or [T, B, 4H], weight_hh [4H, H], h0 and c0 [B, H]
//   steps     T, which is read for gates_x [B, 4H]
//   backend   the backend that a program was exported for. There is one here: the CPU's
//
// Returns output [T, B, H], c_n [B, H], the activated gates [T, B, 4H] if save_gates, and the cell states [T, B, H] if
// save_cells; otherwise tensors without elements.
std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward(const Tensor& gates_x, const Tensor& weight_hh, const MaybeTensor& h0,
                                                        const MaybeTensor& c0, int64_t steps, std::string backend,
                                                        bool save_gates, bool save_cells);

}  // namespace tagrank
