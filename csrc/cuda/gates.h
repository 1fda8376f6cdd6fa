// The four gates of a hidden unit in global memory: 16-bit numbers that lie H apart in a row of gates.
#pragma once

#include <cstdint>

#include "cell.h"
#include "number.h"
#include "plan.h"
#include "target.h"
#include "warp.h"

namespace tagrank::cuda {

// The gates as they were loaded. They are converted to float when they are used, so that nothing waits for them earlier.
using RawGates = Lanes<uint16_t>[kGates];

// Loads the gates of a unit, or zeros if the unit does not exist (`there` is false).
TAGRANK_DEVICE void load_gates(RawGates& raw, int lane, const uint16_t* unit, int hidden, bool there) {
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) raw[gate][lane] = there ? unit[gate * hidden] : uint16_t{0};
}

template <typename T>
TAGRANK_DEVICE Gates widen(const RawGates& raw, int lane) {
  return {to_float(T{}, raw[0][lane]), to_float(T{}, raw[1][lane]), to_float(T{}, raw[2][lane]),
          to_float(T{}, raw[3][lane])};
}

template <typename T>
TAGRANK_DEVICE Gates widen(const Words2& gates) {
  return {to_float(T{}, half(gates.word[0], 0)), to_float(T{}, half(gates.word[0], 1)), to_float(T{}, half(gates.word[1], 0)),
          to_float(T{}, half(gates.word[1], 1))};
}

// The same numbers in half of the registers.
TAGRANK_DEVICE Words2 pack(const RawGates& raw, int lane) {
  const auto two = [&](int gate) { return raw[gate][lane] | static_cast<uint32_t>(raw[gate + 1][lane]) << 16; };
  return {{two(0), two(2)}};
}

template <typename T>
TAGRANK_DEVICE Words2 round_gates(const Gates& gates) {
  return {{halves<T>(gates.i, gates.f), halves<T>(gates.g, gates.o)}};
}

TAGRANK_DEVICE void store_gates(uint16_t* unit, int hidden, const Words2& gates) {
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) unit[gate * hidden] = half(gates.word[gate / 2], gate % 2);
}

}  // namespace tagrank::cuda
