// The forward pass of one cluster: kRows batch rows, all hidden units, all steps.
//
// A block computes the four gates of its own hidden units. It keeps the rows of U for them in registers, as the left operand
// of U h^T. h of all hidden units is in shared memory, in two buffers that take turns. Each warp sends its share of h from its
// registers to all blocks, its own too, as soon as it has it. The mailboxes of a block, one for each buffer, count the bytes. A
// warp goes on as soon as its block has all of h.
//
// One wait a step is enough. A warp that has received all of h_t overwrites h_{t-1} with h_{t+1}. That it has all of h_t means
// that every warp of every block has sent its share of h_t. A warp does that only after it has read all that it needs of
// h_{t-1}. So nobody reads h_{t-1} any more. And no block ends while others write to it: a block needs every h but the last,
// and the last one is not sent.
//
// A step is a chain of latencies. docs/cluster.md has its links, and benchmarks/chain.py computes them from the machine code.
#pragma once

#include "cell.h"
#include "cluster.h"
#include "gates.h"
#include "memory.h"
#include "plan.h"
#include "recurrence.h"
#include "variant.h"

namespace tagrank::cuda {

// V is a Variant, see variant.h.
template <typename T, typename S, typename V = Present>
class Forward {
  using E = Element<T>;
  static constexpr int kBytes = sizeof(E);
  using P = ForwardLayout<S, kBytes, V::kQuads>;
  static constexpr int kMost = S::kPadded / S::kUnits;  // at most so many blocks has the cluster
  using H = States<S, kBytes, V::kMatrices>;            // where h is in shared memory
  static constexpr int kFragmentBytes = kLanes * 16;    // of half of a fragment of U
  static constexpr bool kAlone = kMost == 1;            // the cluster is one block
  // The tiles that a warp multiplies at a time, and the number of independent sums of each gate in each tile. One sum would
  // leave the tensor cores idle: an instruction waits for the previous one of its sum. If U is in shared memory, there are
  // more warps instead, and no registers for more sums.
  static constexpr int kChunk = S::kTiles == 2 || (S::kTiles == 4 && (kBytes == 2 || P::kPairs)) ? 2 : 1;
  static constexpr int kSlices = P::kSlices;
  static constexpr Activations kActivations = activations_for<T>();
  static constexpr int kSums = P::kInMemory > 0 ? 1 : S::kTiles == 1 && !P::kPairs && !V::kFull ? 4 : 2;
  static constexpr int kFragments = P::kFragments;  // of U in a slice: i and f, g and o
  // Whether gates_x is loaded a step before it is used. That takes twice the registers. With kQuads, the product of the same
  // step takes longer than the loads.
  static constexpr bool kAhead =
      P::kCells * S::kTiles <= (V::kFull && S::kTiles <= 2 ? 4 : 2) && P::kThreads <= 256 && !P::kQuads;
  // Whether the addend stays in registers. Otherwise it is loaded when it is used, from the first-level cache.
  static constexpr bool kHeld = S::kTiles <= 2;
  static constexpr int kInputs = kAhead ? S::kTiles : kChunk;  // tiles whose gates_x a warp holds
  static_assert(kSums <= kSlices, "every sum has a slice");
  // Whether gates_x is where the sums begin. The two warps of a pair add it when they have exchanged sums.
  static constexpr bool kBegun = V::kFull && kAhead && !P::kPairs;
  // Whether the addend stays in float32, ready to be added. That takes twice the registers.
  static constexpr bool kReady = V::kFull && kHeld && P::kCells * S::kTiles <= 2 && P::kThreads <= 256 && !P::kQuads;
  // Whether what is passed to a sigmoid is halved before, as 0.5 tanh(x / 2) + 0.5 needs it.
  static constexpr bool kHalved = V::kFull && kActivations == Activations::kApproximate;
  // Lanes that have the same piece of h send it to different blocks.
  static constexpr int kSame = kBytes == 4 ? 1 : P::kPairs ? 2 : V::kShort ? 1 : 4;
  static constexpr int kSends = (kMost + kSame - 1) / kSame;  // of a lane and piece
  // With several mailboxes, h of the blocks is in the order in which it comes: one's own, that of the block before, ...
  static constexpr int kBoxes = V::kBoxes == kEachBlock ? kMost : V::kBoxes;
  static constexpr bool kRotated = kBoxes > 1;
  static constexpr int kBlocksOfBox = kMost / kBoxes, kPartBytes = S::kRows * S::kUnits * kBytes;
  static constexpr int kPiecesOfBlock = S::kUnits * kBytes / 16, kPiecesOfBox = kPiecesOfBlock * kBlocksOfBox;
  static_assert(V::kFull || (!V::kMatrices && !V::kShort && kBoxes == 1), "only kernels for one H have other orders");
  static_assert(V::kFull || P::kInMemory == 0, "only kernels for one H have U in shared memory");
  static_assert(!P::kQuads || (V::kFull && V::kMatrices && kMost % 4 == 0), "a third group goes to four blocks at once");
  static_assert(kMost % kBoxes == 0, "every mailbox counts as many parts");
  static_assert(!kRotated || kPiecesOfBox % (4 * P::kSliceStep) == 0, "one mailbox counts a slice");

  // Where the first cell of a lane is in the arrays at one step, and how many batch rows exist from that cell's on (none if the
  // unit does not exist). With kQuads: how many of the lane's cells exist and are its own. Running pointers cost two
  // instructions a step each.
  struct Places {
    const E *input, *addend;
    E *output, *gates;
    float* cells;
    int rows;
  };

  struct Warp {
    Lanes<Places> at;
    Lanes<int> from;  // where the lane's first h_{t-1} is in shared memory, in bytes
    Lanes<uint32_t> peer[kSends];  // with kFull: the blocks to which the lane sends
    Lanes<int> to;                 // and where its first piece goes, in the first buffer
    Lanes<int> second, second_to;  // with kQuads: how many units cell 1 is from cell 0, and where its h goes
    Lanes<Words4> weight[P::kHeld][2];
    Lanes<float> c[S::kTiles][P::kCells];
    Lanes<PackedGates<E>> gates[S::kTiles][P::kCells];  // i, f, g, o, to be stored once the other blocks have h
    Lanes<E> h[S::kTiles][P::kCells];
    Lanes<Float4> sum[kFragments][kChunk];
    // gates_x as it was loaded: of the next step if kAhead, else of the tiles that are multiplied.
    RawGates<E> loaded[kInputs][P::kCells];
    Lanes<Gates> input[kInputs][P::kCells];              // if kAhead: gates_x of this step and the addend
    Lanes<PackedGates<E>> addend[S::kTiles][P::kCells];  // if kHeld
    Lanes<Gates> bias[S::kTiles][P::kCells];             // the same if kReady
  };

  // kQuads: what a warp has summed up for the third group, for the even rows or for the odd ones.
  static constexpr int kThirdBytes = kLanes * int(sizeof(Float2));

 public:
  // Shared memory, in bytes: the two buffers of h, the mailboxes, the sums that the two warps of a pair send each other, those
  // of third groups, and what registers do not hold of U.
  static constexpr int kStateBytes = H::kBytes;
  static constexpr int kMail = 2 * kStateBytes, kPartial = kMail + kMailBytes * kBoxes;
  static constexpr int kThird = kPartial + (P::kPairs ? P::kWarps * S::kTiles * kLanes * int(sizeof(Gates)) : 0);
  static constexpr int kWeights = kThird + (P::kQuads ? P::kWarps * 2 * kThirdBytes : 0);
  static constexpr int kShared = kWeights + P::kWarps * P::kInMemory * 2 * kFragmentBytes;

  TAGRANK_DEVICE Forward(const ForwardCall<E>& call, Block& block)
      : call_(call),
        block_(block),
        hidden_(call.hidden),
        slice_(slice_of(block.rank(), call.hidden, S::kUnits)),
        first_row_(static_cast<int64_t>(block.cluster()) * S::kRows),
        rows_(call.batch - first_row_ < S::kRows ? static_cast<int>(call.batch - first_row_) : S::kRows),
        step_(V::kFull ? Block::keep(call.batch * call.hidden) : call.batch * call.hidden) {}

  TAGRANK_DEVICE void run() {
    Warps<Warp> warps(P::kWarps);
    if constexpr (V::kFull) {
      // Those of the first buffer are opened after the first step.
      block_.open_mail(kMail, kBlocksOfBox * kPartBytes, 2 * kBoxes, kBoxes);
    } else {
      block_.open_mail(kMail, block_.blocks() * S::kRows * kUnits * kBytes);
    }
    fill_states();
    block_.arrive();
    warps.each([&](int index, Warp& warp) { begin(index, warp); });
    block_.wait();
    if constexpr (V::kFull) {
      run_full(warps);
    } else {
      run_any(warps);
    }
    warps.each([&](int index, Warp& warp) { finish(index, warp); });
  }

 private:
  TAGRANK_DEVICE void run_any(Warps<Warp>& warps) {
    for (int64_t t = 0; t < call_.steps; ++t) {
      const int now = static_cast<int>(t) & 1, next = now ^ 1;
      warps.each([&](int, Warp& warp) {
        prepare_input(warp, t);
        if (t > 0) block_.await(now, static_cast<uint32_t>(t - 1) / 2);
      });
#pragma unroll
      for (int tile = 0; tile < S::kTiles; tile += kChunk) {
        warps.each([&]([[maybe_unused]] int index, Warp& warp) {
          if (!kAhead && tile > 0) load_input(warp, tile);
          if (t > 0 || call_.h0 != nullptr) {
            product(index, warp, tile, [](int) {});
          } else {
            clear(warp);
          }
          if constexpr (P::kPairs) send_half(index, warp, tile);
        });
        if constexpr (P::kPairs) block_.template sync_among<P::kQuads ? 4 : 2>();
        warps.each([&](int index, Warp& warp) {
          update(index, warp, tile);
          if (tile == 0 && index == 0 && t > 0) block_.reopen(now);
          if (t + 1 < call_.steps) send_state(index, warp, next, tile);
        });
      }
      warps.each([&](int, Warp& warp) {
        // Known before the wait, not only after it.
        each_lane([&](int lane) { warp.from[lane] += next ? kStateBytes : -kStateBytes; });
        store(warp);
      });
    }
  }

  // The steps of a kernel whose H is kPadded. A mailbox is opened after the sends, which is early enough: until then it
  // cannot become full, and it counts what comes. What is awaited in the first step was full from the start.
  TAGRANK_DEVICE void run_full(Warps<Warp>& warps) {
    const int steps = static_cast<int>(call_.steps);
    for (int t = 0; t < steps; ++t) {
      const int now = t & 1, next = now ^ 1;
      if constexpr (kAlone) {
        if (t > 0) block_.sync();
      }
      warps.each([&](int, Warp& warp) { prepare_input(warp, t); });
#pragma unroll
      for (int tile = 0; tile < S::kTiles; tile += kChunk) {
        warps.each([&]([[maybe_unused]] int index, Warp& warp) {
          if (!kAhead && tile > 0) load_input(warp, tile);
          product(index, warp, tile, [&](int k) {
            if (!kAlone && tile == 0 && begins_box(k)) block_.await(now * kBoxes + box_of(index, k), (t + 1) / 2 - 1);
          });
          if constexpr (P::kPairs) send_half(index, warp, tile);
        });
        if constexpr (P::kPairs) block_.template sync_among<P::kQuads ? 4 : 2>();
        warps.each([&](int index, Warp& warp) {
          update(index, warp, tile);
          if (t + 1 < steps) send_state(index, warp, next, tile);
        });
      }
      warps.each([&](int index, Warp& warp) {
        if (!kAlone && index == 0) {
          each_lane([&](int lane) { block_.reopen(now * kBoxes, kBoxes, lane); });
        }
        each_lane([&](int lane) { warp.from[lane] += next ? kStateBytes : -kStateBytes; });
        store(warp);
      });
    }
  }
  // The mailbox of a buffer that counts what a warp multiplies in slice k, and whether it is another one than that of the
  // slice before.
  TAGRANK_EVERYWHERE static constexpr int box_of(int index, int k) {
    return kBoxes == 1 ? 0 : P::inner(index, 0, k) * kBytes / 16 / kPiecesOfBox;
  }
  TAGRANK_EVERYWHERE static constexpr bool begins_box(int k) { return k == 0 || 4 * P::kSliceStep * k % kPiecesOfBox == 0; }

  // What is known when a kernel with kFull is compiled.
  TAGRANK_DEVICE int hidden() const { return V::kFull ? S::kPadded : hidden_; }
  TAGRANK_DEVICE int units() const { return V::kFull ? S::kUnits : slice_.count; }
  // The length of a row of U. As a constant it leaves registers to those kernels that have the fewest to spare.
  TAGRANK_DEVICE int row_of_weights() const { return P::kInMemory > 0 ? S::kPadded : hidden_; }

  // The row of a cell, from that of the lane's first cell on; its unit, from that one's on; and whether it exists.
  TAGRANK_EVERYWHERE static constexpr int below(int tile, int i) { return kTile * tile + (P::kQuads ? 0 : i); }
  TAGRANK_DEVICE static int beside(const Warp& warp, int lane, int i) { return P::kQuads && i > 0 ? warp.second[lane] : 0; }
  TAGRANK_DEVICE static bool exists(const Places& at, int tile, int i) {
    return (P::kQuads ? i : below(tile, i)) < at.rows;
  }

  // Writes h0 (zeros if there is none) into the first buffer. The rest of both buffers becomes zero, because the products run
  // over kPadded hidden units.
  TAGRANK_DEVICE void fill_states() {
    block_.share(S::kRows * H::kPieces, [&](int piece) {
      const int row = piece / H::kPieces, to = piece % H::kPieces * kPiece<E>, first = kRotated ? source(to) : to;
      Words4 h = {{0, 0, 0, 0}};
      block_.write(kStateBytes + H::at(row, to), h);
      if (call_.h0 != nullptr && row < rows_) {
        by_alignment(call_.h0, hidden_, [&](auto aligned) {
          h = load_piece<aligned>(call_.h0 + (first_row_ + row) * hidden_, first, hidden_);
        });
      }
      block_.write(H::at(row, to), operand<T>(h));
    });
  }
  // kRotated: which numbers of a row of h (and of U) begin at a place in this block's order. Block `rank - a` has place a.
  TAGRANK_DEVICE int source(int number) const {
    const int block = (block_.rank() - number / S::kUnits + kMost) % kMost;
    return block * S::kUnits + number % S::kUnits;
  }

  TAGRANK_DEVICE void begin(int index, Warp& warp) {
    by_alignment(call_.weight_hh, hidden_, [&](auto aligned) {
      constexpr bool kAligned = decltype(aligned)::value;
      if constexpr (P::kInMemory > 0) write_weights<kAligned>(index);
      if (kAligned && row_of_weights() == S::kPadded) {
        load_weights<kAligned, kAligned>(index, warp);
      } else {
        load_weights<kAligned, false>(index, warp);
      }
    });
    each_lane([&](int lane) {
      warp.from[lane] = H::at(lane / 4, P::inner(index, lane, 0));
      if constexpr (V::kFull) {
        const int member = member_of(lane);
#pragma unroll
        for (int i = 0; i < kSends; ++i) warp.peer[i][lane] = block_.peer((block_.rank() + i * kSame + member) % kMost);
        // In a rotated order, a block finds this block's part where its distance says.
        const int place = (kRotated ? member : block_.rank()) * S::kUnits;
        warp.to[lane] = H::at(first_row(index, lane, 0), place + first_unit(index, lane));
      }
      if constexpr (P::kQuads) {
        const bool owns = P::owns(index, lane);
        const int away = member_of(lane) + (owns ? 0 : kSame), place = (kRotated ? away : block_.rank()) * S::kUnits;
        const int unit = P::unit(index, lane, 1), row = P::row(index, owns ? lane : lane ^ 2, 0, 1);
        warp.second[lane] = unit - P::unit(index, lane);
        warp.second_to[lane] = H::at(row, place + unit - member_of(lane));
      }
      const int u = P::unit(index, lane), r = P::row(index, lane, 0, 0);
      const int64_t row = first_row_ + r, at = row * hidden_ + slice_.first + u;
      const int64_t at_gates = row * kGates * hidden_ + slice_.first + u;
      warp.at[lane] = {call_.gates_x + at_gates,
                       call_.addend == nullptr ? nullptr : call_.addend + row * call_.addend_stride + slice_.first + u,
                       call_.output + at,
                       call_.gates == nullptr ? nullptr : call_.gates + at_gates,
                       call_.cells == nullptr ? nullptr : call_.cells + at, u < units() ? rows_ - r : 0};
      if constexpr (P::kQuads) warp.at[lane].rows = r < rows_ ? 1 + P::owns(index, lane) : 0;
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < P::kCells; ++i) {
          const bool there = call_.c0 != nullptr && exists(warp.at[lane], tile, i);
          const auto c0 = [&] { return call_.c0[at + below(tile, i) * hidden_ + beside(warp, lane, i)]; };
          warp.c[tile][i][lane] = there ? to_float(T{}, c0()) : 0.0f;
          if constexpr (kHeld) {
            RawGates<E> raw;
            load_addend(raw, warp, lane, tile, i);
            if constexpr (kReady) {
              warp.bias[tile][i][lane] = halved(widen<T>(raw, lane));
            } else {
              warp.addend[tile][i][lane] = pack(raw, lane);
            }
          }
        }
      }
    });
    if (kAhead) load_input(warp, 0);
  }

  // If U fills the products (`kFull`), its loads need no conditions, and all are on their way at the same time. With a
  // condition at each, the compiler lets most of them wait for the one before.
  template <bool kAligned, bool kFull>
  TAGRANK_DEVICE void load_weights(int index, Warp& warp) {
    each_lane([&](int lane) {
      const int own = P::unit(index, lane);
#pragma unroll
      for (int fragment = 0; fragment < kFragments; ++fragment) {
        const int u = fragment < 2 ? own : P::unit(index, lane, 1);
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int gate = P::gate(index, fragment, lower);
          const int64_t at = gate_row(gate, slice_.first + u, row_of_weights());
          const E* row = call_.weight_hh + at * row_of_weights();
#pragma unroll
          for (int k = 0; k < kSlices; ++k) {
            const int n = k * kFragments + fragment;
            if (P::in_memory(n)) continue;
            Words4 piece = {{0, 0, 0, 0}};
            const int first = kRotated ? source(P::inner(index, lane, k)) : P::inner(index, lane, k);
            if constexpr (kFull) {
              piece = *reinterpret_cast<const Words4*>(row + first);
            } else if (u < (P::kInMemory > 0 ? S::kUnits : slice_.count)) {
              piece = load_piece<kAligned>(row, first, row_of_weights());
            }
            // The gate g is a hyperbolic tangent.
            if constexpr (kHalved) piece = gate == 2 ? piece : half_of<T>(piece);
            warp.weight[n - P::memory_before(n)][lower][lane] = operand<T>(piece);
          }
        }
      }
    });
  }

  // Where a lane's share of a fragment of U is that is in shared memory: what an instruction multiplies lies together, so that
  // no register has to be moved.
  TAGRANK_DEVICE static int weight(int index, int number, int half, int lane) {
    return kWeights + ((index * P::kInMemory + number) * 2 + half) * kFragmentBytes + lane * 16;
  }
  // One loop for all, so that these take few registers.
  template <bool kAligned>
  TAGRANK_DEVICE void write_weights(int index) const {
    each_lane([&](int lane) {
#pragma unroll 1
      for (int number = 0; number < P::kInMemory; ++number) {
        const int n = P::from_memory(number), k = n / kFragments, fragment = n % kFragments;
        const int u = P::unit(index, lane, fragment / 2), inner = P::inner(index, lane, k);
        Words4 piece[2];
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int gate = P::gate(index, fragment, lower);
          const E* row = call_.weight_hh + int64_t{gate_row(gate, slice_.first + u, hidden())} * hidden();
          piece[lower] = load_piece<kAligned>(row, kRotated ? source(inner) : inner, hidden());
          if constexpr (kHalved) piece[lower] = gate == 2 ? piece[lower] : half_of<T>(piece[lower]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          block_.write(weight(index, number, half, lane), operand<T>(left_half(piece[0], piece[1], half)));
        }
      }
    });
  }
  TAGRANK_DEVICE void fetch(int index, int number, Lanes<Words4> (&halves)[2]) const {
    each_lane([&](int lane) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        halves[half][lane] = block_.template read<Words4>(weight(index, number, half, lane));
      }
    });
  }

  // Issues the loads of gates_x. They are on their way while the warp waits for the other blocks or multiplies.
  TAGRANK_DEVICE void load_input(Warp& warp, int first_tile) {
    each_lane([&](int lane) {
      const Places& at = warp.at[lane];
#pragma unroll
      for (int chunk = 0; chunk < kInputs; ++chunk) {
#pragma unroll
        for (int i = 0; i < P::kCells; ++i) {
          const int tile = first_tile + chunk;
          const E* from = at.input + below(tile, i) * kGates * hidden() + beside(warp, lane, i);
          load_gates(warp.loaded[chunk][i], lane, from, hidden(), exists(at, tile, i));
        }
      }
    });
  }
  // The addend of one cell.
  TAGRANK_DEVICE void load_addend(RawGates<E>& addend, const Warp& warp, int lane, int tile, int i) const {
    const Places& at = warp.at[lane];
    const E* from = at.addend + below(tile, i) * call_.addend_stride + beside(warp, lane, i);
    load_gates(addend, lane, from, hidden(), call_.addend != nullptr && exists(at, tile, i));
  }

  // gates_x, as it was loaded, and the addend: what an activation is computed from.
  TAGRANK_DEVICE Gates input_of(const Warp& warp, int tile, int chunk, int i, int lane) const {
    const Gates gates_x = widen<T>(warp.loaded[chunk][i], lane);
    if constexpr (kReady) {
      return halved(gates_x) + warp.bias[tile][i][lane];
    } else if constexpr (kHeld) {
      return halved(gates_x + widen<T>(warp.addend[tile][i][lane]));
    } else {
      RawGates<E> raw;
      load_addend(raw, warp, lane, tile, i);
      return halved(gates_x + widen<T>(raw, lane));
    }
  }

  // Half of what is passed to a sigmoid.
  TAGRANK_EVERYWHERE static Gates halved(const Gates& pre) {
    return kHalved ? Gates{0.5f * pre.i, 0.5f * pre.f, pre.g, 0.5f * pre.o} : pre;
  }

  // Before the wait for h: takes over the gates_x that were loaded a step ago, and issues the loads for the next step. If
  // registers do not suffice for that, it issues the loads of the first tiles of this step.
  TAGRANK_DEVICE void prepare_input(Warp& warp, int64_t t) {
    if constexpr (kAhead) {
      if (call_.constant && t > 0) return;
      each_lane([&](int lane) {
#pragma unroll
        for (int tile = 0; tile < kInputs; ++tile) {
#pragma unroll
          for (int i = 0; i < P::kCells; ++i) warp.input[tile][i][lane] = input_of(warp, tile, tile, i, lane);
        }
      });
      if (call_.constant || t + 1 == call_.steps) return;
      next_input(warp);
    } else {
      if (!call_.constant && t > 0) next_input(warp);
    }
    load_input(warp, 0);
  }

  TAGRANK_DEVICE void next_input(Warp& warp) {
    each_lane([&](int lane) { warp.at[lane].input += kGates * step_; });
  }

  TAGRANK_DEVICE void clear(Warp& warp) {
    each_lane([&](int lane) {
#pragma unroll
      for (int fragment = 0; fragment < kFragments; ++fragment) {
#pragma unroll
        for (int chunk = 0; chunk < kChunk; ++chunk) warp.sum[fragment][chunk][lane] = Float4{};
      }
    });
  }

  // before(k) is called before the slice k of h is read.
  template <typename Before>
  TAGRANK_DEVICE void product([[maybe_unused]] int index, Warp& warp, int first_tile, const Before& before) {
    Lanes<Float4> part[kFragments][kChunk][kSums];
#pragma unroll
    for (int fragment = 0; fragment < kFragments; ++fragment) {
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) each_lane([&](int lane) { part[fragment][chunk][i][lane] = Float4{}; });
        if constexpr (kBegun) {
          each_lane([&](int lane) { part[fragment][chunk][0][lane] = start(warp, first_tile + chunk, fragment, lane); });
        }
      }
    }
    // What is in shared memory of U: the first fragments are fetched before h is there.
    Lanes<Words4> fetched[P::kInMemory > 0 ? P::kInMemory : 1][2];
#pragma unroll
    for (int n = 0; n < P::kInMemory && n < P::kFetched; ++n) fetch(index, n, fetched[n]);
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
      before(k);
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        Lanes<Words4> h;
        each_lane([&](int lane) {
          const int below = H::kTileBytes * (first_tile + chunk) + H::kSliceBytes * P::kSliceStep * k;
          h[lane] = block_.template read<Words4>(warp.from[lane] + below);
        });
#pragma unroll
        for (int fragment = 0; fragment < kFragments; ++fragment) {
          auto& sum = part[fragment][chunk][k % kSums];
          const int n = k * kFragments + fragment, memory = P::memory_before(n);
          if (!P::in_memory(n)) {
            multiply<T>(sum, warp.weight[n - memory][0], warp.weight[n - memory][1], h);
            continue;
          }
          if constexpr (P::kInMemory > 0) multiply_halves<T>(sum, fetched[memory], h);
          const int next = memory + P::kFetched;
          if (chunk + 1 == kChunk && next < P::kInMemory) fetch(index, next, fetched[next]);
        }
      }
    }
    each_lane([&](int lane) {
#pragma unroll
      for (int fragment = 0; fragment < kFragments; ++fragment) {
#pragma unroll
        for (int chunk = 0; chunk < kChunk; ++chunk) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const auto at = [&](int sum) { return part[fragment][chunk][sum][lane].at[i]; };
            float total = at(0);
            if constexpr (kSums > 1) total += at(1);
            if constexpr (kSums == 4) total += at(2) + at(3);
            warp.sum[fragment][chunk][lane].at[i] = total;
          }
        }
      }
    });
  }

  // gates_x of a lane's cells, in the order of the sums: i and f, or g and o, of row 2q and of row 2q + 1.
  TAGRANK_DEVICE static Float4 start(const Warp& warp, int tile, int fragment, int lane) {
    const Gates &even = warp.input[tile][0][lane], &odd = warp.input[tile][P::kCells - 1][lane];
    return fragment == 0 ? Float4{{even.i, odd.i, even.f, odd.f}} : Float4{{even.g, odd.g, even.o, odd.o}};
  }

  // A warp's sums for batch row 2q (or, if `second`, 2q + 1) of a tile.
  TAGRANK_DEVICE static Gates sums_of(const Warp& warp, int chunk, int lane, bool second) {
    const Float4 &if_ = warp.sum[0][chunk][lane], &go = warp.sum[1][chunk][lane];
    return second ? Gates{if_.at[1], if_.at[3], go.at[1], go.at[3]} : Gates{if_.at[0], if_.at[2], go.at[0], go.at[2]};
  }

  // kPairs: where a lane finds the other warp's sums, in bytes.
  TAGRANK_DEVICE static int partial(int index, int tile, int lane) {
    return kPartial + ((index * S::kTiles + tile) * kLanes + lane) * int(sizeof(Gates));
  }

  // kQuads: where a lane finds what a warp has summed up for cell 1, in bytes. `odd` says of which row, 2q or 2q + 1. Lanes that
  // write or read at once do it in different banks.
  TAGRANK_DEVICE static int third(int index, bool odd, int lane) {
    const int half = lane % 4 / 2, at = (lane / 4 * 2 + lane % 2) * int(sizeof(Float2));
    return kThird + (2 * index + odd) * kThirdBytes + half * (kThirdBytes / 2) + (at ^ half * (kThirdBytes / 4));
  }

  // kPairs: gives the other warp of the pair the sums of the batch rows that it updates. kQuads: and all four warps those of
  // the third group.
  TAGRANK_DEVICE void send_half(int index, Warp& warp, int first_tile) {
    each_lane([&](int lane) {
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        block_.write(partial(index ^ 1, first_tile + chunk, lane), sums_of(warp, chunk, lane, index % 2 == 0));
        if constexpr (P::kQuads) {
          const Float4& sum = warp.sum[2][chunk][lane];
          block_.write(third(index, false, lane), Float2{{sum.at[0], sum.at[2]}});
          block_.write(third(index, true, lane), Float2{{sum.at[1], sum.at[3]}});
        }
      }
    });
  }

  // kQuads: the sums of cell 1. Either pair has those of two gates.
  TAGRANK_DEVICE Gates third_sums(int index, int lane) const {
    Float2 sum[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = block_.template read<Float2>(third(index / 4 * 4 + i, index % 2 == 1, lane));
    const auto at = [&](int pair, int which) { return sum[2 * pair].at[which] + sum[2 * pair + 1].at[which]; };
    return {at(0, 0), at(0, 1), at(1, 0), at(1, 1)};
  }

  TAGRANK_DEVICE void update(int index, Warp& warp, int first_tile) {
#pragma unroll
    for (int chunk = 0; chunk < kChunk; ++chunk) {
      const int tile = first_tile + chunk;
      each_lane([&](int lane) {
#pragma unroll
        for (int i = 0; i < P::kCells; ++i) {
          const bool second = P::kQuads && i == 1;
          Gates pre = second ? third_sums(index, lane) : sums_of(warp, chunk, lane, P::kPairs ? index % 2 == 1 : i == 1);
          if constexpr (kAhead && !kBegun) {
            pre = pre + warp.input[tile][i][lane];
          } else if constexpr (!kAhead) {
            pre = pre + input_of(warp, tile, chunk, i, lane);
          }
          if (P::kPairs && !second) pre = pre + block_.template read<Gates>(partial(index, tile, lane));
          const Gates gates = kHalved ? activate_halved(pre) : activate<kActivations>(pre);
          const float h = cell_forward<kActivations>(gates, warp.c[tile][i][lane]);
          // A unit that does not exist multiplies zeros of U. If h0 is infinite, it is NaN, and would make NaN of all units.
          warp.h[tile][i][lane] = to_bits(T{}, P::unit(index, lane) < units() ? h : 0.0f);
          warp.gates[tile][i][lane] = round_gates<T>(gates);
        }
      });
    }
  }

  // Sends this warp's share of h_t in some tiles to all blocks. In 16 bit, lanes first put together neighbouring units of a
  // row: two with kPairs or kShort, eight with kWhole. Lanes that then have the same numbers send them to different blocks.
  TAGRANK_DEVICE void send_state(int index, const Warp& warp, int next, int first_tile) {
#pragma unroll
    for (int chunk = 0; chunk < kChunk; ++chunk) {
      const int tile = first_tile + chunk;
      Lanes<uint32_t> word;
      if constexpr (kBytes == 4) {
#pragma unroll
        for (int i = 0; i < P::kCells; ++i) {
          each_lane([&](int lane) {
            const int at = state(next, P::row(index, lane, tile, i), P::unit(index, lane));
            send_piece(0, operand<T>(bits_of(warp.h[tile][i][lane])), at, next);
          });
        }
      } else if constexpr (P::kPairs) {
        word = neighbours(warp.h[tile][0]);
        if constexpr (P::kQuads) {
          send_quad(index, warp, word, neighbours(warp.h[tile][1]), next);
          continue;
        }
        each_lane([&](int lane) {
          if constexpr (V::kFull) {
            send_full(warp, lane, word[lane], tile, next);
          } else {
            const int at = state(next, first_row(index, lane, tile), first_unit(index, lane));
            send_piece(member_of(lane), word[lane], at, next);
          }
        });
      } else {
        // A lane has the rows 2q and 2q + 1 of unit g, and gets the units 2q and 2q + 1 of row g.
        each_lane([&](int lane) {
          word[lane] = warp.h[tile][0][lane] | static_cast<uint32_t>(warp.h[tile][P::kCells - 1][lane]) << 16;
        });
        transpose(word);
        if constexpr (V::kShort) {
          each_lane([&](int lane) { send_full(warp, lane, word[lane], tile, next); });
          continue;
        }
        const Lanes<Words2> two = join(word, 1);
        Lanes<uint32_t> low, high;
        each_lane([&](int lane) {
          low[lane] = two[lane].word[0];
          high[lane] = two[lane].word[1];
        });
        const Lanes<Words2> lows = join(low, 2), highs = join(high, 2);
        Lanes<Words4> four;
        each_lane([&](int lane) {
          four[lane] = {{lows[lane].word[0], highs[lane].word[0], lows[lane].word[1], highs[lane].word[1]}};
        });
        each_lane([&](int lane) {
          if constexpr (V::kFull) {
            send_full(warp, lane, four[lane], tile, next);
          } else {
            const int at = state(next, first_row(index, lane, tile), first_unit(index, lane));
            send_piece(member_of(lane), four[lane], at, next);
          }
        });
      }
    }
  }

  // The numbers of two units of a row.
  TAGRANK_DEVICE static Lanes<uint32_t> neighbours(const Lanes<E>& number) {
    Lanes<uint32_t> word;
    each_lane([&](int lane) { word[lane] = number[lane]; });
    Lanes<uint32_t> other = word;
    swap_lanes(other, 4);
    each_lane([&](int lane) {
      const bool odd = lane / 4 % 2;
      word[lane] = odd ? other[lane] | word[lane] << 16 : word[lane] | other[lane] << 16;
    });
    return word;
  }

  // kQuads: sends a lane's words of cells 0 and 1. Half of the lanes have words of cells 1. The others get them, too, and send
  // them to other blocks. The blocks whose mailboxes are awaited first come first.
  TAGRANK_DEVICE void send_quad(int index, const Warp& warp, const Lanes<uint32_t>& first, const Lanes<uint32_t>& second,
                                int next) {
    Lanes<uint32_t> other = second;
    swap_lanes(other, 2);
    each_lane([&](int lane) {
      const bool owns = P::owns(index, lane);
      const uint32_t word = owns ? second[lane] : other[lane];
      constexpr int kStep = kRotated ? kSame * kPiecesOfBlock * H::kPieceBytes : 0;
#pragma unroll
      for (int i = 0; i < kSends; i += 2) {
        const int box = next * kBoxes + (kRotated ? i * kSame / kBlocksOfBox : 0), place = next * kStateBytes + i * kStep;
        const uint32_t even = warp.peer[i][lane], odd = warp.peer[i + 1][lane];
        block_.send_to(even, warp.to[lane] + place, first[lane], box);
        block_.send_to(odd, warp.to[lane] + place + kStep, first[lane], box);
        block_.send_to(owns ? even : odd, warp.second_to[lane] + place, word, box);
      }
    });
  }

  // The words of a lane and of lane ^ mask, that of the lower lane first.
  TAGRANK_DEVICE static Lanes<Words2> join(const Lanes<uint32_t>& word, int mask) {
    Lanes<uint32_t> other = word;
    swap_lanes(other, mask);
    Lanes<Words2> joined;
    each_lane([&](int lane) {
      const bool second = lane & mask;
      joined[lane] = {{second ? other[lane] : word[lane], second ? word[lane] : other[lane]}};
    });
    return joined;
  }

  // In 16 bit, after lanes have put together what they send: the row and the first unit of a lane's piece, and its number
  // among the lanes that have the same.
  TAGRANK_EVERYWHERE static int first_row(int index, int lane, int tile) {
    return P::kPairs ? P::row(index, lane, tile, 0) : kTile * tile + lane / 4;
  }
  TAGRANK_EVERYWHERE static int first_unit(int index, int lane) {
    return P::kPairs ? P::unit(index, lane) - member_of(lane) : P::unit(index, 0) + (V::kShort ? lane % 4 * 2 : 0);
  }
  TAGRANK_EVERYWHERE static int member_of(int lane) { return P::kPairs ? lane / 4 % 2 : V::kShort ? 0 : lane % 4; }

  // Where h of a row and one of the block's units is in a buffer, in bytes.
  TAGRANK_DEVICE int state(int buffer, int row, int unit) const {
    return buffer * kStateBytes + H::at(row, slice_.first + unit);
  }

  // Sends a lane's piece to the blocks that are its share.
  template <typename Words>
  TAGRANK_DEVICE void send_full(const Warp& warp, int lane, const Words& words, int tile, int next) {
    const int at = warp.to[lane] + next * kStateBytes + tile * H::kTileBytes, member = member_of(lane);
    if constexpr (kAlone) {
      if (member == 0) block_.write(at, words);
    } else {
#pragma unroll
      for (int i = 0; i < kSends; ++i) {
        const int first = i * kSame, away = first + member;
        if (kMost % kSame != 0 && away >= kMost) continue;
        const int place = kRotated ? first * kPiecesOfBlock * H::kPieceBytes : 0;
        const int box = next * kBoxes + (kRotated ? away / kBlocksOfBox : 0);
        block_.send_to(warp.peer[i][lane], at + place, words, box);
      }
    }
  }

  // Sends neighbouring units of one row. kSame lanes have the same ones, `member` counts these lanes.
  template <typename Words>
  TAGRANK_DEVICE void send_piece(int member, const Words& words, int at, int next) {
#pragma unroll
    for (int i = 0; i < kSends; ++i) {
      // Each block begins with a different one.
      const int away = i * kSame + member, to = block_.rank() + away;
      if (away < block_.blocks()) block_.send(to < block_.blocks() ? to : to - block_.blocks(), at, words, next);
    }
  }

  // function(lane, tile, i, row) for each cell of a warp that exists.
  template <typename Function>
  TAGRANK_DEVICE static void each_cell(const Warp& warp, const Function& function) {
    each_lane([&](int lane) {
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < P::kCells; ++i) {
          if (exists(warp.at[lane], tile, i)) function(lane, tile, i, below(tile, i));
        }
      }
    });
  }

  // Stores the results of a step, and goes on to the places of the next one.
  TAGRANK_DEVICE void store(Warp& warp) {
    each_cell(warp, [&](int lane, int tile, int i, int row) {
      const Places& at = warp.at[lane];
      at.output[row * hidden() + beside(warp, lane, i)] = warp.h[tile][i][lane];
      if (call_.gates != nullptr) {
        E* to = at.gates + row * kGates * hidden() + beside(warp, lane, i);
        store_gates(to, hidden(), warp.gates[tile][i][lane]);
      }
      if (call_.cells != nullptr) at.cells[row * hidden() + beside(warp, lane, i)] = warp.c[tile][i][lane];
    });
    each_lane([&](int lane) {
      Places& at = warp.at[lane];
      at.output += step_;
      if (call_.gates != nullptr) at.gates += kGates * step_;
      if (call_.cells != nullptr) at.cells += step_;
    });
  }

  TAGRANK_DEVICE void finish(int index, Warp& warp) {
    each_cell(warp, [&](int lane, int tile, int i, int row) {
      const int64_t at = (first_row_ + P::row(index, lane, 0, 0) + row) * hidden_ + slice_.first + P::unit(index, lane, i);
      call_.h_n[at] = warp.h[tile][i][lane];
      call_.c_n[at] = to_bits(T{}, warp.c[tile][i][lane]);
    });
  }

  const ForwardCall<E>& call_;
  Block& block_;
  const int hidden_;
  const Slice slice_;
  const int64_t first_row_;
  const int rows_;      // that exist
  const int64_t step_;  // the numbers of one step in `output`
};

}  // namespace tagrank::cuda
