// cublas::multiply as an operator, for tensors on the CPU: the stand-in for cuBLASLt multiplies there.
#include <torch/csrc/stable/library.h>

#include "../../csrc/operators/cublas.h"

namespace {

bool multiply(const tagrank::Tensor& out, const tagrank::Tensor& a, const tagrank::Tensor& b, const tagrank::MaybeTensor& bias,
              bool accumulate, bool tf32) {
  return tagrank::cublas::multiply(out, a, b, bias, accumulate, tf32, nullptr);
}

}  // namespace

STABLE_TORCH_LIBRARY(tagrank_test, m) {
  m.def("multiply(Tensor(a!) out, Tensor a, Tensor b, Tensor? bias, bool accumulate, bool tf32) -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(tagrank_test, CompositeExplicitAutograd, m) { m.impl("multiply", TORCH_BOX(&multiply)); }
