// The four gates of a hidden unit in global memory: numbers that lie H apart in a row of gates.
#pragma once

#include <cstdint>

#include "cell.h"
#include "number.h"
#include "plan.h"
#include "target.h"
#include "warp.h"

namespace tagrank::cuda {

// The gates as they were loaded. They are converted to float when they are used, so that nothing waits for them earlier.
template <typename E>
using RawGates = Lanes<E>[kGates];

// The same numbers in as few registers as they need.
template <typename E>
using PackedGates = std::conditional_t<sizeof(E) == 2, Words2, Gates>;

// Loads the gates of a unit, or zeros if the unit does not exist (`there` is false).
template <typename E>
TAGRANK_DEVICE void load_gates(RawGates<E>& raw, int lane, const E* unit, int hidden, bool there) {
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) raw[gate][lane] = there ? unit[gate * hidden] : E{};
}

template <typename T>
TAGRANK_DEVICE Gates widen(const RawGates<Element<T>>& raw, int lane) {
  return {to_float(T{}, raw[0][lane]), to_float(T{}, raw[1][lane]), to_float(T{}, raw[2][lane]),
          to_float(T{}, raw[3][lane])};
}

template <typename T>
TAGRANK_DEVICE Gates widen(const Words2& gates) {
  return {to_float(T{}, half(gates.word[0], 0)), to_float(T{}, half(gates.word[0], 1)), to_float(T{}, half(gates.word[1], 0)),
          to_float(T{}, half(gates.word[1], 1))};
}
template <typename T>
TAGRANK_DEVICE Gates widen(const Gates& gates) {
  return gates;
}

TAGRANK_DEVICE Words2 pack(const RawGates<uint16_t>& raw, int lane) {
  const auto two = [&](int gate) { return raw[gate][lane] | static_cast<uint32_t>(raw[gate + 1][lane]) << 16; };
  return {{two(0), two(2)}};
}
TAGRANK_DEVICE Gates pack(const RawGates<float>& raw, int lane) {
  return {raw[0][lane], raw[1][lane], raw[2][lane], raw[3][lane]};
}

template <typename T>
TAGRANK_DEVICE PackedGates<Element<T>> round_gates(const Gates& gates) {
  if constexpr (sizeof(Element<T>) == 4) {
    return gates;
  } else {
    return {{halves<T>(gates.i, gates.f), halves<T>(gates.g, gates.o)}};
  }
}

TAGRANK_DEVICE void store_gates(uint16_t* unit, int hidden, const Words2& gates) {
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) unit[gate * hidden] = half(gates.word[gate / 2], gate % 2);
}
TAGRANK_DEVICE void store_gates(float* unit, int hidden, const Gates& gates) {
  unit[0] = gates.i;
  unit[hidden] = gates.f;
  unit[2 * hidden] = gates.g;
  unit[3 * hidden] = gates.o;
}

}  // namespace tagrank::cuda
