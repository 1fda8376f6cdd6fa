// Tensors through torch's stable ABI: what they are, new ones, and views. The functions here go to torch's C functions and not
// through its dispatcher, which would take several times as long.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

// Torch 2.10 has only the other one, whose errors do not say what torch said.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace tagrank {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Shape = std::initializer_list<int64_t>;

// The dtype and the device of a tensor, also in torch's numbers for both.
struct Kind {
  ScalarType dtype;
  int32_t dtype_code, device_type, device;
  bool cpu() const { return device_type == aoti_torch_device_type_cpu(); }
};
Kind kind_of(const Tensor& tensor);
Kind with_dtype(const Kind& kind, ScalarType dtype);

// The dtype of the cell states for gates of `dtype`.
inline ScalarType cell_dtype(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

// A new tensor, not initialised.
Tensor empty(Shape shape, const Kind& kind);
// Another tensor over the same memory, `skip` elements after the first element of `tensor`.
Tensor view(const Tensor& tensor, Shape shape, Shape strides, int64_t skip = 0);
// The rows [begin, end) of a contiguous tensor [rows, ...], as a matrix with `columns` columns.
Tensor matrix(const Tensor& tensor, int64_t rows, int64_t columns, int64_t first_row = 0);
// The transpose of a matrix.
Tensor transposed(const Tensor& matrix);
// The tensor, or a contiguous copy.
Tensor made_contiguous(const Tensor& tensor);
MaybeTensor made_contiguous(const MaybeTensor& tensor);

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
const T* read(const MaybeTensor& tensor) {
  return tensor.has_value() ? read<T>(*tensor) : nullptr;
}
// The tensor's memory, or null if there is no tensor or it has no elements.
template <typename T>
T* write(const Tensor& tensor) {
  return tensor.numel() == 0 ? nullptr : static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
T* write(const MaybeTensor& tensor) {
  return tensor.has_value() ? write<T>(*tensor) : nullptr;
}

std::string name_of(ScalarType dtype);
std::string describe_shape(const Tensor& tensor);

// Raises an error unless the argument `name` is of this kind and shape: the kernels get only pointers and cannot check.
// A dimension of -1 in `shape` may have any size.
void expect(const char* name, const Tensor& tensor, const Kind& kind, Shape shape);
void expect(const char* name, const MaybeTensor& tensor, const Kind& kind, Shape shape);

}  // namespace tagrank
