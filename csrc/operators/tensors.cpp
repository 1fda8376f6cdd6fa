#include "tensors.h"

#include <array>
#include <cstring>
#include <stdexcept>

#include "../cpu/workspace.h"

namespace tagrank {

namespace {

constexpr int kMostDimensions = 4;

std::string describe(const Kind& kind) {
  return name_of(kind.dtype) + " on " + (kind.cpu() ? "cpu" : "cuda:" + std::to_string(kind.device));
}

std::string listed(const int64_t* numbers, std::size_t count) {
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    text += (i == 0 ? "" : ", ") + (numbers[i] == -1 ? std::string("any") : std::to_string(numbers[i]));
  }
  return "[" + text + "]";
}

}  // namespace

Kind kind_of(const Tensor& tensor) {
  Kind kind;
  kind.dtype = tensor.scalar_type();
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &kind.dtype_code));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &kind.device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &kind.device));
  return kind;
}

Kind with_dtype(const Kind& kind, ScalarType dtype) {
  Kind other = kind;
  other.dtype = dtype;
  other.dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  return other;
}

Tensor empty(Shape shape, const Kind& kind) {
  std::array<int64_t, kMostDimensions> strides{};
  int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape.begin()[d];
  }
  AtenTensorHandle handle;
  const auto allocate = [&] {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(), strides.data(),
                                                           kind.dtype_code, kind.device_type, kind.device, &handle));
  };
  try {
    allocate();
  } catch (const std::runtime_error& error) {
    // Before version 2.13, torch does not pass its error on. Only memory can be missing here.
    if (std::strstr(error.what(), "allocate memory") || std::strstr(error.what(), "out of memory")) throw;
    const auto bytes = stride * static_cast<int64_t>(aoti_torch_dtype_element_size(kind.dtype_code));
    throw std::runtime_error(kind.cpu() ? cpu::out_of_memory(bytes) : "CUDA out of memory.");
  }
  return Tensor(handle);
}

Tensor view(const Tensor& tensor, Shape shape, Shape strides, int64_t skip) {
  AtenTensorHandle handle;
  // Its last number counts from the first element of the tensor, in spite of its name in torch's header.
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), static_cast<int64_t>(shape.size()), shape.begin(),
                                                               strides.begin(), skip, &handle));
  return Tensor(handle);
}

Tensor matrix(const Tensor& tensor, int64_t rows, int64_t columns, int64_t first_row) {
  return view(tensor, {rows, columns}, {columns, 1}, first_row * columns);
}

Tensor transposed(const Tensor& matrix) {
  return view(matrix, {matrix.size(1), matrix.size(0)}, {matrix.stride(1), matrix.stride(0)});
}

Tensor made_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

MaybeTensor made_contiguous(const MaybeTensor& tensor) {
  return tensor.has_value() ? MaybeTensor(made_contiguous(*tensor)) : tensor;
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

std::string describe_shape(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return listed(sizes.data(), sizes.size());
}

void expect(const char* name, const Tensor& tensor, const Kind& kind, Shape shape) {
  const Kind found = kind_of(tensor);
  bool same = found.dtype == kind.dtype && found.device_type == kind.device_type && found.device == kind.device &&
              tensor.dim() == static_cast<int64_t>(shape.size());
  for (std::size_t d = 0; same && d < shape.size(); ++d) {
    same = shape.begin()[d] == -1 || tensor.size(static_cast<int64_t>(d)) == shape.begin()[d];
  }
  STD_TORCH_CHECK(same, "tagrank: ", name, ": expected ", describe(kind), " with shape ",
                  listed(shape.begin(), shape.size()), "; got ", describe(found), " with shape ", describe_shape(tensor));
}

void expect(const char* name, const MaybeTensor& tensor, const Kind& kind, Shape shape) {
  if (tensor.has_value()) expect(name, *tensor, kind, shape);
}

}  // namespace tagrank
