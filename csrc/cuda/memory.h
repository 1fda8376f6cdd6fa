// Rows of 16-bit numbers in global memory, whose length any number may be.
#pragma once

#include <cstdint>

#include "number.h"
#include "target.h"

namespace tagrank::cuda {

// Eight numbers of a row of `length` from `first` on, zeros beyond its end. Rows that 8 divides are read at once.
TAGRANK_DEVICE Words4 load_eight(const uint16_t* row, int first, int length) {
  Words4 eight = {{0, 0, 0, 0}};
  if (length % 8 == 0) {
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

TAGRANK_DEVICE void store_eight(uint16_t* row, int first, int length, const Words4& eight) {
  if (length % 8 == 0) {
    if (first < length) *reinterpret_cast<Words4*>(row + first) = eight;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i < length) row[first + i] = static_cast<uint16_t>(eight.word[i / 2] >> (16 * (i % 2)));
    }
  }
}

}  // namespace tagrank::cuda
