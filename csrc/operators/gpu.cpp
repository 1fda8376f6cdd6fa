// A pass on an NVIDIA GPU: on the cluster kernels of csrc/cuda, or on a Triton kernel that Triton compiled and loaded.

#include <algorithm>
#include <array>

#include "driver.h"
#include "passes.h"
#include "products.h"
#ifdef TAGRANK_CUDA
#include "../cuda/recurrence.h"
#endif

namespace tagrank {

namespace {

// What the other numbers of a launch are. All launches have the first one, those of Triton kernels the others too, and after
// them the places of the kernel's parameters in Parameters.
enum Place {
  kIsTriton = kGpuNumbers,  // 0 for the cluster kernels
  kFunction,     // a CUfunction
  kTiles,        // programs along the batch
  kSlices,       // programs along the hidden units
  kThreads,      // of a program
  kShared,       // bytes of shared memory of a program
  kCooperative,  // whether all programs must run at once, for which they have counters
  kCounters,     // the address of the counters, which are zero before and after each launch
  kStepwise,     // whether each step is a launch of its own
  kByProduct,    // whether the product of each step is computed before its launch
  kAlignment,    // a divisor of H
  kGradStride,   // backward: the stride of grad_output over hidden units, 0 or 1, that the kernel was compiled for
  kLaunchNumbers
};

#ifdef TAGRANK_CUDA
void check(int error) {
  STD_TORCH_CHECK(error == 0, "tagrank: the cluster kernels failed: ", cuda::describe(error));
}

cuda::Numbers numbers_of(const Kind& kind, const Launch& launch) {
  switch (kind.dtype) {
    case ScalarType::Half:
      return cuda::Numbers::kFloat16;
    case ScalarType::BFloat16:
      return cuda::Numbers::kBFloat16;
    case ScalarType::Float:
      return launch[kTf32] != 0 ? cuda::Numbers::kTf32 : cuda::Numbers::kTf32x3;
    default:
      STD_TORCH_CHECK(false, "tagrank: weight_hh: expected float16, bfloat16 or float32; got ", name_of(kind.dtype));
  }
}

// E is how the numbers of weight_hh lie in memory: uint16_t or float.
template <typename E>
void forward_on_clusters(const ForwardPass& pass, const cuda::Launch& to) {
  cuda::ForwardCall<E> call{};
  call.batch = pass.sizes.batch;
  call.steps = pass.sizes.steps;
  call.hidden = static_cast<int>(pass.sizes.hidden);
  call.constant = pass.constant;
  call.gates_x = read<E>(pass.gates_x);
  call.addend = read<E>(pass.addend);
  call.addend_stride = pass.addend.has_value() && pass.addend->dim() == 2 ? 4 * pass.sizes.hidden : 0;
  call.weight_hh = read<E>(pass.weight_hh);
  call.h0 = read<E>(pass.h0);
  call.c0 = read<E>(pass.c0);
  call.output = write<E>(pass.output);
  call.h_n = write<E>(pass.h_n);
  call.c_n = write<E>(pass.c_n);
  call.gates = write<E>(pass.gates);
  call.cells = write<float>(pass.cells);
  check(cuda::forward(call, to));
}

template <typename E>
void backward_on_clusters(const BackwardPass& pass, const cuda::Launch& to, const Tensor& gates, const Tensor& d_gates,
                          const Gradients& gradients) {
  cuda::BackwardCall<E> call{};
  call.batch = pass.sizes.batch;
  call.steps = pass.sizes.steps;
  call.hidden = static_cast<int>(pass.sizes.hidden);
  call.constant = pass.constant;
  call.grad_output = read<E>(pass.grad_output);
  for (int64_t d = 0; pass.grad_output.has_value() && d < 3; ++d) {
    call.grad_output_strides[d] = static_cast<int>(pass.grad_output->stride(d));
  }
  call.grad_h_n = read<E>(pass.grad_h_n);
  call.grad_c_n = read<E>(pass.grad_c_n);
  call.weight_hh = read<E>(pass.weight_hh);
  call.c0 = read<E>(pass.c0);
  call.gates = read<E>(gates);
  call.gates_x = read<E>(pass.gates_x);
  call.cells = read<float>(pass.cells);
  call.d_gates = write<E>(d_gates);
  call.d_gates_x = write<E>(gradients.gates_sum);
  call.d_c0 = write<E>(gradients.c0);
  check(cuda::backward(call, to));
}

// function(E{}, where to run), where E is how numbers lie in memory.
template <typename Function>
void on_clusters(const Kind& kind, const Launch& launch, const Function& function) {
  const cuda::Launch to{kind.device, reinterpret_cast<void*>(launch[kStream]), numbers_of(kind, launch)};
  kind.dtype == ScalarType::Float ? function(float{}, to) : function(uint16_t{}, to);
}
#else
[[noreturn]] void without_clusters() {
  STD_TORCH_CHECK(false, "tagrank: this library was built without the cluster kernels");
}
#endif

void expect_launch(const Launch& launch) {
  const bool long_enough = launch.size() > kIsTriton && (launch[kIsTriton] == 0 || launch.size() > kLaunchNumbers);
  STD_TORCH_CHECK(long_enough, "tagrank: launch: expected what a backend's launch() returns; got ", launch.size(), " numbers");
}

// The parameters of a Triton kernel, in the order of the Python function in kernels/. Parameters that Triton made constants
// are not passed: the launch has the places of the others.
class Parameters {
 public:
  void add(const void* pointer) { values_[count_++] = reinterpret_cast<uintptr_t>(pointer); }
  void add(const Tensor& tensor) { add(tensor.numel() == 0 ? nullptr : tensor.const_data_ptr()); }
  void add(const MaybeTensor& tensor) { tensor.has_value() ? add(*tensor) : add(nullptr); }
  // Returns the place, for set().
  int add_number(int64_t number) {
    STD_TORCH_CHECK(number <= INT32_MAX, "tagrank: ", number, " is too large for a Triton kernel");
    values_[count_] = static_cast<uint64_t>(number);
    return count_++;
  }
  void set(int place, int64_t number) { values_[place] = static_cast<uint64_t>(number); }

  void launch(const Launch& with) {
    std::array<void*, kMost> pointers;
    std::size_t count = 0;
    for (std::size_t i = kLaunchNumbers; i < with.size(); ++i) pointers[count++] = &values_[with[i]];
    driver::launch(reinterpret_cast<void*>(with[kFunction]), with[kTiles], with[kSlices], with[kThreads], with[kShared],
                   reinterpret_cast<void*>(with[kStream]), with[kCooperative] != 0, pointers.data());
  }

 private:
  static constexpr int kMost = 40;
  std::array<uint64_t, kMost> values_{};
  int count_ = 0;
};

// Triton compiled the kernels for arrays that begin at multiples of 16 bytes, as torch's own allocations do.
Tensor aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0 ? tensor : torch::stable::clone(tensor);
}
MaybeTensor aligned(const MaybeTensor& tensor) { return tensor.has_value() ? MaybeTensor(aligned(*tensor)) : tensor; }

// The counters of the barriers. A CUDA graph that is being captured gets counters of its own, because its replays may run on
// any streams. `like` is any tensor on the GPU.
std::optional<Tensor> own_counters(const Tensor& like, const Launch& launch) {
  if (launch[kCooperative] == 0 || !driver::capturing(reinterpret_cast<void*>(launch[kStream]))) return std::nullopt;
  const Tensor counters = empty({launch[kTiles]}, with_dtype(kind_of(like), ScalarType::Int));
  driver::clear(counters.mutable_data_ptr(), launch[kTiles] * 4, reinterpret_cast<void*>(launch[kStream]));
  return counters;
}

void forward_by_triton(const ForwardPass& pass, const Launch& launch) {
  const auto [steps, batch, hidden] = pass.sizes;
  const Kind kind = kind_of(pass.weight_hh);
  const Kind of_cells = with_dtype(kind, cell_dtype(kind.dtype));
  const int64_t launches = launch[kStepwise] != 0 ? steps : 1, count = steps / launches;
  // From one launch to the next, c goes through memory: where it is saved, or in two slots that take turns.
  const int64_t slots = pass.cells.has_value() ? steps : launches > 1 ? 2 : 0;
  const MaybeTensor cells =
      pass.cells.has_value() || slots == 0 ? pass.cells : MaybeTensor(empty({slots, batch, hidden}, of_cells));
  const Tensor gates_x = aligned(pass.gates_x), weight_hh = aligned(pass.weight_hh);
  const MaybeTensor addend = aligned(pass.addend), h0 = aligned(pass.h0), c0 = aligned(pass.c0);
  const MaybeTensor counters = own_counters(weight_hh, launch);
  MaybeTensor products;
  if (launch[kByProduct] != 0) products = empty({batch, 4 * hidden}, of_cells);
  Parameters parameters;
  parameters.add(gates_x);
  parameters.add(addend);
  parameters.add(weight_hh);
  parameters.add(h0);
  parameters.add(c0);
  parameters.add(pass.output);
  parameters.add(pass.h_n);
  parameters.add(pass.c_n);
  parameters.add(pass.gates);
  parameters.add(cells);
  parameters.add(products);
  parameters.add(counters.has_value() ? counters->const_data_ptr() : reinterpret_cast<const void*>(launch[kCounters]));
  const int first = parameters.add_number(0);
  parameters.add_number(count);
  parameters.add_number(steps);
  parameters.add_number(batch);
  parameters.add_number(hidden / launch[kAlignment]);
  parameters.add_number(slots);
  const Products by(kind, launch);
  const Tensor right = transposed(weight_hh);
  for (int64_t t = 0; t < steps; t += count) {
    if (products.has_value() && (t > 0 || h0.has_value())) {
      const Tensor h = t > 0 ? matrix(pass.output, batch, hidden, (t - 1) * batch) : matrix(*h0, batch, hidden);
      by.product_into(*products, h, right);
    }
    parameters.set(first, t);
    parameters.launch(launch);
  }
}

void backward_by_triton(const BackwardPass& pass, const Launch& launch, const Tensor& gates, const Tensor& d_gates,
                        const Gradients& gradients) {
  const auto [steps, batch, hidden] = pass.sizes;
  const Kind kind = kind_of(pass.weight_hh);
  const Kind of_cells = with_dtype(kind, cell_dtype(kind.dtype));
  const int64_t launches = launch[kStepwise] != 0 ? steps : 1, count = steps / launches, alignment = launch[kAlignment];
  MaybeTensor carry_c, carry_x;
  if (launches > 1) {
    carry_c = empty({2, batch, hidden}, of_cells);
    if (pass.summed) carry_x = empty({2, batch, 4 * hidden}, of_cells);
  }
  // The kernel takes the strides of rows of numbers as multiples of the alignment, so that one load can take several numbers.
  const int64_t unit = launch[kGradStride] == 0 ? 1 : alignment;
  MaybeTensor grad_output = aligned(pass.grad_output);
  if (grad_output.has_value() && (grad_output->stride(0) % unit != 0 || grad_output->stride(1) % unit != 0)) {
    grad_output = aligned(torch::stable::contiguous(*grad_output));
  }
  const Tensor weight_hh = aligned(pass.weight_hh), cells = aligned(pass.cells);
  const MaybeTensor grad_h_n = aligned(pass.grad_h_n), grad_c_n = aligned(pass.grad_c_n), c0 = aligned(pass.c0);
  const MaybeTensor gates_x = aligned(pass.gates_x), counters = own_counters(weight_hh, launch);
  const Tensor saved = aligned(gates);
  MaybeTensor products;
  if (launch[kByProduct] != 0) products = empty({batch, hidden}, of_cells);
  Parameters parameters;
  parameters.add(grad_output);
  parameters.add(grad_h_n);
  parameters.add(grad_c_n);
  parameters.add(weight_hh);
  parameters.add(c0);
  parameters.add(saved);
  parameters.add(gates_x);
  parameters.add(cells);
  parameters.add(d_gates);
  parameters.add(gradients.gates_sum);
  parameters.add(gradients.c0);
  parameters.add(carry_c);
  parameters.add(carry_x);
  parameters.add(products);
  parameters.add(counters.has_value() ? counters->const_data_ptr() : reinterpret_cast<const void*>(launch[kCounters]));
  parameters.add_number(grad_output.has_value() ? grad_output->stride(0) / unit : 0);
  parameters.add_number(grad_output.has_value() ? grad_output->stride(1) / unit : 0);
  const int first = parameters.add_number(0);
  parameters.add_number(count);
  parameters.add_number(steps);
  parameters.add_number(batch);
  parameters.add_number(hidden / alignment);
  const Products by(kind, launch);
  for (int64_t t = steps - count; t >= 0; t -= count) {
    if (products.has_value() && t + 1 < steps) {
      by.product_into(*products, matrix(d_gates, batch, 4 * hidden, (t + 1) * batch), weight_hh);
    }
    parameters.set(first, t);
    parameters.launch(launch);
  }
}

// h_{t-1} U^T at all steps, [T, B, 4H]: one product, because all hidden states are known.
Tensor recurrent_products(const BackwardPass& pass, const Products& by) {
  const auto [steps, batch, hidden] = pass.sizes;
  const Tensor products = empty({steps, batch, 4 * hidden}, kind_of(pass.weight_hh)), right = transposed(pass.weight_hh);
  if (steps > 1) {
    by.product_into(matrix(products, (steps - 1) * batch, 4 * hidden, batch),
                    matrix(*pass.output, (steps - 1) * batch, hidden), right);
  }
  Tensor first = matrix(products, batch, 4 * hidden);
  if (pass.h0.has_value()) {
    by.product_into(first, matrix(*pass.h0, batch, hidden), right);
  } else {
    torch::stable::zero_(first);
  }
  return products;
}

// The gradient of U. h_{t-1} is h0 at the first step and output[t-1] at the others.
Tensor weight_gradient(const BackwardPass& pass, const Tensor& d_gates, const Products& by) {
  const auto [steps, batch, hidden] = pass.sizes;
  const MaybeTensor h0 = pass.h0.has_value() ? MaybeTensor(matrix(*pass.h0, batch, hidden)) : pass.h0;
  if (steps == 1) {
    return h0.has_value() ? by.product_over_rows(matrix(d_gates, batch, 4 * hidden), *h0)
                          : torch::stable::new_zeros(pass.weight_hh, {4 * hidden, hidden});
  }
  const int64_t rows = (steps - 1) * batch;
  const Tensor later = matrix(d_gates, rows, 4 * hidden, batch), states = matrix(*pass.output, rows, hidden);
  return h0.has_value() ? by.product_over_rows(later, states, matrix(d_gates, batch, 4 * hidden), *h0)
                        : by.product_over_rows(later, states);
}

}  // namespace

void gpu_forward(const ForwardPass& pass, const Launch& launch) {
  expect_launch(launch);
  if (pass.sizes.batch == 0) return;
  if (launch[kIsTriton] != 0) return forward_by_triton(pass, launch);
#ifdef TAGRANK_CUDA
  on_clusters(kind_of(pass.weight_hh), launch, [&](auto element, const cuda::Launch& to) {
    forward_on_clusters<decltype(element)>(pass, to);
  });
#else
  without_clusters();
#endif
}

Gradients gpu_backward(const BackwardPass& original, const Launch& launch) {
  expect_launch(launch);
  const auto [steps, batch, hidden] = original.sizes;
  const Kind kind = kind_of(original.weight_hh);
  const Products by(kind, launch);
  BackwardPass pass = original;
  // The kernels read a gradient with any strides over steps and rows: transposed for batch_first, expanded for a sum.
  if (pass.grad_output.has_value()) {
    bool as_it_lies = pass.grad_output->stride(2) <= 1;
    // The kernels count in 32 bit within the rows of a tile, of which there are 128 at most.
    as_it_lies = as_it_lies && pass.grad_output->stride(0) <= INT32_MAX && pass.grad_output->stride(1) <= INT32_MAX / 128;
    if (!as_it_lies) pass.grad_output = torch::stable::contiguous(*pass.grad_output);
  }
  Gradients gradients;
  if (pass.summed) gradients.gates_sum = empty({batch, 4 * hidden}, kind);
  if (pass.c0_wanted) gradients.c0 = empty({batch, hidden}, kind);
  if (batch == 0) {
    gradients.gates = empty({steps, batch, 4 * hidden}, kind);
    if (pass.h0_wanted) gradients.h0 = empty({batch, hidden}, kind);
    if (pass.weight_wanted) gradients.weight_hh = torch::stable::new_zeros(pass.weight_hh, {4 * hidden, hidden});
    return gradients;
  }
  // Nobody else has the products, so that the gradients may overwrite them.
  const Tensor gates = pass.gates.has_value() ? *pass.gates : recurrent_products(pass, by);
  const Tensor d_gates = pass.gates.has_value() ? empty({steps, batch, 4 * hidden}, kind) : gates;
  gradients.gates = d_gates;
  if (launch[kIsTriton] != 0) {
    backward_by_triton(pass, launch, gates, d_gates, gradients);
  } else {
#ifdef TAGRANK_CUDA
    on_clusters(kind, launch, [&](auto element, const cuda::Launch& to) {
      backward_on_clusters<decltype(element)>(pass, to, gates, d_gates, gradients);
    });
#else
    without_clusters();
#endif
  }
  if (pass.weight_wanted) gradients.weight_hh = weight_gradient(pass, d_gates, by);
  if (pass.h0_wanted) gradients.h0 = by.product(matrix(d_gates, batch, 4 * hidden), pass.weight_hh);
  return gradients;
}

}  // namespace tagrank
