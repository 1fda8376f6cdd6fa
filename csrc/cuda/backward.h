// The backward pass of one cluster: kRows batch rows, all hidden units, all steps from the last to the first.
//
// A block computes the gates' gradients d_gates of its own hidden units. dh_{t-1} = d_gates U is a sum over all gates, and so
// over all blocks. Each block multiplies its d_gates with its slice of U and so has one part of dh of every hidden unit. Each
// warp sends its parts, in float32, from its registers to the blocks that have the units, its own too. A block has a slot for
// the parts of each block, and adds up the slots in a fixed order. This moves half the bytes of an exchange of d_gates, and
// needs the same slice of U as the forward pass.
//
// U is kept in registers as the left operand of U^T d_gates^T. Two sets of slots take turns, and a mailbox for each set counts
// the bytes. All that does not depend on dh is computed before the wait for it.
//
// A set of slots may be filled with the parts of step t once nobody reads the parts of step t + 2 in it. A block that sends
// parts of step t has received those of step t + 1 from all others. They sent these after all of their warps had read the
// parts of step t + 2: a barrier of the block comes between.
// d_gates need two buffers, too. A warp that has received all parts of step t + 1 does not know whether other warps of its
// block still multiply d_gates of step t + 1. It knows from the barrier that they do not multiply those of step t + 2.
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
  using E = Element<T>;
  static constexpr int kBytes = sizeof(E);
  static constexpr Activations kActivations = activations_for<T>();
  static constexpr int kInner = kGates * kUnits;             // the inner dimension: the block's gates
  static constexpr int kRow = padded_row(kInner, kBytes);    // the length of a row of d_gates in shared memory
  static constexpr int kSlice = slice_numbers(kBytes), kSlices = kInner / kSlice;  // of the inner dimension
  static constexpr int kStripes = S::kPadded / kWarps / 16;  // a warp's stripes of 16 hidden units
  static constexpr int kTilesOfWarp = (S::kTiles + 1) / 2;   // every second tile
  static constexpr int kMost = S::kPadded / kUnits;          // at most so many blocks has the cluster
  // Whether a step's inputs are loaded a step before they are used. That takes registers.
  static constexpr bool kAhead = S::kTiles <= 2 || (kBytes == 2 && S::kPadded < 512);
  static constexpr int kSums = kStripes == 1 ? 4 : kStripes == 2 && kAhead ? 2 : 1;  // independent sums of each product
  // The length of a row of U in shared memory: 16 bytes of each of eight rows are in different banks.
  static constexpr int kStagedRow = S::kPadded + 8;
  static_assert(S::kPadded % (16 * kWarps) == 0, "every warp has the same stripes");

  // Where the first cell of a lane is in the arrays, and how many batch rows exist from that cell's on (none if the unit does
  // not exist). The first four are at the step that is loaded, d_gates at the step that is computed.
  struct Places {
    const E *gates, *gates_x, *grad_output;
    const float* cells;
    E* d_gates;
    int rows;
  };

  struct Warp {
    Lanes<Places> at;
    Lanes<Words4> weight[kStripes][2][kSlices];  // of the hidden units g and g + 8 of a stripe
    Lanes<Float2> dc[kTilesOfWarp];              // of the batch rows 2q and 2q + 1
    Lanes<Gates> d_input[kTilesOfWarp][2];       // the sum of d_gates over time
    RawGates<E> gates[kTilesOfWarp][2], input[kTilesOfWarp][2];
    Lanes<E> grad_output[kTilesOfWarp][2];
    Lanes<float> c_prev[kTilesOfWarp][2], c[kTilesOfWarp][2];
    Lanes<Derivative> derivative[kTilesOfWarp][2];
    Lanes<float> dh[kTilesOfWarp][2];  // what comes from the output
  };

 public:
  // Shared memory, in bytes: the mailboxes, two buffers of d_gates, and two sets of slots. A slot is one block's part of this
  // block's dh, in the order of matrix fragments: for each pair of groups, a tile's sums of each lane. In 16 bit, U passes
  // through the memory of the slots before they are used.
  static constexpr int kGradientBytes = S::kRows * kRow * kBytes;
  static constexpr int kGradients = kMailBytes, kSlots = kGradients + 2 * kGradientBytes;
  static constexpr int kSlotBytes = kGroups / 2 * S::kTiles * kLanes * int(sizeof(Float4));
  static constexpr int kSlotsBytes = 2 * kMost * kSlotBytes, kStagedBytes = kBytes == 2 ? kInner * kStagedRow * 2 : 0;
  static constexpr int kShared = kSlots + (kSlotsBytes > kStagedBytes ? kSlotsBytes : kStagedBytes);

  TAGRANK_DEVICE Backward(const BackwardCall<E>& call, Block& block)
      : call_(call),
        block_(block),
        hidden_(call.hidden),
        slice_(slice_of(block.rank(), call.hidden)),
        first_row_(static_cast<int64_t>(block.cluster()) * S::kRows),
        rows_(call.batch - first_row_ < S::kRows ? static_cast<int>(call.batch - first_row_) : S::kRows),
        step_(call.batch * call.hidden) {}

  TAGRANK_DEVICE void run() {
    Warps<Warp> warps(kWarps);
    block_.open_mail(0, block_.blocks() * kSlotBytes);
    by_alignment(call_.weight_hh, hidden_, [&](auto aligned) {
      constexpr bool kAligned = decltype(aligned)::value;
      if (kAligned && hidden_ == S::kPadded) {
        load_weights<kAligned, kAligned>(warps);
      } else {
        load_weights<kAligned, false>(warps);
      }
    });
    if (block_.blocks() < kMost) clear_slots();
    warps.each([&](int index, Warp& warp) { begin(index, warp); });
    block_.arrive();
    block_.wait();
    for (int64_t t = call_.steps - 1; t >= 0; --t) {
      const int now = static_cast<int>(t) & 1, before = now ^ 1;
      const bool first = t + 1 == call_.steps;
      warps.each([&](int index, Warp& warp) {
        if constexpr (!kAhead) load(index, warp, t);
        derive(warp);
        if (kAhead && t > 0) load(index, warp, t - 1);
        if (!first) block_.await(before, static_cast<uint32_t>(call_.steps - 2 - t) / 2);
        differentiate(index, warp, now, first);
        if (index == 0 && !first) block_.reopen(before);
      });
      block_.sync();
      warps.each([&](int index, Warp& warp) {
        if (t > 0) send_parts(index, warp, now);
        store(index, warp, now);
      });
    }
    warps.each([&](int index, Warp& warp) { finish(index, warp); });
  }

 private:
  // The row of a number, from that of the lane's first number on: row 2q + which of tile i of the warp.
  TAGRANK_EVERYWHERE static constexpr int below(int i, int which) { return 2 * kTile * i + which; }

  // function(lane, i, which, row, there) for each number that a lane of the warp has. `there` says whether it exists.
  template <typename Function>
  TAGRANK_DEVICE static void each_number(const Warp& warp, const Function& function) {
    each_lane([&](int lane) {
#pragma unroll
      for (int i = 0; i < kTilesOfWarp; ++i) {
#pragma unroll
        for (int which = 0; which < 2; ++which) {
          function(lane, i, which, below(i, which), below(i, which) < warp.at[lane].rows);
        }
      }
    });
  }
  // Where a slot begins, in bytes.
  TAGRANK_EVERYWHERE static constexpr int slot(int set, int from) { return kSlots + (set * kMost + from) * kSlotBytes; }
  // Where the sums of a lane are in a slot.
  TAGRANK_DEVICE static int in_slot(int pair, int tile, int lane) {
    return ((pair * S::kTiles + tile) * kLanes + lane) * int(sizeof(Float4));
  }

  // Where d_gates of a number are in a buffer, in bytes.
  TAGRANK_DEVICE static int gradient(int index, int lane, int i, int which, int buffer) {
    const int at = backward_row(index, lane, i, which) * kRow + kGates * unit_of(index, lane);
    return kGradients + buffer * kGradientBytes + at * kBytes;
  }

  // Loads U^T in the order of matrix fragments. In float32 each lane loads its numbers one by one, and eight lanes load
  // neighbouring ones. In 16 bit a word holds numbers of two rows of U, because a column of U is not contiguous in global
  // memory. So U passes through shared memory, its rows (elements of the inner dimension) ordered so that a fragment reads
  // neighbouring rows.
  // If U fills the products (`kFull`), its loads need no conditions, and all are on their way at the same time.
  template <bool kAligned, bool kFull>
  TAGRANK_DEVICE void load_weights(Warps<Warp>& warps) {
    if constexpr (kBytes == 4) {
      warps.each([&](int index, Warp& warp) { load_numbers<kFull>(index, warp); });
    } else {
      load_staged<kAligned, kFull>(warps);
    }
  }

  template <bool kFull>
  TAGRANK_DEVICE void load_numbers(int index, Warp& warp) {
    each_lane([&](int lane) {
#pragma unroll
      for (int stripe = 0; stripe < kStripes; ++stripe) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int column = group_of(index, stripe, kStripes, lower) * kGroup + lane / 4;
#pragma unroll
          for (int k = 0; k < kSlices; ++k) {
            // A slice is all gates of four units, and the lane has those of one unit.
            const int u = 4 * k + lane % 4;
#pragma unroll
            for (int gate = 0; gate < kGates; ++gate) {
              const bool there = kFull || (u < slice_.count && column < hidden_);
              const E* from = call_.weight_hh + int64_t{gate_row(gate, slice_.first + u, hidden_)} * hidden_ + column;
              warp.weight[stripe][lower][k][lane].word[gate] = operand<T>(there ? bits_of(*from) : 0);
            }
          }
        }
      }
    });
  }

  template <bool kAligned, bool kFull>
  TAGRANK_DEVICE void load_staged(Warps<Warp>& warps) {
    constexpr int kPieces = S::kPadded / 8;
    const auto load = [&](int piece) {
      const int row = piece / kPieces, inner = staged_inner(row / kSlice, row % kSlice), u = inner / kGates;
      const int64_t at = gate_row(inner % kGates, slice_.first + u, hidden_);
      const E* from = call_.weight_hh + at * hidden_;
      const int first = piece % kPieces * 8;
      Words4 eight = {{0, 0, 0, 0}};
      if constexpr (kFull) {
        eight = *reinterpret_cast<const Words4*>(from + first);
      } else if (u < slice_.count) {
        eight = load_piece<kAligned>(from, first, hidden_);
      }
      return eight;
    };
    uint16_t* const staged = reinterpret_cast<uint16_t*>(block_.shared() + kSlots);
    const auto store = [&](int piece, const Words4& eight) {
      *reinterpret_cast<Words4*>(staged + piece / kPieces * kStagedRow + piece % kPieces * 8) = eight;
    };
    block_.template copy<kInner * kPieces>(load, store);
    block_.sync();
    warps.each([&](int index, Warp& warp) {
#pragma unroll
      for (int stripe = 0; stripe < kStripes; ++stripe) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
#pragma unroll
          for (int k = 0; k < kSlices; ++k) {
            Lanes<const uint16_t*> from;
            each_lane([&](int lane) {
              const int column = group_of(index, stripe, kStripes, lower) * kGroup;
              from[lane] = staged + (k * kSlice + lane) * kStagedRow + column;
            });
            load_transposed(warp.weight[stripe][lower][k], from);
          }
        }
      }
    });
  }

  // All slots are added up, also those of blocks that the cluster does not have.
  TAGRANK_DEVICE void clear_slots() {
    block_.sync();
    block_.share(kSlotsBytes / 16, [&](int i) { block_.write(kSlots + i * 16, Words4{{0, 0, 0, 0}}); });
  }

  TAGRANK_DEVICE void begin(int index, Warp& warp) {
    const int64_t last = call_.steps - 1;
    each_lane([&](int lane) {
      const int u = unit_of(index, lane), r = backward_row(index, lane, 0, 0);
      const int64_t row = first_row_ + r, at = row * hidden_ + slice_.first + u + last * step_;
      const int64_t input = row * kGates * hidden_ + slice_.first + u, gates = input + last * kGates * step_;
      const E* gates_x = call_.gates_x;
      if (gates_x != nullptr) gates_x += call_.constant ? input : gates;
      const E* grad_output = call_.grad_output;
      if (grad_output != nullptr) {
        const int* strides = call_.grad_output_strides;
        grad_output += last * strides[0] + row * strides[1] + (slice_.first + u) * strides[2];
      }
      warp.at[lane] = {call_.gates + gates, gates_x, grad_output, call_.cells + at, call_.d_gates + gates,
                       u < slice_.count ? rows_ - r : 0};
    });
    each_number(warp, [&](int lane, int i, int which, int row, bool there) {
      const int64_t at = place(index, lane, row);
      warp.dc[i][lane].at[which] = there && call_.grad_c_n != nullptr ? to_float(T{}, call_.grad_c_n[at]) : 0.0f;
      warp.c_prev[i][which][lane] = there ? call_.cells[last * step_ + at] : 0.0f;
      warp.d_input[i][which][lane] = Gates{};
    });
    if constexpr (kAhead) load(index, warp, last);
  }
  // The place of a number in an array [B, H].
  TAGRANK_DEVICE int64_t place(int index, int lane, int row) const {
    return (first_row_ + backward_row(index, lane, 0, 0) + row) * hidden_ + slice_.first + unit_of(index, lane);
  }

  // Issues the loads of step t from global memory, and goes on to the places of step t - 1.
  TAGRANK_DEVICE void load(int index, Warp& warp, int64_t t) {
    each_lane([&](int lane) { warp.at[lane].cells -= t > 0 ? step_ : 0; });
    each_number(warp, [&](int lane, int i, int which, int row, bool there) {
      const Places& at = warp.at[lane];
      load_gates(warp.gates[i][which], lane, at.gates + row * kGates * hidden_, hidden_, there);
      if (call_.gates_x != nullptr) {
        load_gates(warp.input[i][which], lane, at.gates_x + row * kGates * hidden_, hidden_, there);
      }
      warp.grad_output[i][which][lane] =
          there && call_.grad_output != nullptr ? at.grad_output[row * int64_t{call_.grad_output_strides[1]}] : E{};
      float c_prev = 0.0f;
      if (t > 0) {
        if (there) c_prev = at.cells[row * hidden_];
      } else if (there && call_.c0 != nullptr) {
        c_prev = to_float(T{}, call_.c0[place(index, lane, row)]);
      }
      warp.c[i][which][lane] = warp.c_prev[i][which][lane];
      warp.c_prev[i][which][lane] = c_prev;
    });
    if (t == 0) return;
    each_lane([&](int lane) {
      Places& at = warp.at[lane];
      at.gates -= kGates * step_;
      if (call_.gates_x != nullptr && !call_.constant) at.gates_x -= kGates * step_;
      if (call_.grad_output != nullptr) at.grad_output -= call_.grad_output_strides[0];
    });
  }

  // All that does not depend on the gradients of the step after.
  TAGRANK_DEVICE void derive(Warp& warp) {
    each_number(warp, [&](int lane, int i, int which, int, bool) {
      Gates gates = widen<T>(warp.gates[i][which], lane);
      if (call_.gates_x != nullptr) gates = activate<kActivations>(gates + widen<T>(warp.input[i][which], lane));
      const float c_prev = warp.c_prev[i][which][lane];
      warp.derivative[i][which][lane] = derive_cell<kActivations>(gates, c_prev, warp.c[i][which][lane]);
      warp.dh[i][which][lane] = to_float(T{}, warp.grad_output[i][which][lane]);
    });
  }

  // Adds up the parts of dh, in a fixed order, and computes d_gates of step t.
  TAGRANK_DEVICE void differentiate(int index, Warp& warp, int now, bool first) {
    each_lane([&](int lane) {
      const int group = index / 2;
#pragma unroll
      for (int i = 0; i < kTilesOfWarp; ++i) {
        const int tile = tile_of(index, i);
        if (tile >= S::kTiles) continue;
        Float2 dh = {};
        if (!first) {
          const int at = slot(now ^ 1, 0) + in_slot(group / 2, tile, lane) + group % 2 * int(sizeof(Float2));
          Float2 part[kMost];
#pragma unroll
          for (int from = 0; from < kMost; ++from) part[from] = block_.template read<Float2>(at + from * kSlotBytes);
#pragma unroll
          for (int apart = 1; apart < kMost; apart *= 2) {
#pragma unroll
            for (int from = 0; from + apart < kMost; from += 2 * apart) {
              part[from].at[0] += part[from + apart].at[0];
              part[from].at[1] += part[from + apart].at[1];
            }
          }
          dh = part[0];
        } else if (call_.grad_h_n != nullptr) {
#pragma unroll
          for (int which = 0; which < 2; ++which) {
            const int row = below(i, which);
            if (row < warp.at[lane].rows) dh.at[which] = to_float(T{}, call_.grad_h_n[place(index, lane, row)]);
          }
        }
#pragma unroll
        for (int which = 0; which < 2; ++which) {
          const float dh_here = dh.at[which] + warp.dh[i][which][lane];
          Gates d = cell_backward(warp.derivative[i][which][lane], dh_here, warp.dc[i][lane].at[which]);
          // A unit that does not exist may be NaN, as in forward.
          if (warp.at[lane].rows <= 0) d = Gates{};
          block_.write(gradient(index, lane, i, which, now), round_gates<T>(d));
          if (call_.d_gates_x != nullptr) warp.d_input[i][which][lane] = warp.d_input[i][which][lane] + d;
        }
      }
    });
  }

  // Multiplies U^T with d_gates. Each group of hidden units of the product goes to the block that has the group.
  TAGRANK_DEVICE void send_parts(int index, Warp& warp, int now) {
#pragma unroll 1
    for (int tile = 0; tile < S::kTiles; ++tile) {
      Lanes<Float4> sum[kStripes][kSums];
#pragma unroll
      for (int stripe = 0; stripe < kStripes; ++stripe) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) each_lane([&](int lane) { sum[stripe][i][lane] = Float4{}; });
      }
#pragma unroll
      for (int k = 0; k < kSlices; ++k) {
        Lanes<Words4> d;
        each_lane([&](int lane) {
          const int at = (tile * kTile + lane / 4) * kRow + k * kSlice + lane % 4 * (kSlice / 4);
          d[lane] = operand<T>(block_.template read<Words4>(kGradients + now * kGradientBytes + at * kBytes));
        });
#pragma unroll
        for (int stripe = 0; stripe < kStripes; ++stripe) {
          multiply<T>(sum[stripe][k % kSums], warp.weight[stripe][0][k], warp.weight[stripe][1][k], d);
        }
      }
#pragma unroll
      for (int stripe = 0; stripe < kStripes; ++stripe) {
        const int group = group_of(index, stripe, kStripes, 0), to = group / kGroups;
        if (to >= block_.blocks()) continue;
        each_lane([&](int lane) {
          Words4 words;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const auto at = [&](int part) { return sum[stripe][part][lane].at[i]; };
            float total = at(0);
            if constexpr (kSums > 1) total += at(1);
            if constexpr (kSums > 2) total += at(2) + at(3);
            memcpy(&words.word[i], &total, sizeof total);
          }
          block_.send(to, slot(now, block_.rank()) + in_slot(group % kGroups / 2, tile, lane), words, now);
        });
      }
    }
  }

  // Stores d_gates of a step, once the other blocks have their parts, and goes on to the place of the step before.
  TAGRANK_DEVICE void store(int index, Warp& warp, int now) {
    each_number(warp, [&](int lane, int i, int which, int row, bool there) {
      if (!there) return;
      const auto d_gates = block_.template read<PackedGates<E>>(gradient(index, lane, i, which, now));
      store_gates(warp.at[lane].d_gates + row * kGates * hidden_, hidden_, d_gates);
    });
    each_lane([&](int lane) { warp.at[lane].d_gates -= kGates * step_; });
  }

  TAGRANK_DEVICE void finish(int index, Warp& warp) {
    each_number(warp, [&](int lane, int i, int which, int row, bool there) {
      if (!there) return;
      const int64_t at = place(index, lane, row);
      if (call_.d_c0 != nullptr) call_.d_c0[at] = to_bits(T{}, warp.dc[i][lane].at[which]);
      if (call_.d_gates_x != nullptr) {
        const int64_t gates = at + (first_row_ + backward_row(index, lane, 0, 0) + row) * (kGates - 1) * hidden_;
        store_gates(call_.d_gates_x + gates, hidden_, round_gates<T>(warp.d_input[i][which][lane]));
      }
    });
  }

  const BackwardCall<E>& call_;
  Block& block_;
  const int hidden_;
  const Slice slice_;
  const int64_t first_row_;
  const int rows_;      // that exist
  const int64_t step_;  // the numbers of one step in `cells`
};

}  // namespace tagrank::cuda
