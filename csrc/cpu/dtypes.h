// The storage types of the kernels, and the type in which each is computed.
#pragma once

#include <cstdint>

namespace tagrank::cpu {

struct bfloat16 {
  uint16_t bits;
};

// The type in which T is computed, and in which the cell state and its gradient are kept.
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
