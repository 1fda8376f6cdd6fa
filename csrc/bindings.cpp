// The operators behind tagrank.recurrence.native, and the only file that knows torch: through its stable ABI, so that
// one library serves every torch from 2.10 on. The time loops are here. A step of either is one matrix product of
// torch's and one pass of the cell kernels, which torch's threads share out among themselves.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/capability.h"
#include "cpu/cell.h"

namespace {

using tagrank::cpu::BackwardStep;
using tagrank::cpu::bfloat16;
using tagrank::cpu::compute_t;
using tagrank::cpu::ForwardStep;
using torch::headeronly::ScalarType;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::select;
using torch::stable::Tensor;
using torch::stable::detail::from;

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The number of elements of a cell pass that is worth another thread.
constexpr int64_t kGrain = 2048;

template <std::size_t N>
Tensor call(const char* op, const char* overload, std::array<StableIValue, N> stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// x W^T for one W [out, in] and many x [batch, in]. Packed, W is brought once into the layout of oneDNN's kernels and
// each product is a new tensor; otherwise each product overwrites the one before it.
class Linear {
 public:
  Linear(const Tensor& weight, int64_t batch, bool packed) : packed_(packed) {
    if (packed) {
      weight_ = call<2>("mkldnn::_reorder_linear_weight", "", {from(weight), from(std::optional<int64_t>(batch))});
    } else {
      weight_ = torch::stable::transpose(weight, 0, 1);
      product_ = new_empty(weight, {batch, weight.size(0)});
    }
  }

  Tensor operator()(const Tensor& x) const {
    if (!packed_) return call<3>("aten::mm", "out", {from(x), from(weight_), from(product_)});
    const auto no_bias = from(std::nullopt), no_algorithm = from(std::nullopt);
    const auto no_scalars = from(std::vector<double>{});
    return call<6>("mkldnn::_linear_pointwise", "",
                   {from(x), from(weight_), no_bias, from(std::string("none")), no_scalars, no_algorithm});
  }

 private:
  bool packed_;
  Tensor weight_, product_;
};

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

Tensor cast(const Tensor& tensor, ScalarType dtype, bool copy = false) {
  return torch::stable::to(tensor, dtype, std::nullopt, std::nullopt, std::nullopt, /*non_blocking=*/false, copy);
}

template <typename T>
Four forward(const Tensor& gates_x, const Tensor& weight_hh, const Tensor& h0, const Tensor& c0, int64_t steps,
             bool save_gates, bool save_cells, bool packed, ScalarType cell_dtype) {
  using C = compute_t<T>;
  const int64_t B = h0.size(0), H = h0.size(1), BH = B * H;
  const Tensor output = new_empty(gates_x, {steps, B, H});
  const Tensor gates = save_gates ? new_empty(gates_x, {steps, B, 4 * H}) : new_empty(gates_x, {0});
  const Tensor cells = save_cells ? new_empty(gates_x, {steps, B, H}, cell_dtype) : new_empty(gates_x, {0}, cell_dtype);
  const Tensor c_first = cast(c0, cell_dtype);
  // Where the cell states are not kept, each overwrites the one before it.
  const Tensor c_last = save_cells ? select(cells, 0, steps - 1) : new_empty(gates_x, {B, H}, cell_dtype);

  const Linear recurrent(weight_hh, B, packed);
  const int64_t gates_x_stride = gates_x.dim() == 3 ? 4 * BH : 0;
  ForwardStep<T> step{};
  step.hidden = H;
  step.c_prev = read<C>(c_first);
  for (int64_t t = 0; t < steps; ++t) {
    const Tensor product = recurrent(t == 0 ? h0 : select(output, 0, t - 1));
    step.product = read<T>(product);
    step.gates_x = read<T>(gates_x) + t * gates_x_stride;
    step.c = save_cells ? write<C>(cells) + t * BH : write<C>(c_last);
    step.h = write<T>(output) + t * BH;
    step.gates = save_gates ? write<T>(gates) + t * 4 * BH : nullptr;
    torch::stable::parallel_for(0, BH, kGrain, [&](int64_t begin, int64_t end) { cell_forward(step, begin, end); });
    step.c_prev = step.c;
  }
  return {output, cast(c_last, gates_x.scalar_type(), /*copy=*/true), gates, cells};
}

template <typename T>
Four backward(const Tensor& grad_output, const Tensor& grad_c_n, const Tensor& weight_hh, const Tensor& c0,
              const Tensor& gates, const Tensor& cells, bool constant, bool packed, ScalarType cell_dtype) {
  using C = compute_t<T>;
  const ScalarType dtype = gates.scalar_type();
  const int64_t steps = gates.size(0), B = c0.size(0), H = c0.size(1), BH = B * H;
  const Tensor grad_gates = new_empty(gates, {steps, B, 4 * H});
  const Tensor grad_sum = constant ? new_zeros(gates, {B, 4 * H}, cell_dtype) : new_empty(gates, {0}, cell_dtype);
  const Tensor grad_c = cast(grad_c_n, cell_dtype, /*copy=*/true);
  const Tensor c_first = cast(c0, cell_dtype);
  Tensor grad_h = new_zeros(gates, {B, H});

  const Linear recurrent(torch::stable::transpose(weight_hh, 0, 1), B, packed);
  BackwardStep<T> step{};
  step.hidden = H;
  step.grad_c = write<C>(grad_c);
  step.grad_sum = constant ? write<C>(grad_sum) : nullptr;
  for (int64_t t = steps - 1; t >= 0; --t) {
    step.grad_output = read<T>(grad_output) + t * BH;
    step.grad_h = read<T>(grad_h);
    step.gates = read<T>(gates) + t * 4 * BH;
    step.c = read<C>(cells) + t * BH;
    step.c_prev = t == 0 ? read<C>(c_first) : step.c - BH;
    step.grad_gates = write<T>(grad_gates) + t * 4 * BH;
    torch::stable::parallel_for(0, BH, kGrain, [&](int64_t begin, int64_t end) { cell_backward(step, begin, end); });
    Tensor grad_gates_t = grad_gates;
    grad_h = recurrent(select(grad_gates_t, 0, t));
  }
  return {grad_gates, cast(grad_sum, dtype), grad_h, cast(grad_c, dtype)};
}

// function(T{}, the dtype of T's cell state) for the T that belongs to dtype.
template <typename Function>
Four dispatch(ScalarType dtype, const Function& function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float{}, ScalarType::Float);
    case ScalarType::Double:
      return function(double{}, ScalarType::Double);
    case ScalarType::BFloat16:
      return function(bfloat16{}, ScalarType::Float);
    default:
      STD_TORCH_CHECK(false, "tagrank native: expected float32, float64 or bfloat16");
  }
}

// The kernels take pointers: whatever they will read has to be there, in the layout that they expect.
void expect(const char* name, const Tensor& tensor, ScalarType dtype, const std::vector<int64_t>& shape) {
  bool same = tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == dtype &&
              tensor.dim() == static_cast<int64_t>(shape.size());
  for (std::size_t d = 0; same && d < shape.size(); ++d) same = tensor.size(static_cast<int64_t>(d)) == shape[d];
  STD_TORCH_CHECK(same, "tagrank native: ", name, " has the wrong shape, dtype or strides");
}

Four native_forward(const Tensor& gates_x, const Tensor& weight_hh, const Tensor& h0, const Tensor& c0, int64_t steps,
                    bool save_gates, bool save_cells, bool packed) {
  STD_TORCH_CHECK(h0.dim() == 2 && steps > 0, "tagrank native: expected h0 of shape [B, H], and a step at least");
  const ScalarType dtype = gates_x.scalar_type();
  const int64_t B = h0.size(0), H = h0.size(1);
  if (gates_x.dim() == 3) {
    expect("gates_x", gates_x, dtype, {steps, B, 4 * H});
  } else {
    expect("gates_x", gates_x, dtype, {B, 4 * H});
  }
  expect("weight_hh", weight_hh, dtype, {4 * H, H});
  expect("h0", h0, dtype, {B, H});
  expect("c0", c0, dtype, {B, H});
  return dispatch(dtype, [&](auto zero, ScalarType cell_dtype) {
    return forward<decltype(zero)>(gates_x, weight_hh, h0, c0, steps, save_gates, save_cells, packed, cell_dtype);
  });
}

Four native_backward(const Tensor& grad_output, const Tensor& grad_c_n, const Tensor& weight_hh, const Tensor& c0,
                     const Tensor& gates, const Tensor& cells, bool constant, bool packed) {
  STD_TORCH_CHECK(c0.dim() == 2 && gates.dim() == 3, "tagrank native: expected c0 [B, H] and gates [T, B, 4H]");
  const ScalarType dtype = gates.scalar_type();
  const int64_t steps = gates.size(0), B = c0.size(0), H = c0.size(1);
  return dispatch(dtype, [&](auto zero, ScalarType cell_dtype) {
    expect("grad_output", grad_output, dtype, {steps, B, H});
    expect("grad_c_n", grad_c_n, dtype, {B, H});
    expect("weight_hh", weight_hh, dtype, {4 * H, H});
    expect("c0", c0, dtype, {B, H});
    expect("gates", gates, dtype, {steps, B, 4 * H});
    expect("cells", cells, cell_dtype, {steps, B, H});
    return backward<decltype(zero)>(grad_output, grad_c_n, weight_hh, c0, gates, cells, constant, packed, cell_dtype);
  });
}

std::string cpu_capability() { return name(tagrank::cpu::capability()); }

}  // namespace

STABLE_TORCH_LIBRARY(tagrank, m) {
  m.def(
      "native_forward(Tensor gates_x, Tensor weight_hh, Tensor h0, Tensor c0, int steps, bool save_gates, "
      "bool save_cells, bool packed) -> (Tensor output, Tensor c_n, Tensor gates, Tensor cells)");
  m.def(
      "native_backward(Tensor grad_output, Tensor grad_c_n, Tensor weight_hh, Tensor c0, Tensor gates, Tensor cells, "
      "bool constant, bool packed) -> (Tensor d_gates, Tensor d_gates_x, Tensor d_h0, Tensor d_c0)");
  m.def("cpu_capability() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(tagrank, CPU, m) {
  m.impl("native_forward", TORCH_BOX(&native_forward));
  m.impl("native_backward", TORCH_BOX(&native_backward));
}

STABLE_TORCH_LIBRARY_IMPL(tagrank, CompositeExplicitAutograd, m) { m.impl("cpu_capability", TORCH_BOX(&cpu_capability)); }
