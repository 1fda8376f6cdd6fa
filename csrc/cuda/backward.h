// The backward pass of one cluster: kRows batch rows, all hidden units, all steps from the last to the first.
//
// A block computes the gates' gradients d_gates of its own hidden units. dh_{t-1} = d_gates U is a sum over all gates, and so
// over all blocks. Each block multiplies its d_gates with its slice of U and so has one part of dh of every hidden unit. It
// writes each part, in float32, into a slot of the block that has the unit. A block adds up its slots in a fixed order. This
// moves half the bytes of an exchange of d_gates, and needs the same slice of U as the forward pass.
//
// U is kept in registers as the left operand of U^T d_gates^T. Two sets of slots take turns, like the two buffers of h in the
// forward pass.
#pragma once

#include "cell.h"
#include "cluster.h"
#include "gates.h"
#include "memory.h"
#include "plan.h"
#include "recurrence.h"

namespace tagrank::cuda {

template <typename T, typename S>
class Backward {
  static constexpr int kInner = kGates * kUnits;             // the inner dimension: the block's gates
  static constexpr int kRow = padded_row(kInner);            // the length of a row of d_gates in shared memory
  static constexpr int kSlices = kInner / kSlice;            // of the inner dimension
  static constexpr int kStripes = S::kPadded / kWarps / 16;  // a warp's stripes of 16 hidden units
  static constexpr int kTilesOfWarp = (S::kTiles + 1) / 2;   // every second tile
  // The length of a row of U in shared memory: 16 bytes of each of eight rows are in different banks.
  static constexpr int kStagedRow = S::kPadded + 8;
  static_assert(S::kPadded % (16 * kWarps) == 0, "every warp has the same stripes");

  struct Warp {
    Lanes<Words4> weight[kStripes][2][kSlices];  // of the hidden units g and g + 8 of a stripe
    Lanes<Float2> dc[kTilesOfWarp];             // of the batch rows 2q and 2q + 1
    Lanes<Gates> d_input[kTilesOfWarp][2];      // the sum of d_gates over time
    RawGates gates[kTilesOfWarp][2];
    Lanes<uint16_t> grad_output[kTilesOfWarp][2];
    Lanes<float> c_prev[kTilesOfWarp][2], c[kTilesOfWarp][2];
    Lanes<Words2> d_gates[kTilesOfWarp][2];  // to be stored once the other blocks have their parts
  };

 public:
  // The numbers of a slot: one block's part of this block's dh, in the order of matrix fragments. Each set has a slot for every
  // block of the cluster.
  static constexpr int kSlot = kGroups * S::kTiles * kLanes;
  static constexpr int kGradientBytes = S::kRows * kRow * 2;
  static constexpr int kStagedBytes = kSlice * kStagedRow * 2;
  // Shared memory, in bytes: d_gates, and the slots. U passes through the memory of the slots before they are used.
  static constexpr int shared(int blocks) {
    const int slots = 2 * blocks * kSlot * int(sizeof(Float2));
    return kGradientBytes + (slots > kStagedBytes ? slots : kStagedBytes);
  }

  TAGRANK_DEVICE Backward(const BackwardCall& call, Block& block)
      : call_(call),
        block_(block),
        hidden_(call.hidden),
        slice_(slice_of(block.rank(), call.hidden)),
        first_row_(static_cast<int64_t>(block.cluster()) * S::kRows),
        gradients_(reinterpret_cast<uint16_t*>(block.shared())),
        staged_(reinterpret_cast<uint16_t*>(block.shared() + kGradientBytes)),
        slots_(reinterpret_cast<Float2*>(block.shared() + kGradientBytes)) {}

  TAGRANK_DEVICE void run() {
    Warps<Warp> warps(kWarps);
    by_alignment(call_.weight_hh, hidden_, [&](auto aligned) { load_weights<aligned>(warps); });
    warps.each([&](int index, Warp& warp) { begin(index, warp); });
    block_.arrive();
    for (int64_t t = call_.steps - 1; t >= 0; --t) {
      warps.each([&](int index, Warp& warp) { load(index, warp, t); });
      block_.wait();
      warps.each([&](int index, Warp& warp) { differentiate(index, warp, t); });
      block_.sync();
      if (t > 0) {
        warps.each([&](int index, Warp& warp) { put_parts(index, warp, t); });
        block_.arrive();
      }
      warps.each([&](int index, Warp& warp) { store(index, warp, t); });
    }
  }

 private:
  TAGRANK_DEVICE bool exists(int u, int row) const {
    return u < slice_.count && row < S::kRows && first_row_ + row < call_.batch;
  }
  // The gates of unit u of this block in a row of an array [rows, 4H].
  template <typename Bits>
  TAGRANK_DEVICE Bits* gates_at(Bits* array, int64_t row, int u) const {
    return array + row * kGates * hidden_ + slice_.first + u;
  }
  // function(lane, i, which, u, row) for each number that a lane of the warp has: it belongs to unit u and batch row `row`,
  // which is row 2q + which of tile i of the warp.
  template <typename Function>
  TAGRANK_DEVICE static void each_number(int index, const Function& function) {
    each_lane([&](int lane) {
#pragma unroll
      for (int i = 0; i < kTilesOfWarp; ++i) {
#pragma unroll
        for (int which = 0; which < 2; ++which) {
          function(lane, i, which, unit_of(index, lane), backward_row(index, lane, i, which));
        }
      }
    });
  }
  TAGRANK_DEVICE Float2* slot(int64_t t, int from) const { return slots_ + ((t & 1) * block_.blocks() + from) * kSlot; }

  // Loads U^T in the order of matrix fragments. A column of U is not contiguous in global memory, so U passes through shared
  // memory, 32 rows (elements of the inner dimension) at a time, ordered so that a fragment reads neighbouring rows.
  template <bool kAligned>
  TAGRANK_DEVICE void load_weights(Warps<Warp>& warps) {
    constexpr int kPieces = S::kPadded / 8;
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
      const auto load = [&](int piece) {
        const int inner = staged_inner(k, piece / kPieces), u = inner / kGates;
        Words4 eight = {{0, 0, 0, 0}};
        if (u < slice_.count) {
          const int64_t row = gate_row(inner % kGates, slice_.first + u, hidden_);
          eight = load_eight<kAligned>(call_.weight_hh + row * hidden_, piece % kPieces * 8, hidden_);
        }
        return eight;
      };
      const auto store = [&](int piece, const Words4& eight) {
        *reinterpret_cast<Words4*>(staged_ + piece / kPieces * kStagedRow + piece % kPieces * 8) = eight;
      };
      block_.template copy<kSlice * kPieces>(load, store);
      block_.sync();
      warps.each([&](int index, Warp& warp) {
#pragma unroll
        for (int stripe = 0; stripe < kStripes; ++stripe) {
#pragma unroll
          for (int lower = 0; lower < 2; ++lower) {
            Lanes<const uint16_t*> from;
            each_lane([&](int lane) {
              from[lane] = staged_ + lane * kStagedRow + group_of(index, stripe, kStripes, lower) * kGroup;
            });
            load_transposed(warp.weight[stripe][lower][k], from);
          }
        }
      });
      block_.sync();
    }
  }

  TAGRANK_DEVICE void begin(int index, Warp& warp) {
    const int64_t last = (call_.steps - 1) * call_.batch * hidden_;
    each_number(index, [&](int lane, int i, int which, int u, int row) {
      const bool there = exists(u, row);
      const int64_t at = (first_row_ + row) * hidden_ + slice_.first + u;
      warp.dc[i][lane].at[which] = there && call_.grad_c_n != nullptr ? to_float(T{}, call_.grad_c_n[at]) : 0.0f;
      warp.c_prev[i][which][lane] = there ? call_.cells[last + at] : 0.0f;
      warp.d_input[i][which][lane] = Gates{};
    });
  }

  // Issues the loads of step t from global memory, while the other blocks' parts are on their way.
  TAGRANK_DEVICE void load(int index, Warp& warp, int64_t t) {
    each_number(index, [&](int lane, int i, int which, int u, int row) {
      const bool there = exists(u, row);
      const int64_t at_row = t * call_.batch + first_row_ + row;
      const int64_t at = at_row * hidden_ + slice_.first + u;
      load_gates(warp.gates[i][which], lane, gates_at(call_.gates, at_row, u), hidden_, there);
      const int* strides = call_.grad_output_strides;
      const uint16_t* grad = call_.grad_output + t * strides[0] + first_row_ * strides[1];
      grad += row * strides[1] + (slice_.first + u) * strides[2];
      warp.grad_output[i][which][lane] = there && call_.grad_output != nullptr ? *grad : uint16_t{0};
      float c_prev = 0.0f;
      if (there && t > 0) {
        c_prev = call_.cells[at - call_.batch * hidden_];
      } else if (there && call_.c0 != nullptr) {
        c_prev = to_float(T{}, call_.c0[at]);
      }
      warp.c[i][which][lane] = warp.c_prev[i][which][lane];
      warp.c_prev[i][which][lane] = c_prev;
    });
  }

  // Adds up the parts of dh and computes d_gates of step t.
  TAGRANK_DEVICE void differentiate(int index, Warp& warp, int64_t t) {
    each_lane([&](int lane) {
      const int u = unit_of(index, lane);
#pragma unroll
      for (int i = 0; i < kTilesOfWarp; ++i) {
        if (tile_of(index, i) >= S::kTiles) continue;
        Float2 dh = {};
        if (t + 1 < call_.steps) {
          const int at = (index / 2 * S::kTiles + tile_of(index, i)) * kLanes + lane;
          for (int from = 0; from < block_.blocks(); ++from) {
            const Float2 part = slot(t + 1, from)[at];
            dh.at[0] += part.at[0];
            dh.at[1] += part.at[1];
          }
        }
#pragma unroll
        for (int which = 0; which < 2; ++which) {
          const int r = backward_row(index, lane, i, which);
          Gates gates = gates_of(warp, lane, i, which, exists(u, r), t, r, u);
          dh.at[which] += to_float(T{}, warp.grad_output[i][which][lane]);
          if (t + 1 == call_.steps && call_.grad_h_n != nullptr && exists(u, r)) {
            dh.at[which] += to_float(T{}, call_.grad_h_n[(first_row_ + r) * hidden_ + slice_.first + u]);
          }
          const Gates d = cell_backward(gates, warp.c_prev[i][which][lane], warp.c[i][which][lane], dh.at[which],
                                        warp.dc[i][lane].at[which]);
          warp.d_input[i][which][lane] = warp.d_input[i][which][lane] + d;
          const Words2 rounded = round_gates<T>(d);
          warp.d_gates[i][which][lane] = rounded;
          *reinterpret_cast<Words2*>(gradients_ + r * kRow + kGates * u) = rounded;
        }
      }
    });
  }

  // The gates of step t: as they were saved, or computed again from the recurrent products and gates_x.
  TAGRANK_DEVICE Gates gates_of(const Warp& warp, int lane, int i, int which, bool there, int64_t t, int row, int u) {
    const Gates gates = widen<T>(warp.gates[i][which], lane);
    if (call_.gates_x == nullptr) return gates;
    const int64_t at = (call_.constant ? 0 : t * call_.batch) + first_row_ + row;
    RawGates input;
    load_gates(input, lane, gates_at(call_.gates_x, at, u), hidden_, there);
    return activate(gates + widen<T>(input, lane));
  }

  // Multiplies U^T with d_gates. Each group of hidden units of the product goes to the block that has the group.
  TAGRANK_DEVICE void put_parts(int index, Warp& warp, int64_t t) {
#pragma unroll 1
    for (int tile = 0; tile < S::kTiles; ++tile) {
      Lanes<Float4> sum[kStripes];
#pragma unroll
      for (int stripe = 0; stripe < kStripes; ++stripe) each_lane([&](int lane) { sum[stripe][lane] = Float4{}; });
#pragma unroll
      for (int k = 0; k < kSlices; ++k) {
        Lanes<Words4> eight;
        each_lane([&](int lane) {
          const uint16_t* from = gradients_ + (tile * kTile + lane / 4) * kRow + k * kSlice + lane % 4 * 8;
          eight[lane] = *reinterpret_cast<const Words4*>(from);
        });
#pragma unroll
        for (int stripe = 0; stripe < kStripes; ++stripe) {
          multiply<T>(sum[stripe], warp.weight[stripe][0][k], warp.weight[stripe][1][k], eight);
        }
      }
#pragma unroll
      for (int stripe = 0; stripe < kStripes; ++stripe) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int group = group_of(index, stripe, kStripes, lower);
          const int to = group / kGroups;
          if (to >= block_.blocks()) continue;
          const Float2* mine = slot(t, block_.rank()) + (group % kGroups * S::kTiles + tile) * kLanes;
          each_lane([&](int lane) {
            const Float4& four = sum[stripe][lane];
            block_.put(to, mine + lane, Float2{{four.at[2 * lower], four.at[2 * lower + 1]}});
          });
        }
      }
    }
  }

  TAGRANK_DEVICE void store(int index, Warp& warp, int64_t t) {
    each_number(index, [&](int lane, int i, int which, int u, int row) {
      if (!exists(u, row)) return;
      const int64_t at_row = t * call_.batch + first_row_ + row;
      store_gates(gates_at(call_.d_gates, at_row, u), hidden_, warp.d_gates[i][which][lane]);
      if (t > 0) return;
      if (call_.d_c0 != nullptr) {
        call_.d_c0[at_row * hidden_ + slice_.first + u] = to_bits(T{}, warp.dc[i][lane].at[which]);
      }
      if (call_.d_gates_x != nullptr) {
        store_gates(gates_at(call_.d_gates_x, at_row, u), hidden_, round_gates<T>(warp.d_input[i][which][lane]));
      }
    });
  }

  const BackwardCall& call_;
  Block& block_;
  const int hidden_;
  const Slice slice_;
  const int64_t first_row_;
  uint16_t* const gradients_;
  uint16_t* const staged_;
  Float2* const slots_;
};

}  // namespace tagrank::cuda
