// Matrix products and sums by torch, on CPUs and GPUs. They go to torch's C functions: the dispatcher has no numbers like
// addmm's beta in its stable interface.
#pragma once

#include "tensors.h"

namespace tagrank {

// x W^T (+ bias + other_bias), [rows, outputs], for x [rows, inputs], W [outputs, inputs] and biases [outputs]. `bias` may also
// be [rows, outputs]. On GPUs two biases are one launch more than one.
Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& other_bias);
// a b.
Tensor product(const Tensor& a, const Tensor& b);
// out = a b.
void product_into(const Tensor& out, const Tensor& a, const Tensor& b);
// a^T b, or the sum of two such products: sums over the rows of both factors, of which there may be many. In 16 bit, long sums
// on GPUs are kept in float32 and rounded once.
Tensor product_over_rows(const Tensor& a, const Tensor& b);
Tensor product_over_rows(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d);
// a + b, of shapes that torch broadcasts.
Tensor add(const Tensor& a, const Tensor& b);
// The sum over the first dimension. The sum of a single row of a matrix is that row, not a copy.
Tensor sum_of_rows(const Tensor& a);

}  // namespace tagrank
