// Rows of numbers in global memory. If all rows begin at multiples of 16 bytes, 16 bytes are moved at once: a piece.
#pragma once

#include <cstdint>
#include <type_traits>

#include "number.h"
#include "target.h"

namespace tagrank::cuda {

// The numbers of a piece.
template <typename E>
constexpr int kPiece = 16 / static_cast<int>(sizeof(E));

// function(std::true_type) if the rows of an array begin at multiples of 16 bytes, else function(std::false_type). To be
// called outside of loops: with a branch at each load, the loads would wait for each other.
template <typename E, typename Function>
TAGRANK_DEVICE void by_alignment(const E* array, int length, const Function& function) {
  if (length % kPiece<E> == 0 && reinterpret_cast<uintptr_t>(array) % 16 == 0) {
    function(std::true_type{});
  } else {
    function(std::false_type{});
  }
}

// The numbers of a piece that begins at `first` in a row of `length` numbers, zeros beyond its end.
template <bool kAligned, typename E>
TAGRANK_DEVICE Words4 load_piece(const E* row, int first, int length) {
  Words4 piece = {{0, 0, 0, 0}};
  if constexpr (kAligned) {
    if (first < length) piece = *reinterpret_cast<const Words4*>(row + first);
  } else if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) piece.word[i] = first + i < length ? bits_of(row[first + i]) : 0;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t number = first + i < length ? row[first + i] : 0;
      piece.word[i / 2] |= number << (16 * (i % 2));
    }
  }
  return piece;
}

}  // namespace tagrank::cuda
