// The operators of the backends native and cluster. An operator runs a pass over a whole sequence, on torch's threads or on
// the CUDA stream that its argument names. Only this file uses torch. It uses torch's stable ABI, so that one library serves
// every torch from 2.10 on.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/capability.h"
#include "cpu/recurrence.h"
#include "cpu/workspace.h"
#ifdef TAGRANK_CUDA
#include "cuda/recurrence.h"
#endif

namespace {

using tagrank::cpu::BackwardCall;
using tagrank::cpu::bfloat16;
using tagrank::cpu::compute_t;
using tagrank::cpu::ForwardCall;
using tagrank::cpu::Threads;
using torch::headeronly::ScalarType;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::Tensor;

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using MaybeTensor = std::optional<Tensor>;

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* read(const MaybeTensor& tensor) {
  return tensor.has_value() ? read<T>(*tensor) : nullptr;
}

// The tensor's memory, or null if the tensor has no elements.
template <typename T>
T* write(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : static_cast<T*>(tensor.mutable_data_ptr());
}

// A new tensor on the device of `like`, for results that may be large. Large pages make it one page fault for each 2 MB
// instead of one for each 4 KB.
Tensor large_empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  const Tensor tensor = new_empty(like, shape, dtype);
  tagrank::cpu::prefer_large_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

// torch's threads if they run at the same time (`concurrent`), else only the calling thread.
Threads torch_threads(bool concurrent) {
  return {concurrent ? static_cast<int64_t>(torch::stable::get_num_threads()) : 1,
          [](int64_t n, const std::function<void(int64_t, int64_t)>& body) {
            torch::stable::parallel_for(0, n, /*grain_size=*/1, body);
          }};
}

template <typename T>
Four forward(const Tensor& gates_x, const Tensor& weight_hh, const MaybeTensor& h0, const MaybeTensor& c0,
             int64_t steps, bool save_gates, bool save_cells, bool concurrent, ScalarType cell_dtype) {
  const int64_t B = gates_x.size(-2), H = weight_hh.size(1);
  const ScalarType dtype = gates_x.scalar_type();
  const std::vector<int64_t> nothing{0};
  const Tensor output = large_empty(gates_x, {steps, B, H}, dtype), c_n = new_empty(gates_x, {B, H});
  const Tensor gates = large_empty(gates_x, save_gates ? std::vector{steps, B, 4 * H} : nothing, dtype);
  const Tensor cells = large_empty(gates_x, save_cells ? std::vector{steps, B, H} : nothing, cell_dtype);
  ForwardCall<T> call{};
  call.batch = B;
  call.hidden = H;
  call.steps = steps;
  call.constant = gates_x.dim() == 2;
  call.gates_x = read<T>(gates_x);
  call.weight_hh = read<T>(weight_hh);
  call.h0 = read<T>(h0);
  call.c0 = read<T>(c0);
  call.output = write<T>(output);
  call.c_n = write<T>(c_n);
  call.gates = write<T>(gates);
  call.cells = write<compute_t<T>>(cells);
  if (B > 0) tagrank::cpu::forward(call, torch_threads(concurrent));
  return {output, c_n, gates, cells};
}

template <typename T>
Four backward(const Tensor& grad_output, const Tensor& grad_c_n, const Tensor& gates_x, const Tensor& weight_hh,
              const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& output, const Tensor& gates,
              const Tensor& cells, bool constant, bool weight_wanted, bool concurrent) {
  const int64_t steps = output.size(0), B = output.size(1), H = output.size(2);
  const ScalarType dtype = output.scalar_type();
  const Tensor d_gates_x =
      large_empty(output, constant ? std::vector{B, 4 * H} : std::vector{steps, B, 4 * H}, dtype);
  const std::vector<int64_t> weight_shape = weight_wanted ? std::vector{4 * H, H} : std::vector<int64_t>{0};
  const Tensor d_weight_hh = B > 0 ? large_empty(weight_hh, weight_shape, dtype) : new_zeros(weight_hh, weight_shape);
  const Tensor d_h0 = h0.has_value() ? new_empty(output, {B, H}) : new_empty(output, {0});
  const Tensor d_c0 = c0.has_value() ? new_empty(output, {B, H}) : new_empty(output, {0});
  BackwardCall<T> call{};
  call.batch = B;
  call.hidden = H;
  call.steps = steps;
  call.constant = constant;
  call.grad_output = read<T>(grad_output);
  for (int64_t d = 0; d < 3; ++d) call.grad_output_strides[d] = grad_output.stride(d);
  call.grad_c_n = read<T>(grad_c_n);
  call.gates_x = read<T>(gates_x);
  call.weight_hh = read<T>(weight_hh);
  call.h0 = read<T>(h0);
  call.c0 = read<T>(c0);
  call.output = read<T>(output);
  call.gates = gates.numel() > 0 ? read<T>(gates) : nullptr;
  call.cells = read<compute_t<T>>(cells);
  call.d_gates_x = write<T>(d_gates_x);
  call.d_weight_hh = write<T>(d_weight_hh);
  call.d_h0 = write<T>(d_h0);
  call.d_c0 = write<T>(d_c0);
  if (B > 0) tagrank::cpu::backward(call, torch_threads(concurrent));
  return {d_gates_x, d_weight_hh, d_h0, d_c0};
}

std::string name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return torch::headeronly::toString(dtype);
  }
}

// Calls function(T{}, the dtype of the cell states) with the C++ type T of dtype. `argument` is the name of a tensor with this
// dtype, for the error message.
template <typename Function>
Four dispatch(const char* argument, ScalarType dtype, const Function& function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float{}, ScalarType::Float);
    case ScalarType::Double:
      return function(double{}, ScalarType::Double);
    case ScalarType::BFloat16:
      return function(bfloat16{}, ScalarType::Float);
    default:
      STD_TORCH_CHECK(false, "tagrank: ", argument, ": expected float32, float64 or bfloat16; got ", name_of(dtype));
  }
}

// The dtype and the device of a tensor.
struct Kind {
  ScalarType dtype;
  bool cpu;
  int device;
};
Kind kind_of(const Tensor& tensor) {
  return {tensor.scalar_type(), tensor.is_cpu(), static_cast<int>(tensor.get_device_index())};
}

std::string describe(const Kind& kind) {
  return name_of(kind.dtype) + " on " + (kind.cpu ? "cpu" : "cuda:" + std::to_string(kind.device));
}

std::string describe(const std::vector<int64_t>& numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
  return "[" + text + "]";
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape(static_cast<std::size_t>(tensor.dim()));
  for (std::size_t d = 0; d < shape.size(); ++d) shape[d] = tensor.size(static_cast<int64_t>(d));
  return shape;
}

// Raises an error unless the argument `name` is as the kernels expect it: they get only pointers and cannot check.
void expect(const char* name, const Tensor& tensor, const Kind& kind, const std::vector<int64_t>& shape,
            bool contiguous = true) {
  const Kind found = kind_of(tensor);
  const bool laid_out = tensor.is_contiguous() || !contiguous;
  bool same = found.dtype == kind.dtype && found.cpu == kind.cpu && found.device == kind.device && laid_out &&
              tensor.dim() == static_cast<int64_t>(shape.size());
  for (std::size_t d = 0; same && d < shape.size(); ++d) same = tensor.size(static_cast<int64_t>(d)) == shape[d];
  if (same) return;
  STD_TORCH_CHECK(false, "tagrank: ", name, ": expected ", contiguous ? "contiguous " : "", describe(kind), " with shape ",
                  describe(shape), "; got ", laid_out ? "" : "non-contiguous ", describe(found), " with shape ",
                  describe(shape_of(tensor)));
}

std::vector<int64_t> gates_x_shape(bool constant, int64_t steps, int64_t B, int64_t H) {
  return constant ? std::vector{B, 4 * H} : std::vector{steps, B, 4 * H};
}

// Checks the number of dimensions of gates_x and weight_hh, from which B and H are read, and the number of steps.
void expect_sizes(const Tensor& gates_x, const Tensor& weight_hh, int64_t steps) {
  STD_TORCH_CHECK(weight_hh.dim() == 2 && weight_hh.size(1) > 0 && weight_hh.size(0) == 4 * weight_hh.size(1),
                  "tagrank: weight_hh: expected shape [4H, H] with H >= 1; got ", describe(shape_of(weight_hh)));
  STD_TORCH_CHECK(gates_x.dim() == 2 || gates_x.dim() == 3,
                  "tagrank: gates_x: expected shape [B, 4H] or [T, B, 4H]; got ", describe(shape_of(gates_x)));
  STD_TORCH_CHECK(steps > 0, "tagrank: steps: expected at least 1; got ", steps);
}

// Checks the arguments that both passes take: weight_hh [4H, H], and h0 and c0 [B, H] if they are given.
void expect_weight_and_states(const Tensor& weight_hh, const MaybeTensor& h0, const MaybeTensor& c0, const Kind& kind,
                              int64_t B, int64_t H) {
  expect("weight_hh", weight_hh, kind, {4 * H, H});
  if (h0.has_value()) expect("h0", *h0, kind, {B, H});
  if (c0.has_value()) expect("c0", *c0, kind, {B, H});
}

Four native_forward(const Tensor& gates_x, const Tensor& weight_hh, const MaybeTensor& h0, const MaybeTensor& c0,
                    int64_t steps, bool save_gates, bool save_cells, bool concurrent) {
  expect_sizes(gates_x, weight_hh, steps);
  const Kind kind = kind_of(weight_hh);
  const int64_t B = gates_x.size(-2), H = weight_hh.size(1);
  expect("gates_x", gates_x, kind, gates_x_shape(gates_x.dim() == 2, steps, B, H));
  expect_weight_and_states(weight_hh, h0, c0, kind, B, H);
  return dispatch("weight_hh", kind.dtype, [&](auto zero, ScalarType cell_dtype) {
    return forward<decltype(zero)>(gates_x, weight_hh, h0, c0, steps, save_gates, save_cells, concurrent, cell_dtype);
  });
}

Four native_backward(const Tensor& grad_output, const Tensor& grad_c_n, const Tensor& gates_x, const Tensor& weight_hh,
                     const MaybeTensor& h0, const MaybeTensor& c0, const Tensor& output, const Tensor& gates,
                     const Tensor& cells, bool constant, bool weight_wanted, bool concurrent) {
  STD_TORCH_CHECK(output.dim() == 3, "tagrank: output: expected shape [T, B, H]; got ", describe(shape_of(output)));
  const Kind kind = kind_of(output);
  const int64_t steps = output.size(0), B = output.size(1), H = output.size(2);
  return dispatch("output", kind.dtype, [&](auto zero, ScalarType cell_dtype) {
    expect("grad_output", grad_output, kind, {steps, B, H}, /*contiguous=*/false);
    STD_TORCH_CHECK(H == 1 || grad_output.stride(2) == 0 || grad_output.stride(2) == 1,
                    "tagrank: grad_output: expected stride 0 or 1 in the last dimension; got ", grad_output.stride(2));
    expect("grad_c_n", grad_c_n, kind, {B, H});
    expect_weight_and_states(weight_hh, h0, c0, kind, B, H);
    expect("output", output, kind, {steps, B, H});
    if (gates.numel() > 0) {
      expect("gates", gates, kind, {steps, B, 4 * H});
    } else {
      expect("gates_x", gates_x, kind, gates_x_shape(constant, steps, B, H));
    }
    expect("cells", cells, {cell_dtype, kind.cpu, kind.device}, {steps, B, H});
    return backward<decltype(zero)>(grad_output, grad_c_n, gates_x, weight_hh, h0, c0, output, gates, cells, constant,
                                    weight_wanted, concurrent);
  });
}

#ifdef TAGRANK_CUDA

using tagrank::cuda::Launch;

// A launch on the device of the tensor and on this stream. `name` is the tensor's argument name.
Launch launch_on(const char* name, const Tensor& tensor, int64_t stream) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  "tagrank: ", name, ": expected float16 or bfloat16; got ", name_of(dtype));
  return {tensor.get_device_index(), reinterpret_cast<void*>(stream), dtype == ScalarType::BFloat16};
}

// Raises an error unless `error` is cudaSuccess.
void check(int error) {
  STD_TORCH_CHECK(error == 0, "tagrank: the cluster kernels failed: ", tagrank::cuda::describe(error));
}

Four cluster_forward(const Tensor& gates_x, const Tensor& weight_hh, const MaybeTensor& h0, const MaybeTensor& c0,
                     int64_t steps, bool save_gates, bool save_cells, int64_t stream) {
  expect_sizes(gates_x, weight_hh, steps);
  const Launch launch = launch_on("gates_x", gates_x, stream);
  const Kind kind = kind_of(gates_x);
  const int64_t B = gates_x.size(-2), H = weight_hh.size(1);
  const bool constant = gates_x.dim() == 2;
  expect("gates_x", gates_x, kind, gates_x_shape(constant, steps, B, H));
  expect_weight_and_states(weight_hh, h0, c0, kind, B, H);
  const std::vector<int64_t> nothing{0};
  const Tensor output = new_empty(gates_x, {steps, B, H}), c_n = new_empty(gates_x, {B, H});
  const Tensor gates = new_empty(gates_x, save_gates ? std::vector{steps, B, 4 * H} : nothing);
  const Tensor cells = new_empty(gates_x, save_cells ? std::vector{steps, B, H} : nothing, ScalarType::Float);
  tagrank::cuda::ForwardCall call{};
  call.batch = B;
  call.steps = steps;
  call.hidden = static_cast<int>(H);
  call.constant = constant;
  call.gates_x = read<uint16_t>(gates_x);
  call.weight_hh = read<uint16_t>(weight_hh);
  call.h0 = read<uint16_t>(h0);
  call.c0 = read<uint16_t>(c0);
  call.output = write<uint16_t>(output);
  call.c_n = write<uint16_t>(c_n);
  call.gates = write<uint16_t>(gates);
  call.cells = write<float>(cells);
  if (B > 0) check(tagrank::cuda::forward(call, launch));
  return {output, c_n, gates, cells};
}

// Writes d_gates. If gates_x is given, `gates` holds the recurrent products and d_gates may be the same tensor.
std::tuple<Tensor, Tensor> cluster_backward(const Tensor& grad_output, const Tensor& grad_c_n,
                                            const MaybeTensor& gates_x, const Tensor& weight_hh, const MaybeTensor& c0,
                                            const Tensor& gates, const Tensor& cells, Tensor d_gates, bool constant,
                                            int64_t stream) {
  const Launch launch = launch_on("gates", gates, stream);
  const Kind kind = kind_of(gates);
  STD_TORCH_CHECK(grad_output.dim() == 3, "tagrank: grad_output: expected shape [T, B, H]; got ",
                  describe(shape_of(grad_output)));
  const int64_t steps = grad_output.size(0), B = grad_output.size(1), H = grad_output.size(2);
  expect("grad_output", grad_output, kind, {steps, B, H});
  expect("grad_c_n", grad_c_n, kind, {B, H});
  expect_weight_and_states(weight_hh, std::nullopt, c0, kind, B, H);
  expect("gates", gates, kind, {steps, B, 4 * H});
  expect("cells", cells, {ScalarType::Float, kind.cpu, kind.device}, {steps, B, H});
  if (gates_x.has_value()) expect("gates_x", *gates_x, kind, gates_x_shape(constant, steps, B, H));
  expect("d_gates", d_gates, kind, {steps, B, 4 * H});
  const Tensor d_gates_x = new_empty(gates, constant ? std::vector{B, 4 * H} : std::vector<int64_t>{0});
  const Tensor d_c0 = new_empty(gates, c0.has_value() ? std::vector{B, H} : std::vector<int64_t>{0});
  tagrank::cuda::BackwardCall call{};
  call.batch = B;
  call.steps = steps;
  call.hidden = static_cast<int>(H);
  call.constant = constant;
  call.grad_output = read<uint16_t>(grad_output);
  call.grad_c_n = read<uint16_t>(grad_c_n);
  call.weight_hh = read<uint16_t>(weight_hh);
  call.c0 = read<uint16_t>(c0);
  call.gates = read<uint16_t>(gates);
  call.gates_x = read<uint16_t>(gates_x);
  call.cells = read<float>(cells);
  call.d_gates = write<uint16_t>(d_gates);
  call.d_gates_x = write<uint16_t>(d_gates_x);
  call.d_c0 = write<uint16_t>(d_c0);
  if (B > 0) check(tagrank::cuda::backward(call, launch));
  return {d_gates_x, d_c0};
}

int64_t active_clusters(int64_t device, int64_t hidden, bool backward) {
  int clusters;
  check(tagrank::cuda::active_clusters(static_cast<int>(device), static_cast<int>(hidden), backward, clusters));
  return clusters;
}

#endif

double multiply_add_rate(double seconds) {
  return tagrank::cpu::multiply_add_rate(seconds, torch_threads(/*concurrent=*/true));
}

std::string cpu_capability() { return name(tagrank::cpu::capability()); }

}  // namespace

STABLE_TORCH_LIBRARY(tagrank, m) {
  m.def(
      "native_forward(Tensor gates_x, Tensor weight_hh, Tensor? h0, Tensor? c0, int steps, bool save_gates, "
      "bool save_cells, bool concurrent) -> (Tensor output, Tensor c_n, Tensor gates, Tensor cells)");
  m.def(
      "native_backward(Tensor grad_output, Tensor grad_c_n, Tensor gates_x, Tensor weight_hh, Tensor? h0, Tensor? c0, "
      "Tensor output, Tensor gates, Tensor cells, bool constant, bool weight_wanted, bool concurrent) "
      "-> (Tensor d_gates_x, Tensor d_weight_hh, Tensor d_h0, Tensor d_c0)");
  m.def("cpu_capability() -> str");
  m.def("multiply_add_rate(float seconds) -> float");
#ifdef TAGRANK_CUDA
  m.def(
      "cluster_forward(Tensor gates_x, Tensor weight_hh, Tensor? h0, Tensor? c0, int steps, bool save_gates, "
      "bool save_cells, int stream) -> (Tensor output, Tensor c_n, Tensor gates, Tensor cells)");
  m.def(
      "cluster_backward(Tensor grad_output, Tensor grad_c_n, Tensor? gates_x, Tensor weight_hh, Tensor? c0, "
      "Tensor gates, Tensor cells, Tensor(a!) d_gates, bool constant, int stream) "
      "-> (Tensor d_gates_x, Tensor d_c0)");
  m.def("active_clusters(int device, int hidden, bool backward) -> int");
#endif
}

STABLE_TORCH_LIBRARY_IMPL(tagrank, CPU, m) {
  m.impl("native_forward", TORCH_BOX(&native_forward));
  m.impl("native_backward", TORCH_BOX(&native_backward));
}

#ifdef TAGRANK_CUDA
STABLE_TORCH_LIBRARY_IMPL(tagrank, CUDA, m) {
  m.impl("cluster_forward", TORCH_BOX(&cluster_forward));
  m.impl("cluster_backward", TORCH_BOX(&cluster_backward));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(tagrank, CompositeExplicitAutograd, m) {
#ifdef TAGRANK_CUDA
  m.impl("active_clusters", TORCH_BOX(&active_clusters));
#endif
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
  m.impl("multiply_add_rate", TORCH_BOX(&multiply_add_rate));
}
