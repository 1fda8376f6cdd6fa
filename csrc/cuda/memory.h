// Rows of 16-bit numbers in global memory. If all rows begin at multiples of 16 bytes, eight numbers are moved at once.
#pragma once

#include <cstdint>
#include <type_traits>

#include "number.h"
#include "target.h"

namespace tagrank::cuda {

// function(std::true_type) if the rows of an array begin at multiples of 16 bytes, else function(std::false_type). To be
// called outside of loops: with a branch at each load, the loads would wait for each other.
template <typename Function>
TAGRANK_DEVICE void by_alignment(const uint16_t* array, int length, const Function& function) {
  if (length % 8 == 0 && reinterpret_cast<uintptr_t>(array) % 16 == 0) {
    function(std::true_type{});
  } else {
    function(std::false_type{});
  }
}

// The numbers [first, first + 8) of a row of `length` numbers, zeros beyond its end.
template <bool kAligned>
TAGRANK_DEVICE Words4 load_eight(const uint16_t* row, int first, int length) {
  Words4 eight = {{0, 0, 0, 0}};
  if constexpr (kAligned) {
    if (first < length) eight = *reinterpret_cast<const Words4*>(row + first);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t number = first + i < length ? row[first + i] : 0;
      eight.word[i / 2] |= number << (16 * (i % 2));
    }
  }
  return eight;
}

}  // namespace tagrank::cuda
