#include "products.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>

#include "../cpu/recurrence.h"
#include "cublas.h"

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

// Up to so many multiplications, csrc/cpu takes less time than calling a library. Of one row it reads each weight once, which
// is all that there is to do; for more rows the library reads it less often.
constexpr int64_t kFew = 1 << 16, kFewOfOneRow = 1 << 18;

bool is_row(const MaybeTensor& bias, int64_t outputs) {
  return !bias.has_value() || (bias->is_contiguous() && bias->numel() == outputs);
}

// Whether csrc/cpu computes the product.
bool is_small(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& other_bias) {
  return x.is_cpu() && x.numel() * weight.size(0) <= (x.size(0) == 1 ? kFewOfOneRow : kFew) && x.is_contiguous() &&
         (weight.stride(1) == 1 || weight.size(1) <= 1) && is_row(bias, weight.size(0)) &&
         is_row(other_bias, weight.size(0));
}

template <typename T>
void small_linear(const Tensor& out, const Tensor& x, const Tensor& weight, const MaybeTensor& bias,
                  const MaybeTensor& other_bias) {
  cpu::LinearCall<T> call{};
  call.rows = x.size(0);
  call.inputs = x.size(1);
  call.outputs = weight.size(0);
  call.x = read<T>(x);
  call.weight = read<T>(weight);
  call.weight_stride = weight.stride(0);
  call.bias = read<T>(bias);
  call.other_bias = read<T>(other_bias);
  call.out = write<T>(out);
  cpu::linear(call);
}

// In 16 bit, torch's products may round parts of a sum over so many rows to 16 bit before they add those up.
constexpr int64_t kManyRows = 2048;

// On an H100, float16 products of cuBLAS and cuBLASLt over 2113 and 3969 rows were as wrong as if one row were missing. Those over
// up to 1025 rows and over 12678 were right. So of more rows, one product takes a multiple of kStep, another one the rest.
constexpr int64_t kWholeRows = 1024, kStep = 64;

bool is_half(const Kind& kind) { return kind.dtype == ScalarType::Half || kind.dtype == ScalarType::BFloat16; }

}  // namespace

Products::Products(const Kind& kind, const Launch& launch) : cpu_(kind.cpu()), tf32_(false), stream_(nullptr) {
  if (cpu_) return;
  STD_TORCH_CHECK(launch.size() >= kGpuNumbers, "tagrank: launch: expected what a backend's launch() returns; got ",
                  launch.size(), " numbers");
  stream_ = reinterpret_cast<void*>(launch[kStream]);
  tf32_ = launch[kTf32] != 0;
}

bool Products::by_cublas(const Tensor& out, const Tensor& a, const Tensor& b, const MaybeTensor& bias, bool accumulate) const {
  return !cpu_ && cublas::multiply(out, a, b, bias, accumulate, tf32_, stream_);
}

Tensor Products::linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& other_bias) const {
  const Kind kind = kind_of(x);
  const Tensor out = empty({x.size(0), weight.size(0)}, kind);
  if (is_small(x, weight, bias, other_bias)) {
    switch (kind.dtype) {
      case ScalarType::Float:
        return small_linear<float>(out, x, weight, bias, other_bias), out;
      case ScalarType::Double:
        return small_linear<double>(out, x, weight, bias, other_bias), out;
      case ScalarType::BFloat16:
        return small_linear<cpu::bfloat16>(out, x, weight, bias, other_bias), out;
      default:
        break;
    }
  }
  if (bias.has_value() && other_bias.has_value()) return linear(x, weight, add(*bias, *other_bias), std::nullopt);
  const Tensor right = transposed(weight);
  if (is_row(bias, weight.size(0)) && by_cublas(out, x, right, bias, /*accumulate=*/false)) return out;
  if (bias.has_value()) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        functions_for(kind).addmm_out(out.get(), bias->get(), x.get(), right.get(), /*beta=*/1, /*alpha=*/1));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(functions_for(kind).mm_out(out.get(), x.get(), right.get()));
  }
  return out;
}

Tensor Products::product(const Tensor& a, const Tensor& b) const {
  const Tensor out = empty({a.size(0), b.size(1)}, kind_of(a));
  product_into(out, a, b);
  return out;
}

namespace {

// a b of 16-bit numbers, in float32, by the one operator of torch that has it.
Tensor exact_product(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(ScalarType::Float)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The rows of a matrix from `first` on.
Tensor rows_of(const Tensor& matrix, int64_t first, int64_t count) {
  return view(matrix, {count, matrix.size(1)}, {matrix.stride(0), matrix.stride(1)}, first * matrix.stride(0));
}

}  // namespace

void Products::product_into(const Tensor& out, const Tensor& a, const Tensor& b) const {
  if (by_cublas(out, a, b, std::nullopt, /*accumulate=*/false)) return;
  if (out.scalar_type() != a.scalar_type()) {
    Tensor sums = out;
    torch::stable::copy_(sums, exact_product(a, b));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(functions_for(kind_of(a)).mm_out(out.get(), a.get(), b.get()));
  }
}

void Products::over_rows_into(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) const {
  const Kind kind = kind_of(a);
  const int64_t rows = a.size(0);
  const bool half_on_gpu = !cpu_ && is_half(kind);
  if (half_on_gpu && rows > kWholeRows && rows % kStep != 0) {
    const int64_t rest = rows % kStep, whole = rows - rest;
    over_rows_into(out, rows_of(a, 0, whole), rows_of(b, 0, whole), accumulate);
    over_rows_into(out, rows_of(a, whole, rest), rows_of(b, whole, rest), /*accumulate=*/true);
    return;
  }
  const Tensor left = transposed(a);
  if (by_cublas(out, left, b, std::nullopt, accumulate)) return;
  if (half_on_gpu && rows >= kManyRows && !accumulate) {
    Tensor rounded = out;
    torch::stable::copy_(rounded, exact_product(left, b));
  } else if (accumulate) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        functions_for(kind).addmm_out(out.get(), out.get(), left.get(), b.get(), /*beta=*/1, /*alpha=*/1));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(functions_for(kind).mm_out(out.get(), left.get(), b.get()));
  }
}

Tensor Products::product_over_rows(const Tensor& a, const Tensor& b) const {
  const Tensor out = empty({a.size(1), b.size(1)}, kind_of(a));
  over_rows_into(out, a, b);
  return out;
}

Tensor Products::product_over_rows(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d) const {
  const Tensor sum = product_over_rows(a, b);
  over_rows_into(sum, c, d, /*accumulate=*/true);
  return sum;
}

Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, /*alpha=*/-1); }

Tensor sum_of_rows(const Tensor& a) {
  if (a.dim() == 2 && a.size(0) == 1 && a.is_contiguous()) return view(a, {a.size(1)}, {1});
  const int64_t over[] = {0};
  return torch::stable::sum(a, torch::headeronly::IntHeaderOnlyArrayRef(over, 1));
}

}  // namespace tagrank
