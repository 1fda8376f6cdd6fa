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
// A step is a chain of latencies, here in clocks of an H100 for one tile and bfloat16, rounded from published measurements:
//
//   a mailbox is seen to be full                                            30
//   the first ld.shared                                                     30
//   the products, an instruction each 7 clocks in a quarter of the
//     multiprocessor, after the first 33: H = 128, 256, 512                 80, 240, 450
//   the exchange of sums between two warps: H = 512                         100
//   activations: the hyperbolic tangent of the hardware, twice in turn      100
//   lanes put together neighbouring units: 16 bytes by a transposition
//     and two shuffles or, H = 512, 4 bytes by one shuffle                  80, 30
//   st.async to another block                                               220
//
// That is 540, 700 and 960 clocks for H = 128, 256 and 512: 0.29, 0.38 and 0.52 us at 1.85 GHz. Measured were 0.54, 0.65 and
// 1.2 us (B = 16, inference).
#pragma once

#include "cell.h"
#include "cluster.h"
#include "gates.h"
#include "memory.h"
#include "plan.h"
#include "recurrence.h"

namespace tagrank::cuda {

template <typename T, typename S>
class Forward {
  using E = Element<T>;
  static constexpr int kBytes = sizeof(E);
  using P = ForwardLayout<S, kBytes>;
  static constexpr int kRow = padded_row(S::kPadded, kBytes);  // the length of a row of h in shared memory
  static constexpr int kMost = S::kPadded / kUnits;    // at most so many blocks has the cluster
  // The tiles that a warp multiplies at a time, and the number of independent sums of each gate in each tile. One sum would
  // leave the tensor cores idle: an instruction waits for the previous one of its sum.
  static constexpr int kChunk = S::kTiles == 2 || (S::kTiles == 4 && (kBytes == 2 || P::kPairs)) ? 2 : 1;
  static constexpr int kSlices = P::kSlices;
  static constexpr Activations kActivations = activations_for<T>();
  static constexpr int kSums = S::kTiles == 1 && !P::kPairs ? 4 : 2;
  static constexpr int kFragments = 2;  // of U in a warp, for each 16 elements of the inner dimension: i and f, g and o
  // Whether gates_x is loaded a step before it is used. That takes twice the registers.
  static constexpr bool kAhead = P::kCells * S::kTiles <= 2;
  // Whether the addend stays in registers. Otherwise it is loaded when it is used, from the first-level cache.
  static constexpr bool kHeld = S::kTiles <= 2;
  static constexpr int kInputs = kAhead ? S::kTiles : kChunk;  // tiles whose gates_x a warp holds
  static_assert(kSums <= kSlices, "every sum has a slice");

  // Where the first cell of a lane is in the arrays at one step, and how many batch rows exist from that cell's on (none if the
  // unit does not exist). Running pointers cost two instructions a step each.
  struct Places {
    const E *input, *addend;
    E *output, *gates;
    float* cells;
    int rows;
  };

  struct Warp {
    Lanes<Places> at;
    Lanes<int> from;  // where the lane's first h_{t-1} is in shared memory, in bytes
    Lanes<Words4> weight[kFragments][2][kSlices];
    Lanes<float> c[S::kTiles][P::kCells];
    Lanes<PackedGates<E>> gates[S::kTiles][P::kCells];  // i, f, g, o, to be stored once the other blocks have h
    Lanes<E> h[S::kTiles][P::kCells];
    Lanes<Float4> sum[kFragments][kChunk];
    // gates_x as it was loaded: of the next step if kAhead, else of the tiles that are multiplied.
    RawGates<E> loaded[kInputs][P::kCells];
    Lanes<Gates> input[kInputs][P::kCells];              // if kAhead: gates_x of this step and the addend
    Lanes<PackedGates<E>> addend[S::kTiles][P::kCells];  // if kHeld
  };

 public:
  // Shared memory, in bytes: the two buffers of h, the mailboxes, and the sums that the two warps of a pair send each other.
  static constexpr int kStateBytes = S::kRows * kRow * kBytes;
  static constexpr int kMail = 2 * kStateBytes, kPartial = kMail + kMailBytes;
  static constexpr int kShared = kPartial + (P::kPairs ? P::kWarps * S::kTiles * kLanes * int(sizeof(Gates)) : 0);

  TAGRANK_DEVICE Forward(const ForwardCall<E>& call, Block& block)
      : call_(call),
        block_(block),
        hidden_(call.hidden),
        slice_(slice_of(block.rank(), call.hidden)),
        first_row_(static_cast<int64_t>(block.cluster()) * S::kRows),
        rows_(call.batch - first_row_ < S::kRows ? static_cast<int>(call.batch - first_row_) : S::kRows),
        step_(call.batch * call.hidden) {}

  TAGRANK_DEVICE void run() {
    Warps<Warp> warps(P::kWarps);
    block_.open_mail(kMail, block_.blocks() * S::kRows * kUnits * kBytes);
    fill_states();
    block_.arrive();
    warps.each([&](int index, Warp& warp) { begin(index, warp); });
    block_.wait();
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
            product(warp, tile);
          } else {
            clear(warp);
          }
          if constexpr (P::kPairs) send_half(index, warp, tile);
        });
        if constexpr (P::kPairs) block_.sync_pair();
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
    warps.each([&](int index, Warp& warp) { finish(index, warp); });
  }

 private:
  // The row of a cell, from that of the lane's first cell on.
  TAGRANK_EVERYWHERE static constexpr int below(int tile, int i) { return kTile * tile + i; }

  // Writes h0 (zeros if there is none) into the first buffer. The rest of both buffers becomes zero, because the products run
  // over kPadded hidden units.
  TAGRANK_DEVICE void fill_states() {
    constexpr int kPieces = kRow / kPiece<E>;
    block_.share(S::kRows * kPieces, [&](int piece) {
      const int row = piece / kPieces, first = piece % kPieces * kPiece<E>;
      Words4 h = {{0, 0, 0, 0}};
      block_.write(kStateBytes + (row * kRow + first) * kBytes, h);
      if (call_.h0 != nullptr && row < rows_) {
        by_alignment(call_.h0, hidden_, [&](auto aligned) {
          h = load_piece<aligned>(call_.h0 + (first_row_ + row) * hidden_, first, hidden_);
        });
      }
      block_.write((row * kRow + first) * kBytes, operand<T>(h));
    });
  }

  TAGRANK_DEVICE void begin(int index, Warp& warp) {
    by_alignment(call_.weight_hh, hidden_, [&](auto aligned) {
      constexpr bool kAligned = decltype(aligned)::value;
      if (kAligned && hidden_ == S::kPadded) {
        load_weights<kAligned, kAligned>(index, warp);
      } else {
        load_weights<kAligned, false>(index, warp);
      }
    });
    each_lane([&](int lane) {
      warp.from[lane] = (lane / 4 * kRow + P::inner(index, lane, 0)) * kBytes;
      const int u = P::unit(index, lane), r = P::row(index, lane, 0, 0);
      const int64_t row = first_row_ + r, at = row * hidden_ + slice_.first + u;
      const int64_t at_gates = row * kGates * hidden_ + slice_.first + u;
      warp.at[lane] = {call_.gates_x + at_gates,
                       call_.addend == nullptr ? nullptr : call_.addend + row * call_.addend_stride + slice_.first + u,
                       call_.output + at,
                       call_.gates == nullptr ? nullptr : call_.gates + at_gates,
                       call_.cells == nullptr ? nullptr : call_.cells + at, u < slice_.count ? rows_ - r : 0};
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < P::kCells; ++i) {
          const bool there = call_.c0 != nullptr && below(tile, i) < warp.at[lane].rows;
          warp.c[tile][i][lane] = there ? to_float(T{}, call_.c0[at + below(tile, i) * hidden_]) : 0.0f;
          if constexpr (kHeld) {
            RawGates<E> raw;
            load_addend(raw, warp.at[lane], lane, below(tile, i));
            warp.addend[tile][i][lane] = pack(raw, lane);
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
      const int u = P::unit(index, lane);
#pragma unroll
      for (int fragment = 0; fragment < kFragments; ++fragment) {
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int64_t at = gate_row(2 * fragment + lower, slice_.first + u, hidden_);
          const E* row = call_.weight_hh + at * hidden_;
#pragma unroll
          for (int k = 0; k < kSlices; ++k) {
            Words4 piece = {{0, 0, 0, 0}};
            const int first = P::inner(index, lane, k);
            if constexpr (kFull) {
              piece = *reinterpret_cast<const Words4*>(row + first);
            } else if (u < slice_.count) {
              piece = load_piece<kAligned>(row, first, hidden_);
            }
            warp.weight[fragment][lower][k][lane] = operand<T>(piece);
          }
        }
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
          const int row = below(first_tile + chunk, i);
          load_gates(warp.loaded[chunk][i], lane, at.input + row * kGates * hidden_, hidden_, row < at.rows);
        }
      }
    });
  }
  // The addend of one cell.
  TAGRANK_DEVICE void load_addend(RawGates<E>& addend, const Places& at, int lane, int row) const {
    load_gates(addend, lane, at.addend + row * call_.addend_stride, hidden_, call_.addend != nullptr && row < at.rows);
  }

  // gates_x, as it was loaded, and the addend.
  TAGRANK_DEVICE Gates input_of(const Warp& warp, int tile, int chunk, int i, int lane) const {
    const Gates gates_x = widen<T>(warp.loaded[chunk][i], lane);
    if constexpr (kHeld) {
      return gates_x + widen<T>(warp.addend[tile][i][lane]);
    } else {
      RawGates<E> raw;
      load_addend(raw, warp.at[lane], lane, below(tile, i));
      return gates_x + widen<T>(raw, lane);
    }
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

  TAGRANK_DEVICE void product(Warp& warp, int first_tile) {
    Lanes<Float4> part[kFragments][kChunk][kSums];
#pragma unroll
    for (int fragment = 0; fragment < kFragments; ++fragment) {
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) each_lane([&](int lane) { part[fragment][chunk][i][lane] = Float4{}; });
      }
    }
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        Lanes<Words4> h;
        each_lane([&](int lane) {
          const int below = ((first_tile + chunk) * kTile * kRow + k * P::kSlice) * kBytes;
          h[lane] = block_.template read<Words4>(warp.from[lane] + below);
        });
#pragma unroll
        for (int fragment = 0; fragment < kFragments; ++fragment) {
          multiply<T>(part[fragment][chunk][k % kSums], warp.weight[fragment][0][k], warp.weight[fragment][1][k], h);
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
            float total = at(0) + at(1);
            if constexpr (kSums == 4) total += at(2) + at(3);
            warp.sum[fragment][chunk][lane].at[i] = total;
          }
        }
      }
    });
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

  // kPairs: gives the other warp of the pair the sums of the batch rows that it updates.
  TAGRANK_DEVICE void send_half(int index, Warp& warp, int first_tile) {
    each_lane([&](int lane) {
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        block_.write(partial(index ^ 1, first_tile + chunk, lane), sums_of(warp, chunk, lane, index % 2 == 0));
      }
    });
  }

  TAGRANK_DEVICE void update(int index, Warp& warp, int first_tile) {
#pragma unroll
    for (int chunk = 0; chunk < kChunk; ++chunk) {
      const int tile = first_tile + chunk;
      each_lane([&](int lane) {
#pragma unroll
        for (int i = 0; i < P::kCells; ++i) {
          Gates pre = sums_of(warp, chunk, lane, P::kPairs ? index % 2 == 1 : i == 1);
          pre = pre + (kAhead ? warp.input[chunk][i][lane] : input_of(warp, tile, chunk, i, lane));
          if constexpr (P::kPairs) pre = pre + block_.template read<Gates>(partial(index, tile, lane));
          const Gates gates = activate<kActivations>(pre);
          const float h = cell_forward<kActivations>(gates, warp.c[tile][i][lane]);
          // A unit that does not exist multiplies zeros of U. If h0 is infinite, it is NaN, and would make NaN of all units.
          warp.h[tile][i][lane] = to_bits(T{}, P::unit(index, lane) < slice_.count ? h : 0.0f);
          warp.gates[tile][i][lane] = round_gates<T>(gates);
        }
      });
    }
  }

  // Sends this warp's share of h_t in some tiles to all blocks. In 16 bit, lanes first put together neighbouring units of a
  // row: two with kPairs, eight with kWhole. Lanes that then have the same numbers send them to different blocks.
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
            send_piece<1>(0, operand<T>(bits_of(warp.h[tile][i][lane])), at, next);
          });
        }
      } else if constexpr (P::kPairs) {
        each_lane([&](int lane) { word[lane] = warp.h[tile][0][lane]; });
        Lanes<uint32_t> other = word;
        swap_lanes(other, 4);
        each_lane([&](int lane) {
          const bool odd = lane / 4 % 2;
          word[lane] = odd ? other[lane] | word[lane] << 16 : word[lane] | other[lane] << 16;
        });
        each_lane([&](int lane) {
          const int member = lane / 4 % 2;
          const int at = state(next, P::row(index, lane, tile, 0), P::unit(index, lane) - member);
          send_piece<2>(member, word[lane], at, next);
        });
      } else {
        // A lane has the rows 2q and 2q + 1 of unit g, and gets the units 2q and 2q + 1 of row g.
        each_lane([&](int lane) {
          word[lane] = warp.h[tile][0][lane] | static_cast<uint32_t>(warp.h[tile][P::kCells - 1][lane]) << 16;
        });
        transpose(word);
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
          const int at = state(next, kTile * tile + lane / 4, P::unit(index, 0));
          send_piece<4>(lane % 4, four[lane], at, next);
        });
      }
    }
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

  // Where h of a row and one of the block's units is in a buffer, in bytes.
  TAGRANK_DEVICE int state(int buffer, int row, int unit) const {
    return buffer * kStateBytes + (row * kRow + slice_.first + unit) * kBytes;
  }

  // Sends neighbouring units of one row. kSame lanes have the same ones, `member` counts these lanes.
  template <int kSame, typename Words>
  TAGRANK_DEVICE void send_piece(int member, const Words& words, int at, int next) {
#pragma unroll
    for (int i = 0; i < (kMost + kSame - 1) / kSame; ++i) {
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
          if (below(tile, i) < warp.at[lane].rows) function(lane, tile, i, below(tile, i));
        }
      }
    });
  }

  // Stores the results of a step, and goes on to the places of the next one.
  TAGRANK_DEVICE void store(Warp& warp) {
    each_cell(warp, [&](int lane, int tile, int i, int row) {
      const Places& at = warp.at[lane];
      at.output[row * hidden_] = warp.h[tile][i][lane];
      if (call_.gates != nullptr) store_gates(at.gates + row * kGates * hidden_, hidden_, warp.gates[tile][i][lane]);
      if (call_.cells != nullptr) at.cells[row * hidden_] = warp.c[tile][i][lane];
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
      const int64_t at = (first_row_ + P::row(index, lane, 0, 0) + row) * hidden_ + slice_.first + P::unit(index, lane);
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
