// Products of matrices on NVIDIA GPUs, by the cuBLASLt that torch has loaded. A call of torch's own products takes several
// times as long on the host, and takes neither TF32 for one call nor sums in float32 of 16-bit numbers.
#pragma once

#include "tensors.h"

namespace tagrank::cublas {

// out = a b (+ bias, a row for each row of out) (+ out, if `accumulate`), on a stream of the tensors' device, which is the
// current one. The sums are in float32, and rounded once. With `tf32`, float32 factors are rounded to TF32.
//
// `out` is float32 or of the dtype of a and b, which is float32, float16 or bfloat16. Returns false, and does nothing, for
// other dtypes, for matrices of which neither rows nor columns are contiguous, if a dimension is 0, for a bias on a product
// with a dimension of 1, and if there is no cuBLASLt that takes the product.
bool multiply(const Tensor& out, const Tensor& a, const Tensor& b, const MaybeTensor& bias, bool accumulate, bool tf32,
              void* stream);

}  // namespace tagrank::cublas
