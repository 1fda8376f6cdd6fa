// The operators of tagrank's library, by torch's stable ABI, so that one library serves every torch from 2.10 on.

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/capability.h"
#include "cpu/workspace.h"
#include "operators/layer.h"
#include "operators/machine.h"
#include "operators/packed.h"
#include "operators/program.h"

namespace {

std::string cpu_capability() { return name(tagrank::cpu::capability()); }

using Boxed = void(StableIValue*, uint64_t, uint64_t);

// The operator, with one error for memory that is missing: Python would get a MemoryError for std::bad_alloc, and none of torch's
// own operators raises that.
template <Boxed* boxed>
void with_memory_errors(StableIValue* stack, uint64_t arguments, uint64_t results) {
  try {
    return boxed(stack, arguments, results);
  } catch (const std::bad_alloc&) {
  } catch (const std::runtime_error& error) {
    // What torch says if its own std::bad_alloc came through its C functions.
    if (std::strncmp(error.what(), "std::bad_alloc", std::strlen("std::bad_alloc")) != 0) throw;
  }
  throw std::runtime_error(tagrank::cpu::out_of_memory(0));
}

}  // namespace

STABLE_TORCH_LIBRARY(tagrank, m) {
  m.def(
      "layer_forward(Tensor? context, Tensor? input, Tensor? h0, Tensor? c0, Tensor? weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, int steps, int state_dimensions, bool save_gates, bool save_cells, int[] launch) "
      "-> Tensor[]");
  m.def(
      "layer_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? context, Tensor? input, "
      "Tensor? h0, Tensor? c0, Tensor? weight_ih, Tensor weight_hh, Tensor? output, Tensor saved, Tensor cells, "
      "bool constant, bool summed, bool recompute, int wanted, int[] launch) -> Tensor[]");
  m.def(
      "packed_forward(Tensor gates_x, Tensor weight_hh, Tensor? h0, Tensor? c0, Tensor? weight_hr, int[] batch_sizes, "
      "bool constant, bool save, int[] launch) -> Tensor[]");
  m.def(
      "packed_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor weight_hh, Tensor? h0, Tensor? c0, "
      "Tensor? weight_hr, int[] batch_sizes, Tensor output, Tensor gates, Tensor cells, bool constant, int wanted, int[] launch) -> Tensor[]");
  // As tagrank/recurrence/operators.py defines it where there is no library.
  m.def(
      "lstm_forward(Tensor gates_x, Tensor weight_hh, Tensor? h0, Tensor? c0, SymInt steps, str backend, bool save_gates, "
      "bool save_cells) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("cpu_capability() -> str");
  m.def("multiply_add_rate(float seconds) -> float");
  m.def("has_clusters() -> bool");
  m.def("active_clusters(int device, int hidden, bool float32, bool backward) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(tagrank, CompositeExplicitAutograd, m) {
  m.impl("layer_forward", &with_memory_errors<TORCH_BOX(&tagrank::layer_forward)>);
  m.impl("layer_backward", &with_memory_errors<TORCH_BOX(&tagrank::layer_backward)>);
  m.impl("packed_forward", &with_memory_errors<TORCH_BOX(&tagrank::packed_forward)>);
  m.impl("packed_backward", &with_memory_errors<TORCH_BOX(&tagrank::packed_backward)>);
  m.impl("lstm_forward", &with_memory_errors<TORCH_BOX(&tagrank::lstm_forward)>);
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
  m.impl("multiply_add_rate", TORCH_BOX(&tagrank::multiply_add_rate));
  m.impl("has_clusters", TORCH_BOX(&tagrank::has_clusters));
  m.impl("active_clusters", TORCH_BOX(&tagrank::active_clusters));
}
