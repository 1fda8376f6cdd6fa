#include "products.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>

namespace tagrank {

namespace {

struct Functions {
  decltype(&aoti_torch_cpu_mm_out) mm_out;
  decltype(&aoti_torch_cpu_addmm_out) addmm_out;
};

// Those of torch's CUDA library. tagrank's own library is not linked with it, so that it also loads where torch has none.
Functions cuda_functions() {
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  STD_TORCH_CHECK(library != nullptr, "tagrank: torch has no loaded libtorch_cuda.so");
  Functions functions;
  functions.mm_out = reinterpret_cast<decltype(functions.mm_out)>(dlsym(library, "aoti_torch_cuda_mm_out"));
  functions.addmm_out = reinterpret_cast<decltype(functions.addmm_out)>(dlsym(library, "aoti_torch_cuda_addmm_out"));
  STD_TORCH_CHECK(functions.mm_out != nullptr && functions.addmm_out != nullptr,
                  "tagrank: this torch has no aoti_torch_cuda_mm_out and aoti_torch_cuda_addmm_out");
  return functions;
}

const Functions& functions_for(const Kind& kind) {
  static const Functions on_cpu{&aoti_torch_cpu_mm_out, &aoti_torch_cpu_addmm_out};
  if (kind.cpu()) return on_cpu;
  static const Functions on_cuda = cuda_functions();
  return on_cuda;
}

// In float16, cuBLAS rounds parts of a sum over so many rows to float16, and then adds those up.
constexpr int64_t kManyRows = 8192;

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  const Kind kind = kind_of(x);
  const Tensor out = empty({x.size(0), weight.size(0)}, kind), right = transposed(weight);
  if (bias.has_value()) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        functions_for(kind).addmm_out(out.get(), bias->get(), x.get(), right.get(), /*beta=*/1, /*alpha=*/1));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(functions_for(kind).mm_out(out.get(), x.get(), right.get()));
  }
  return out;
}

Tensor product(const Tensor& a, const Tensor& b) {
  const Tensor out = empty({a.size(0), b.size(1)}, kind_of(a));
  product_into(out, a, b);
  return out;
}

void product_into(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(functions_for(kind_of(a)).mm_out(out.get(), a.get(), b.get()));
}

Tensor product_over_rows(const Tensor& a, const Tensor& b) {
  const Kind kind = kind_of(a);
  const Tensor left = transposed(a);
  if (kind.cpu() || kind.dtype != ScalarType::Half || a.size(0) < kManyRows) return product(left, b);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(left), torch::stable::detail::from(b),
                                    torch::stable::detail::from(ScalarType::Float)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::to(torch::stable::detail::to<Tensor>(stack[0]), kind.dtype);
}

Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, /*alpha=*/-1); }

Tensor sum_of_rows(const Tensor& a) {
  if (a.dim() == 2 && a.size(0) == 1 && a.is_contiguous()) return view(a, {a.size(1)}, {1});
  const int64_t over[] = {0};
  return torch::stable::sum(a, torch::headeronly::IntHeaderOnlyArrayRef(over, 1));
}

void add_product_over_rows(const Tensor& to, const Tensor& a, const Tensor& b) {
  const Tensor left = transposed(a);
  STABLE_TORCH_ERROR_CODE_CHECK(
      functions_for(kind_of(a)).addmm_out(to.get(), to.get(), left.get(), b.get(), /*beta=*/1, /*alpha=*/1));
}

}  // namespace tagrank
