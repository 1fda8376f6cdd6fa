// Matrix products and sums. On CPUs they are torch's, on GPUs cuBLASLt's. What cuBLASLt does not take is torch's, too, by
// torch's C functions: its dispatcher has no numbers like addmm's beta in its stable interface.
#pragma once

#include "passes.h"
#include "tensors.h"

namespace tagrank {

// The products of a pass. On a GPU they run on the stream of the launch, and float32 products are as exact as it says.
class Products {
 public:
  explicit Products(const Kind& kind, const Launch& launch);

  // x W^T (+ bias + other_bias), [rows, outputs], for x [rows, inputs], W [outputs, inputs] and biases [outputs]. `bias` may
  // also be [rows, outputs]. On GPUs two biases are one launch more than one.
  Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& other_bias) const;
  // a b.
  Tensor product(const Tensor& a, const Tensor& b) const;
  // out = a b. `out` is of the factors' dtype, or in float32 for 16-bit factors on a GPU.
  void product_into(const Tensor& out, const Tensor& a, const Tensor& b) const;
  // out = a^T b (+ out, if `accumulate`): a sum over the rows of both factors, of which there may be many. In 16 bit, sums on
  // GPUs are kept in float32 and rounded once, or twice over many rows.
  void over_rows_into(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate = false) const;
  // a^T b, or the sum of two such products.
  Tensor product_over_rows(const Tensor& a, const Tensor& b) const;
  Tensor product_over_rows(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d) const;

 private:
  // out = a b (+ bias, a row), or false if the product is not for cuBLASLt.
  bool by_cublas(const Tensor& out, const Tensor& a, const Tensor& b, const MaybeTensor& bias, bool accumulate) const;

  bool cpu_, tf32_;
  void* stream_;
};

// a + b, of shapes that torch broadcasts.
Tensor add(const Tensor& a, const Tensor& b);
// The sum over the first dimension. The sum of a single row of a matrix is that row, not a copy.
Tensor sum_of_rows(const Tensor& a);

}  // namespace tagrank
