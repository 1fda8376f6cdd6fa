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
// A kernel with V::kFull counts steps from the last one, so that its sets and buffers change places with those of the others.
//
// d_gates need two buffers, too. A warp that has received all parts of step t + 1 does not know whether other warps of its
// block still multiply d_gates of step t + 1. It knows from the barrier that they do not multiply those of step t + 2.
#pragma once

#include "cell.h"
#include "cluster.h"
#include "gates.h"
#include "memory.h"
#include "plan.h"
#include "recurrence.h"
#include "variant.h"

namespace tagrank::cuda {

// V is a BackwardVariant, see variant.h.
template <typename T, typename S, typename V = BackwardPresent>
class Backward {
  using E = Element<T>;
  static constexpr int kBytes = sizeof(E);
  static constexpr Activations kActivations = activations_for<T>();
  static constexpr int kInner = kGates * S::kUnits;          // the inner dimension: the block's gates
  static constexpr int kRow = padded_row(kInner, kBytes);    // the length of a row of d_gates in shared memory
  static constexpr int kSlice = slice_numbers(kBytes), kSlices = kInner / kSlice;  // of the inner dimension
  static constexpr int kStripes = S::kPadded / kWarps / 16;  // a warp's stripes of 16 hidden units
  static constexpr int kTilesOfWarp = (S::kTiles + 1) / 2;   // every second tile
  static constexpr int kFragments = kStripes * kSlices;      // of U in a warp, two for each of these
  static constexpr int kMost = S::kPadded / S::kUnits;       // at most so many blocks has the cluster
  // Whether a step's inputs are loaded a step before they are used. That takes registers.
  static constexpr bool kAhead = S::kTiles <= 2 || (kBytes == 2 && S::kPadded < 512);
  // The stripes that a warp multiplies at a time, and the independent sums of each. With kFull, two warps of a scheduler with
  // two sums each keep its tensor cores busy.
  static constexpr int kTogether = V::kTogether == kAllStripes || V::kTogether > kStripes ? kStripes : V::kTogether;
  static constexpr bool kTwoSums = V::kFull ? kTogether <= 2 && kFragments <= 16 : kStripes == 2 && kAhead;
  static constexpr int kSums = kStripes == 1 ? 4 : kTwoSums ? 2 : 1;
  // The length of a row of U in shared memory: 16 bytes of each of eight rows are in different banks.
  static constexpr int kStagedRow = S::kPadded + 8;
  // The fragments of U, one for each stripe and slice, for which a thread has registers. The others are in shared memory.
  static constexpr int kHeld = V::kFull && kFragments > 16 ? 16 : kFragments;
  static constexpr int kMostHeld = (kHeld + kStripes - 1) / kStripes;  // of a stripe
  static constexpr int kFragmentBytes = kLanes * 16;  // of half of a fragment
  // U passes through shared memory in turns of so many slices.
  static constexpr int kStaged = kHeld < kFragments ? 1 : kSlices;
  // With kFull, a lane has one hidden unit, and a warp a pair of rows, so that what it loads and stores of a row lies together. The
  // warps w and w + 4 have the same pair of rows. They share its tiles, or the units if there are more than lanes, or else
  // have one of the rows each. Otherwise a warp has eight units, and a lane one of these.
  static constexpr bool kHalfUnits = V::kFull && S::kUnits > kLanes;
  static constexpr bool kSplit = V::kFull && S::kTiles == 1 && !kHalfUnits;
  static constexpr int kCells = kSplit ? 1 : 2;  // of a lane in each tile: its rows
  // Whether c_0 stays in registers, so that the first step's load of c has no condition.
  static constexpr bool kHasC0 = V::kFull && kHeld == kFragments;
  // A lane's share of a slot in each tile and pair of groups: two rows of both groups.
  static constexpr int kShareBytes = V::kHalf ? int(sizeof(Words2)) : int(sizeof(Float4));
  static constexpr int kPairsOfBlock = S::kGroups / 2;
  // With kFull: whether a warp has the stripes of whole blocks, or else one stripe.
  static constexpr bool kWhole = kStripes % kPairsOfBlock == 0;
  static_assert(S::kPadded % (16 * kWarps) == 0, "every warp has the same stripes");
  static_assert(V::kFull || (!V::kHalf && V::kTogether == kAllStripes && kHeld == kFragments), "only kernels for one H differ");
  static_assert(!V::kFull || kBytes == 2, "the others are in 16 bit");
  static_assert(kStripes % kTogether == 0, "every turn has as many stripes");
  static_assert(!V::kFull || kWhole || kStripes == 1, "a warp sends to as many blocks as any other");
  static_assert(kWarps == kTile, "two warps for each pair of rows of a tile");
  static_assert(!kHalfUnits || (S::kTiles == 1 && S::kUnits / 2 <= kLanes), "a lane has one unit");

  // Where the first cell of a lane is in the arrays, and how many batch rows exist from that cell's on (none if the unit does
  // not exist). The first four are at the step that is loaded, d_gates at the step that is computed.
  struct Places {
    const E *gates, *gates_x, *grad_output;
    const float* cells;
    E* d_gates;
    int rows;
  };

  // The number of a fragment; those before kHeld are in registers.
  TAGRANK_EVERYWHERE static constexpr int fragment(int stripe, int k) { return k * kStripes + stripe; }

  struct Warp {
    Lanes<Places> at;
    Lanes<Words4> weight[kStripes][2][kMostHeld];  // of the hidden units g and g + 8 of a stripe
    Lanes<Float2> dc[kTilesOfWarp];                // of the batch rows 2q and 2q + 1
    Lanes<Gates> d_input[kTilesOfWarp][kCells];    // the sum of d_gates over time
    RawGates<E> gates[kTilesOfWarp][kCells], input[kTilesOfWarp][kCells];
    Lanes<E> grad_output[kTilesOfWarp][kCells];
    Lanes<float> c_prev[kTilesOfWarp][kCells], c[kTilesOfWarp][kCells];
    Lanes<Derivative> derivative[kTilesOfWarp][kCells];
    Lanes<float> dh[kTilesOfWarp][kCells];  // what comes from the output
    // With kFull, all in the first set or buffer:
    Lanes<uint32_t> peer[kStripes];  // the block that a stripe goes to
    Lanes<int> to[kStripes];         // and where it goes there
    Lanes<int> slots, own;           // where the lane finds parts of dh, and puts its d_gates
    Lanes<int> from, memory;         // where it reads d_gates, and what registers do not hold of U
    Lanes<float> c0[kTilesOfWarp][kCells];  // if kHasC0
  };

 public:
  // Shared memory, in bytes: the mailboxes, two buffers of d_gates, and two sets of slots. A slot is one block's part of this
  // block's dh, in the order of matrix fragments: for each pair of groups, a tile's sums of each lane. In 16 bit, U passes
  // through the memory of the slots before they are used.
  static constexpr int kGradientBytes = S::kRows * kRow * kBytes;
  static constexpr int kGradients = kMailBytes, kSlots = kGradients + 2 * kGradientBytes;
  static constexpr int kSlotBytes = kPairsOfBlock * S::kTiles * kLanes * kShareBytes;
  static constexpr int kSlotsBytes = 2 * kMost * kSlotBytes;
  static constexpr int kStagedBytes = kBytes == 2 ? kStaged * kSlice * kStagedRow * 2 : 0;
  static constexpr int kWeights = kSlots + (kSlotsBytes > kStagedBytes ? kSlotsBytes : kStagedBytes);
  static constexpr int kShared = kWeights + kWarps * (kFragments - kHeld) * 2 * kFragmentBytes;
  static constexpr int kThreads = 32 * kWarps;

  TAGRANK_DEVICE Backward(const BackwardCall<E>& call, Block& block)
      : call_(call),
        block_(block),
        hidden_(call.hidden),
        slice_(slice_of(block.rank(), call.hidden, S::kUnits)),
        first_row_(static_cast<int64_t>(block.cluster()) * S::kRows),
        rows_(call.batch - first_row_ < S::kRows ? static_cast<int>(call.batch - first_row_) : S::kRows),
        step_(V::kFull ? Block::keep(call.batch * call.hidden) : call.batch * call.hidden) {}

  TAGRANK_DEVICE void run() {
    Warps<Warp> warps(kWarps);
    // With kFull, that of the first set is opened after the first step.
    block_.open_mail(0, (V::kFull ? kMost : block_.blocks()) * kSlotBytes, 2, V::kFull ? 1 : 0);
    if constexpr (V::kFull) {
      load_turns(warps);
    } else {
      by_alignment(call_.weight_hh, hidden_, [&](auto aligned) {
        constexpr bool kAligned = decltype(aligned)::value;
        if (kAligned && hidden_ == S::kPadded) {
          load_weights<kAligned, kAligned>(warps);
        } else {
          load_weights<kAligned, false>(warps);
        }
      });
    }
    if (V::kFull || block_.blocks() < kMost) clear_slots();
    if constexpr (V::kFull) block_.sync();
    warps.each([&](int index, Warp& warp) { begin(index, warp); });
    block_.arrive();
    block_.wait();
    if constexpr (!V::kFull) {
      run_any(warps);
    } else if (call_.gates_x != nullptr) {
      run_full(warps, true);
    } else {
      run_full(warps, false);
    }
    warps.each([&](int index, Warp& warp) { finish(index, warp); });
  }

 private:
  TAGRANK_DEVICE void run_any(Warps<Warp>& warps) {
    for (int64_t t = call_.steps - 1; t >= 0; --t) {
      const int now = static_cast<int>(t) & 1, before = now ^ 1;
      const bool first = t + 1 == call_.steps;
      warps.each([&](int index, Warp& warp) {
        if constexpr (!kAhead) load(index, warp, t, call_.gates_x != nullptr);
        derive(warp, call_.gates_x != nullptr);
        if (kAhead && t > 0) load(index, warp, t - 1, call_.gates_x != nullptr);
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
  }

  // The steps of a kernel whose H is kPadded, counted from the last one. There are no conditions for the first one: what it
  // awaits was full from the start, and its slots have the gradient of h_n. A mailbox is opened after the sends, as in the
  // forward pass. `again` says whether the gates are computed again.
  TAGRANK_DEVICE void run_full(Warps<Warp>& warps, bool again) {
    const int steps = static_cast<int>(call_.steps);
    warps.each([&](int index, Warp& warp) {
      if (kAhead) load(index, warp, steps - 1, again);
    });
    for (int s = 0; s < steps; ++s) {
      const int now = s & 1, next = now ^ 1;
      warps.each([&](int index, Warp& warp) {
        if constexpr (!kAhead) load(index, warp, steps - 1 - s, again);
        derive(warp, again);
        if (kAhead && s + 1 < steps) load(index, warp, steps - 2 - s, again);
        block_.await(now, (s + 1) / 2 - 1);
        differentiate_full(index, warp, now);
      });
      block_.sync();
      warps.each([&](int index, Warp& warp) {
        if (s + 1 < steps) multiply_and_send(warp, now, next);
        if (index == 0) {
          each_lane([&](int lane) { block_.reopen(now, 1, lane); });
        }
        store_full(warp, now);
      });
    }
  }

  // What is known when a kernel with kFull is compiled.
  TAGRANK_DEVICE int hidden() const { return V::kFull ? S::kPadded : hidden_; }
  TAGRANK_DEVICE int units() const { return V::kFull ? S::kUnits : slice_.count; }

  // With kFull: the pair of rows of a warp, and which of the two warps it is that have it.
  TAGRANK_EVERYWHERE static constexpr int pair_of_rows(int index) { return index % 4; }
  TAGRANK_EVERYWHERE static constexpr int twin(int index) { return index / 4; }
  // The tile i of a warp.
  TAGRANK_EVERYWHERE static constexpr int tile(int index, int i) {
    return V::kFull ? 2 * i + (S::kTiles > 1 ? twin(index) : 0) : tile_of(index, i);
  }
  // The batch row of a lane's number.
  TAGRANK_EVERYWHERE static constexpr int row_of(int index, int lane, int i, int which) {
    if (!V::kFull) return backward_row(index, lane, i, which);
    return kTile * tile(index, i) + 2 * pair_of_rows(index) + (kSplit ? twin(index) : which);
  }
  // The hidden unit of a lane's numbers among those of the block, and whether it has one.
  TAGRANK_EVERYWHERE static constexpr int unit(int index, int lane) {
    return V::kFull ? lane + (kHalfUnits ? twin(index) * (S::kUnits / 2) : 0) : unit_of(index, lane);
  }
  TAGRANK_EVERYWHERE static constexpr bool has_unit(int lane) { return !kHalfUnits || lane < S::kUnits / 2; }
  // The row of a number, from that of the lane's first number on: row 2q + which of tile i of the warp.
  TAGRANK_EVERYWHERE static constexpr int below(int i, int which) { return 2 * kTile * i + which; }

  // function(lane, i, which, row, there) for each number that a lane of the warp has. `there` says whether it exists.
  template <typename Function>
  TAGRANK_DEVICE static void each_number(const Warp& warp, const Function& function) {
    each_lane([&](int lane) {
#pragma unroll
      for (int i = 0; i < kTilesOfWarp; ++i) {
#pragma unroll
        for (int which = 0; which < kCells; ++which) {
          function(lane, i, which, below(i, which), below(i, which) < warp.at[lane].rows);
        }
      }
    });
  }
  // Where a slot begins, in bytes.
  TAGRANK_EVERYWHERE static constexpr int slot(int set, int from) { return kSlots + (set * kMost + from) * kSlotBytes; }
  // Where the sums of a lane are in a slot.
  TAGRANK_DEVICE static int in_slot(int pair, int tile, int lane) {
    return ((pair * S::kTiles + tile) * kLanes + lane) * kShareBytes;
  }

  // Where d_gates of a number are in a buffer, in bytes.
  TAGRANK_DEVICE static int gradient(int index, int lane, int i, int which, int buffer) {
    const int at = row_of(index, lane, i, which) * kRow + kGates * unit(index, lane);
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
    stage<kAligned, kFull>(0);
    block_.sync();
    take_staged(warps, 0);
  }
  // The same for U that does not fit in the memory of the slots.
  TAGRANK_DEVICE void load_turns(Warps<Warp>& warps) {
#pragma unroll
    for (int first = 0; first < kSlices; first += kStaged) {
      if (first > 0) block_.sync();
      by_alignment(call_.weight_hh, S::kPadded, [&](auto aligned) { stage<aligned, aligned>(first); });
      block_.sync();
      take_staged(warps, first);
    }
  }

  // Copies the kStaged slices from `first_slice` on to shared memory.
  template <bool kAligned, bool kFull>
  TAGRANK_DEVICE void stage(int first_slice) {
    constexpr int kPieces = S::kPadded / 8;
    const auto load = [&](int piece) {
      const int row = piece / kPieces, inner = staged_inner(first_slice + row / kSlice, row % kSlice), u = inner / kGates;
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
    uint16_t* const staged = staged_memory();
    const auto store = [&](int piece, const Words4& eight) {
      *reinterpret_cast<Words4*>(staged + piece / kPieces * kStagedRow + piece % kPieces * 8) = eight;
    };
    if constexpr (V::kFull && !kAligned) {
      block_.share(kStaged * kSlice * kPieces, [&](int piece) { store(piece, load(piece)); });
    } else {
      // Where registers hold much of U already, they hold fewer pieces at a time.
      constexpr int kTurns = kHeld < kFragments ? 4 : 1, kPiecesOfTurn = kStaged * kSlice * kPieces / kTurns;
#pragma unroll 1
      for (int turn = 0; turn < kTurns; ++turn) {
        const int skipped = turn * kPiecesOfTurn;
        block_.template copy<kPiecesOfTurn, kThreads>([&](int piece) { return load(skipped + piece); },
                                                      [&](int piece, const Words4& w) { store(skipped + piece, w); });
      }
    }
  }
  TAGRANK_DEVICE uint16_t* staged_memory() const { return reinterpret_cast<uint16_t*>(block_.shared() + kSlots); }

  // Gives each warp its fragments of these slices.
  TAGRANK_DEVICE void take_staged(Warps<Warp>& warps, int first_slice) {
    const uint16_t* const staged = staged_memory();
    warps.each([&](int index, Warp& warp) {
#pragma unroll
      for (int stripe = 0; stripe < kStripes; ++stripe) {
        Lanes<Words4> memory[2];
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
#pragma unroll
          for (int k = 0; k < kStaged; ++k) {
            Lanes<const uint16_t*> from;
            each_lane([&](int lane) {
              from[lane] = staged + (k * kSlice + lane) * kStagedRow + column_of(index, stripe, lower);
            });
            if (fragment(stripe, first_slice + k) < kHeld) {
              load_transposed(warp.weight[stripe][lower][first_slice + k], from);
            } else {
              load_transposed(memory[lower], from);
            }
          }
        }
        if (fragment(stripe, first_slice) < kHeld) continue;
        each_lane([&](int lane) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int at = weights(index, lane) + weight(stripe, half, first_slice);
            block_.write(at, left_half(memory[0][lane], memory[1][lane], half));
          }
        });
      }
    });
  }

  // The first of the eight hidden units that a fragment has. With kFull each block begins with its own, so that blocks send
  // to different ones.
  TAGRANK_DEVICE int column_of(int index, int stripe, int lower) const {
    if constexpr (!V::kFull) return group_of(index, stripe, kStripes, lower) * kGroup;
    const int block = (block_.rank() + place_of(index, stripe)) % kMost;
    return block * S::kUnits + (pair_of(index, stripe) * 2 + lower) * kGroup;
  }
  // kFull: how many blocks after this one the block is whose units a stripe has, and which pair of its groups.
  TAGRANK_EVERYWHERE static constexpr int place_of(int index, int stripe) {
    return kWhole ? index * (kStripes / kPairsOfBlock) + stripe / kPairsOfBlock : index * kStripes / kPairsOfBlock;
  }
  TAGRANK_EVERYWHERE static constexpr int pair_of(int index, int stripe) {
    return kWhole ? stripe % kPairsOfBlock : index * kStripes % kPairsOfBlock;
  }
  // kFull: the place of the share of lane (g, q) in a slot, so that what a warp reads at once, the units of a pair of rows, lies
  // in different banks.
  TAGRANK_EVERYWHERE static constexpr int share_of(int g, int q, int pair) { return (q ^ pair % 2) * kGroup + g; }

  // Where a lane's share of U in shared memory begins, and how much farther one of its fragments is.
  TAGRANK_DEVICE static int weights(int index, int lane) {
    return kWeights + index * (kFragments - kHeld) * 2 * kFragmentBytes + lane * 16;
  }
  // It consists of the left operands of two instructions.
  TAGRANK_EVERYWHERE static constexpr int weight(int stripe, int half, int k) {
    return ((fragment(stripe, k) - kHeld) * 2 + half) * kFragmentBytes;
  }

  // All slots are added up, also those of blocks that the cluster does not have.
  TAGRANK_DEVICE void clear_slots() {
    block_.sync();
    block_.share(kSlotsBytes / 16, [&](int i) { block_.write(kSlots + i * 16, Words4{{0, 0, 0, 0}}); });
  }

  TAGRANK_DEVICE void begin(int index, Warp& warp) {
    const int64_t last = call_.steps - 1;
    each_lane([&](int lane) {
      if constexpr (V::kFull) begin_full(index, warp, lane);
      const int u = unit(index, lane), r = row_of(index, lane, 0, 0);
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
                       u < units() && has_unit(lane) ? rows_ - r : 0};
    });
    each_number(warp, [&](int lane, int i, int which, int row, bool there) {
      const int64_t at = place(index, lane, row);
      warp.dc[i][lane].at[which] = there && call_.grad_c_n != nullptr ? to_float(T{}, call_.grad_c_n[at]) : 0.0f;
      warp.c_prev[i][which][lane] = there ? call_.cells[last * step_ + at] : 0.0f;
      warp.d_input[i][which][lane] = Gates{};
      if (kHasC0) warp.c0[i][which][lane] = there && call_.c0 != nullptr ? to_float(T{}, call_.c0[at]) : 0.0f;
      // With kFull, the gradient of h_n is what the last step finds in its slots.
      if (V::kFull && there && call_.grad_h_n != nullptr) {
        unsigned char* const to = block_.shared() + warp.slots[lane] + in_slot(0, 2 * i, 0);
        if constexpr (V::kHalf) {
          reinterpret_cast<E*>(to)[kSplit ? twin(index) : which] = call_.grad_h_n[at];
        } else {
          reinterpret_cast<float*>(to)[kSplit ? 0 : which] = to_float(T{}, call_.grad_h_n[at]);
        }
      }
    });
    if constexpr (kAhead && !V::kFull) load(index, warp, last, call_.gates_x != nullptr);
  }
  // What stays the same in all steps.
  TAGRANK_DEVICE void begin_full(int index, Warp& warp, int lane) {
#pragma unroll
    for (int stripe = 0; stripe < kStripes; ++stripe) {
      warp.peer[stripe][lane] = block_.peer((block_.rank() + place_of(index, stripe)) % kMost);
      const int pair = pair_of(index, stripe);
      warp.to[stripe][lane] = slot(0, block_.rank()) + in_slot(pair, 0, share_of(lane / 4, lane % 4, pair));
    }
    // A share has the sums of two rows for one group after those for the other. In 16 bit they are the halves of a word.
    const int u = unit(index, lane), pair = u / (2 * kGroup), second = u / kGroup % 2;
    const int share = in_slot(pair, tile(index, 0), share_of(u % kGroup, pair_of_rows(index), pair));
    warp.slots[lane] = slot(0, 0) + share + second * (kShareBytes / 2);
    if (kSplit && !V::kHalf) warp.slots[lane] += twin(index) * int(sizeof(float));
    warp.memory[lane] = weights(index, lane);
    warp.own[lane] = gradient(index, lane, 0, 0, 0);
    warp.from[lane] = kGradients + (lane / 4 * kRow + lane % 4 * (kSlice / 4)) * kBytes;
  }
  // The place of a number in an array [B, H].
  TAGRANK_DEVICE int64_t place(int index, int lane, int row) const {
    return (first_row_ + row_of(index, lane, 0, 0) + row) * hidden_ + slice_.first + unit(index, lane);
  }

  // Issues the loads of step t from global memory, and goes on to the places of step t - 1. `again` says whether the gates are
  // computed again.
  TAGRANK_DEVICE void load(int index, Warp& warp, int64_t t, bool again) {
    each_lane([&](int lane) { warp.at[lane].cells -= t > 0 ? step_ : 0; });
    each_number(warp, [&](int lane, int i, int which, int row, bool there) {
      const Places& at = warp.at[lane];
      load_gates(warp.gates[i][which], lane, at.gates + row * kGates * hidden(), hidden(), there);
      if (again) {
        load_gates(warp.input[i][which], lane, at.gates_x + row * kGates * hidden(), hidden(), there);
      }
      warp.grad_output[i][which][lane] =
          there && call_.grad_output != nullptr ? at.grad_output[row * int64_t{call_.grad_output_strides[1]}] : E{};
      float c_prev = kHasC0 ? warp.c0[i][which][lane] : 0.0f;
      if (kHasC0) {
        if (t > 0 && there) c_prev = at.cells[row * hidden()];
      } else if (t > 0) {
        if (there) c_prev = at.cells[row * hidden()];
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
      if (again && !call_.constant) at.gates_x -= kGates * step_;
      if (call_.grad_output != nullptr) at.grad_output -= call_.grad_output_strides[0];
    });
  }

  // All that does not depend on the gradients of the step after.
  TAGRANK_DEVICE void derive(Warp& warp, bool again) {
    each_number(warp, [&](int lane, int i, int which, int, bool) {
      Gates gates = widen<T>(warp.gates[i][which], lane);
      if (again) gates = activate<kActivations>(gates + widen<T>(warp.input[i][which], lane));
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

  // The same without conditions.
  TAGRANK_DEVICE void differentiate_full(int index, Warp& warp, int now) {
    each_lane([&](int lane) {
      if (!has_unit(lane)) return;
#pragma unroll
      for (int i = 0; i < kTilesOfWarp; ++i) {
        float dh[kCells];
        add_up(dh, warp.slots[lane] + slot_set(now) + in_slot(0, 2 * i, 0), twin(index));
#pragma unroll
        for (int which = 0; which < kCells; ++which) {
          float& dc = warp.dc[i][lane].at[which];
          const Gates d = cell_backward(warp.derivative[i][which][lane], dh[which] + warp.dh[i][which][lane], dc);
          block_.write(own_gradient(warp, lane, i, which, now), round_gates<T>(d));
          warp.d_input[i][which][lane] = warp.d_input[i][which][lane] + d;
        }
      }
    });
  }

  // Where d_gates of a number are, as gradient() says.
  TAGRANK_DEVICE static int own_gradient(const Warp& warp, int lane, int i, int which, int buffer) {
    return warp.own[lane] + buffer * kGradientBytes + below(i, which) * kRow * kBytes;
  }

  // The sums of a lane's share of all slots, in a fixed order. The first share is at `at`. With kSplit, `odd` says which row of
  // the pair is the lane's.
  TAGRANK_DEVICE void add_up(float (&sum)[kCells], int at, [[maybe_unused]] int odd) const {
    using Share = std::conditional_t<V::kHalf || kSplit, uint32_t, Float2>;
    Share share[kMost];
#pragma unroll
    for (int from = 0; from < kMost; ++from) share[from] = block_.template read<Share>(at + from * kSlotBytes);
#pragma unroll
    for (int which = 0; which < kCells; ++which) {
      float part[kMost];
#pragma unroll
      for (int from = 0; from < kMost; ++from) {
        if constexpr (V::kHalf) {
          part[from] = half_to_float(T{}, share[from], kSplit ? odd : which);
        } else if constexpr (kSplit) {
          part[from] = float_of(share[from]);
        } else {
          part[from] = share[from].at[which];
        }
      }
#pragma unroll
      for (int apart = 1; apart < kMost; apart *= 2) {
#pragma unroll
        for (int from = 0; from + apart < kMost; from += 2 * apart) part[from] += part[from + apart];
      }
      sum[which] = part[0];
    }
  }

  // Multiplies U^T with d_gates, kTogether stripes at a time. These are sent while the next ones are multiplied.
  TAGRANK_DEVICE void multiply_and_send(const Warp& warp, int now, int next) {
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      Lanes<Words4> d[kSlices];
#pragma unroll
      for (int k = 0; k < kSlices; ++k) {
        each_lane([&](int lane) {
          const int at = now * kGradientBytes + (tile * kTile * kRow + k * kSlice) * kBytes;
          d[k][lane] = block_.template read<Words4>(warp.from[lane] + at);
        });
      }
      Lanes<Float4> sum[2][kTogether][kSums];
#pragma unroll
      for (int first = 0; first < kStripes; first += kTogether) {
        auto &here = sum[first / kTogether % 2], &before = sum[(first / kTogether + 1) % 2];
        multiply_stripes(warp, first, d, here);
        if (first > 0) send_stripes(warp, first - kTogether, tile, next, before);
        if (first + kTogether < kStripes) {
          keep_order(warp.peer[first][0] + warp.to[first][0]);
        } else {
          send_stripes(warp, first, tile, next, here);
        }
      }
    }
  }

  TAGRANK_DEVICE void multiply_stripes(const Warp& warp, int first, const Lanes<Words4> (&d)[kSlices],
                                       Lanes<Float4> (&sum)[kTogether][kSums]) const {
#pragma unroll
    for (int stripe = 0; stripe < kTogether; ++stripe) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) each_lane([&](int lane) { sum[stripe][i][lane] = Float4{}; });
    }
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
#pragma unroll
      for (int stripe = 0; stripe < kTogether; ++stripe) {
        auto& here = sum[stripe][k % kSums];
        if (fragment(first + stripe, k) < kHeld) {
          multiply<T>(here, warp.weight[first + stripe][0][k], warp.weight[first + stripe][1][k], d[k]);
        } else {
          Lanes<Words4> memory[2];
          each_lane([&](int lane) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              memory[half][lane] = block_.template read<Words4>(warp.memory[lane] + weight(first + stripe, half, k));
            }
          });
          multiply_halves<T>(here, memory, d[k]);
        }
      }
    }
  }

  // Sends stripes to the slots of the blocks that have their hidden units.
  TAGRANK_DEVICE void send_stripes(const Warp& warp, int first, int tile, int next,
                                   const Lanes<Float4> (&sum)[kTogether][kSums]) const {
#pragma unroll
    for (int stripe = 0; stripe < kTogether; ++stripe) {
      each_lane([&](int lane) {
        float total[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const auto at = [&](int part) { return sum[stripe][part][lane].at[i]; };
          total[i] = at(0);
          if constexpr (kSums > 1) total[i] += at(1);
          if constexpr (kSums > 2) total[i] += at(2) + at(3);
        }
        const int to = warp.to[first + stripe][lane] + slot_set(next) + tile * kLanes * kShareBytes;
        const uint32_t peer = warp.peer[first + stripe][lane];
        if constexpr (V::kHalf) {
          block_.send_to(peer, to, Words2{{halves<T>(total[0], total[1]), halves<T>(total[2], total[3])}}, next);
        } else {
          const Words4 words = {{bits_of(total[0]), bits_of(total[1]), bits_of(total[2]), bits_of(total[3])}};
          block_.send_to(peer, to, words, next);
        }
      });
    }
  }
  // Where a set of slots begins, from the first one on, in bytes.
  TAGRANK_EVERYWHERE static constexpr int slot_set(int set) { return set * kMost * kSlotBytes; }

  TAGRANK_DEVICE void store_full(Warp& warp, int now) {
    each_number(warp, [&](int lane, int i, int which, int row, bool there) {
      if (!there) return;
      const auto d_gates = block_.template read<PackedGates<E>>(own_gradient(warp, lane, i, which, now));
      store_gates(warp.at[lane].d_gates + row * kGates * hidden(), hidden(), d_gates);
    });
    each_lane([&](int lane) { warp.at[lane].d_gates -= kGates * step_; });
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
        const int64_t gates = at + (first_row_ + row_of(index, lane, 0, 0) + row) * (kGates - 1) * hidden_;
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
