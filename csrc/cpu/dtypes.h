// The storage types of the kernels, and the type that each of them computes in.
#pragma once

#include <cstdint>

namespace tagrank::cpu {

struct bfloat16 {
  uint16_t bits;
};

// What T is computed in, and what the cell state and its gradient are kept in.
template <typename T>
struct Compute {
  using type = T;
};
template <>
struct Compute<bfloat16> {
  using type = float;
};
template <typename T>
using compute_t = typename Compute<T>::type;

}  // namespace tagrank::cpu
