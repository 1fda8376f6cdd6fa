#include <cstring>

#include "../cpu/recurrence.h"
#include "../cpu/workspace.h"
#include "passes.h"
#include "products.h"
#include "threads.h"

namespace tagrank {

namespace {

using cpu::bfloat16;
using cpu::compute_t;

// The one number of a launch on CPUs: whether torch's threads run at the same time.
cpu::Threads threads_of(const Launch& launch) {
  STD_TORCH_CHECK(launch.size() == 1, "tagrank: launch: expected one number on CPUs; got ", launch.size());
  return torch_threads(launch[0] != 0);
}

// Asks for large pages, with which a large result takes one page fault for each 2 MB and not one for each 4 KB.
template <typename T>
T* write_large(const MaybeTensor& tensor) {
  if (!tensor.has_value()) return nullptr;
  T* memory = write<T>(*tensor);
  if (memory != nullptr) cpu::prefer_large_pages(memory, tensor->numel() * static_cast<int64_t>(sizeof(T)));
  return memory;
}

template <typename T>
void forward(const ForwardPass& pass, const cpu::Threads& threads) {
  const auto [steps, batch, hidden] = pass.sizes;
  cpu::ForwardCall<T> call{};
  call.batch = batch;
  call.hidden = hidden;
  call.steps = steps;
  call.constant = pass.constant;
  call.gates_x = read<T>(pass.gates_x);
  call.weight_hh = read<T>(pass.weight_hh);
  call.weight_hr = read<T>(pass.weight_hr);
  call.outputs = pass.weight_hh.size(1);
  call.h0 = read<T>(pass.h0);
  call.c0 = read<T>(pass.c0);
  call.output = write_large<T>(pass.output);
  call.c_n = write<T>(pass.c_n);
  call.gates = write_large<T>(pass.gates);
  call.cells = write_large<compute_t<T>>(pass.cells);
  if (pass.packed != nullptr) call.first_rows = pass.packed->first.data();
  if (batch == 0) return;
  cpu::forward(call, threads);
  T* h_n = write<T>(pass.h_n);
  const cpu::Rows rows = call.rows();
  // The rows that end at each step, those of the last step in one piece.
  for (int64_t t = pass.packed != nullptr ? 0 : steps - 1; t < steps; ++t) {
    const int64_t after = t + 1 < steps ? rows.count(t + 1) : 0, count = rows.count(t) - after;
    const T* last = call.output + (rows.at(t) + after) * call.outputs;
    T* to = h_n + after * call.outputs;
    if (count > 0 && to != last) std::memcpy(to, last, static_cast<std::size_t>(count * call.outputs) * sizeof(T));
  }
}

template <typename T>
Gradients backward(const BackwardPass& pass, const cpu::Threads& threads, const Products& by) {
  static const T zero{};
  const auto [steps, batch, hidden] = pass.sizes;
  const int64_t outputs = pass.weight_hh.size(1);
  const Kind kind = kind_of(pass.weight_hh);
  // To pack the weight for one step's product would take longer than the product, so torch computes it. In bfloat16 torch
  // would take longer.
  const bool by_torch = steps == 1 && pass.h0.has_value() && pass.gates.has_value() && kind.dtype != ScalarType::BFloat16;
  Gradients gradients;
  const Tensor d_gates_x = pass.summed              ? empty({batch, 4 * hidden}, kind)
                           : pass.packed != nullptr ? empty({pass.packed->count(), 4 * hidden}, kind)
                                                    : empty({steps, batch, 4 * hidden}, kind);
  (pass.summed ? gradients.gates_sum : gradients.gates) = d_gates_x;
  if (pass.weight_wanted) {
    gradients.weight_hh = batch > 0 ? empty({4 * hidden, outputs}, kind)
                                    : torch::stable::new_zeros(pass.weight_hh, {4 * hidden, outputs});
  }
  if (pass.h0_wanted) gradients.h0 = empty({batch, outputs}, kind);
  if (pass.c0_wanted) gradients.c0 = empty({batch, hidden}, kind);
  MaybeTensor d_projected, states;
  if (pass.weight_hr_wanted) {
    d_projected = empty({pass.packed->count(), outputs}, kind);
    states = empty({pass.packed->count(), hidden}, kind);
  }
  if (batch == 0) return gradients;
  cpu::BackwardCall<T> call{};
  call.batch = batch;
  call.hidden = hidden;
  call.steps = steps;
  call.constant = pass.summed;
  call.grad_output = pass.grad_output.has_value() ? read<T>(*pass.grad_output) : &zero;
  // Packed rows have one dimension instead of two.
  const int64_t missing = pass.packed != nullptr ? 1 : 0;
  for (int64_t d = missing; pass.grad_output.has_value() && d < 3; ++d) {
    call.grad_output_strides[d] = pass.grad_output->stride(d - missing);
  }
  call.grad_h_n = read<T>(pass.grad_h_n);
  call.grad_c_n = read<T>(pass.grad_c_n);
  call.gates_x = read<T>(pass.gates_x);
  call.weight_hh = read<T>(pass.weight_hh);
  call.weight_hr = read<T>(pass.weight_hr);
  call.outputs = outputs;
  call.h0 = by_torch ? nullptr : read<T>(pass.h0);
  call.c0 = read<T>(pass.c0);
  call.output = read<T>(pass.output);
  call.gates = read<T>(pass.gates);
  call.cells = read<compute_t<T>>(pass.cells);
  call.d_gates_x = write_large<T>(d_gates_x);
  call.d_weight_hh = by_torch ? nullptr : write_large<T>(gradients.weight_hh);
  call.d_h0 = by_torch ? nullptr : write<T>(gradients.h0);
  call.d_c0 = write<T>(gradients.c0);
  call.d_projected = write_large<T>(d_projected);
  call.states = write_large<T>(states);
  if (pass.packed != nullptr) {
    call.first_rows = pass.packed->first.data();
    call.rows_before = pass.packed->before.data();
  }
  cpu::backward(call, threads);
  if (by_torch) {
    const Tensor d_gates = matrix(d_gates_x, batch, 4 * hidden);
    if (gradients.weight_hh.has_value()) {
      by.product_into(*gradients.weight_hh, transposed(d_gates), matrix(*pass.h0, batch, outputs));
    }
    if (gradients.h0.has_value()) by.product_into(*gradients.h0, d_gates, pass.weight_hh);
  }
  if (pass.weight_hr_wanted) gradients.weight_hr = by.product_over_rows(*d_projected, *states);
  return gradients;
}

// function(T{}) with the C++ type T of the weight's dtype.
template <typename Function>
auto dispatch(const Tensor& weight_hh, const Function& function) {
  switch (const ScalarType dtype = weight_hh.scalar_type()) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Double:
      return function(double{});
    case ScalarType::BFloat16:
      return function(bfloat16{});
    default:
      STD_TORCH_CHECK(false, "tagrank: weight_hh: expected float32, float64 or bfloat16; got ", name_of(dtype));
  }
}

}  // namespace

void cpu_forward(const ForwardPass& pass, const Launch& launch) {
  const cpu::Threads threads = threads_of(launch);
  dispatch(pass.weight_hh, [&](auto zero) { forward<decltype(zero)>(pass, threads); });
}

Gradients cpu_backward(const BackwardPass& pass, const Launch& launch) {
  const cpu::Threads threads = threads_of(launch);
  const Products by(kind_of(pass.weight_hh), launch);
  return dispatch(pass.weight_hh, [&](auto zero) {
    using T = decltype(zero);
    // The kernel reads transposed (batch_first) and expanded (the gradient of a sum) memory as it lies.
    const int64_t last = pass.packed != nullptr ? 1 : 2;
    if (pass.grad_output.has_value() && pass.grad_output->stride(last) != 0 && pass.grad_output->stride(last) != 1) {
      BackwardPass other = pass;
      other.grad_output = torch::stable::contiguous(*pass.grad_output);
      return backward<T>(other, threads, by);
    }
    return backward<T>(pass, threads, by);
  });
}

}  // namespace tagrank
