// The forward pass of one cluster: kRows rows of the batch, all hidden units, all steps.
//
// A block keeps its slice of U in registers, as the left operand of the product h U^T turned round, U h^T: its rows are
// the four gates of eight hidden units for two matrix fragments, so that a lane gets all four gates of a unit and the cell
// never leaves it. Two warps share the inner dimension; each sends the other its half of the sums, every second row of the
// batch. h_t is put into the shared memory of every block of the cluster, in one of two buffers that take turns, so that
// one barrier a step is enough: whoever has seen h_{t+1} of all others knows that they are done with h_t.
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
  static constexpr int kRow = padded_row(S::kPadded);  // of h in shared memory
  static constexpr int kChunk = S::kTiles == 2 || S::kTiles == 4 ? 2 : 1;  // tiles at a time; of 8, registers allow one
  static constexpr int kSlices = S::kPadded / 2 / kSlice;  // of the product, for a warp

  struct Warp {
    Lanes<Words4> weight[kGates][kSlices];
    Lanes<float> c[S::kTiles];
    Lanes<Words2> gates[S::kTiles];  // i, f, g, o, to be stored when the others have h
    Lanes<Float4> sum[2][kChunk];    // (i, f) and (g, o) of the rows 2q and 2q + 1
    RawGates input[kChunk];
  };

 public:
  // The two buffers of h, and what the two warps of a group send each other.
  static constexpr int kStateBytes = S::kRows * kRow * 2;
  static constexpr int kShared = 2 * kStateBytes + kWarps * S::kTiles * kLanes * int(sizeof(Gates));

  TAGRANK_DEVICE Forward(const ForwardCall& call, Block& block)
      : call_(call),
        block_(block),
        hidden_(call.hidden),
        slice_(slice_of(block.rank(), call.hidden)),
        first_row_(static_cast<int64_t>(block.cluster()) * S::kRows),
        partial_(reinterpret_cast<Gates*>(block.shared() + 2 * kStateBytes)) {}

  TAGRANK_DEVICE void run() {
    Warps<Warp> warps(kWarps);
    fill_states();
    warps.each([&](int index, Warp& warp) { begin(index, warp); });
    block_.sync();
    block_.arrive();
    for (int64_t t = 0; t < call_.steps; ++t) {
      warps.each([&](int index, Warp& warp) { load_input(index, warp, t, 0); });
      block_.wait();
#pragma unroll
      for (int tile = 0; tile < S::kTiles; tile += kChunk) {
        warps.each([&](int index, Warp& warp) {
          if (tile > 0) load_input(index, warp, t, tile);
          if (t > 0 || call_.h0 != nullptr) {
            product(index, warp, t, tile);
          } else {
            clear(warp);
          }
          send_half(index, warp, tile);
        });
        block_.sync_pair();
        warps.each([&](int index, Warp& warp) { update(index, warp, t, tile); });
      }
      block_.sync();
      if (t + 1 < call_.steps) {
        put_state(t);
        block_.arrive();
      }
      store_output(t);
      warps.each([&](int index, Warp& warp) { store(index, warp, t); });
    }
  }

 private:
  // Buffer t % 2 holds h_{t-1}.
  TAGRANK_DEVICE uint16_t* state(int64_t t) const {
    return reinterpret_cast<uint16_t*>(block_.shared() + (t % 2) * kStateBytes);
  }
  TAGRANK_DEVICE bool row_exists(int row) const { return first_row_ + row < call_.batch; }

  // The gates of a unit of this block in a row of an array of gates.
  template <typename Bits>
  TAGRANK_DEVICE Bits* gates_at(Bits* array, int64_t row, int u) const {
    return array + row * kGates * hidden_ + slice_.first + u;
  }

  // h_{-1} in the first buffer, and zeros where no hidden unit is: the product runs over them.
  TAGRANK_DEVICE void fill_states() {
    constexpr int kPieces = kRow / 8;
    block_.share(S::kRows * kPieces, [&](int piece) {
      const int row = piece / kPieces, first = piece % kPieces * 8;
      Words4 h = {{0, 0, 0, 0}};
      *reinterpret_cast<Words4*>(state(1) + row * kRow + first) = h;
      if (call_.h0 != nullptr && row_exists(row)) {
        by_alignment(call_.h0, hidden_, [&](auto aligned) {
          h = load_eight<aligned>(call_.h0 + (first_row_ + row) * hidden_, first, hidden_);
        });
      }
      *reinterpret_cast<Words4*>(state(0) + row * kRow + first) = h;
    });
  }

  TAGRANK_DEVICE void begin(int index, Warp& warp) {
    by_alignment(call_.weight_hh, hidden_, [&](auto aligned) { load_weights<aligned>(index, warp); });
    each_lane([&](int lane) {
      const int u = unit_of(index, lane);
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) {
        const int r = forward_row(index, lane, tile);
        const bool there = call_.c0 != nullptr && u < slice_.count && row_exists(r);
        warp.c[tile][lane] =
            there ? to_float(T{}, call_.c0[(first_row_ + r) * hidden_ + slice_.first + u]) : 0.0f;
      }
    });
  }

  template <bool kAligned>
  TAGRANK_DEVICE void load_weights(int index, Warp& warp) {
    each_lane([&](int lane) {
      const int u = unit_of(index, lane);
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        const int64_t at = gate_row(gate, slice_.first + u, hidden_);
#pragma unroll
        for (int k = 0; k < kSlices; ++k) {
          const int first = inner_of(index, lane, k, S::kPadded);
          Words4 eight = {{0, 0, 0, 0}};
          if (u < slice_.count) eight = load_eight<kAligned>(call_.weight_hh + at * hidden_, first, hidden_);
          warp.weight[gate][k][lane] = eight;
        }
      }
    });
  }

  // The input's share of the gates, early: the others' states, or the product before, are waited for while it comes.
  TAGRANK_DEVICE void load_input(int index, Warp& warp, int64_t t, int first_tile) {
    each_lane([&](int lane) {
      const int u = unit_of(index, lane);
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        const int r = forward_row(index, lane, first_tile + chunk);
        const bool there = u < slice_.count && row_exists(r);
        const int64_t at = (call_.constant ? 0 : t * call_.batch) + first_row_ + r;
        load_gates(warp.input[chunk], lane, gates_at(call_.gates_x, at, u), hidden_, there);
      }
    });
  }

  TAGRANK_DEVICE void clear(Warp& warp) {
    each_lane([&](int lane) {
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) warp.sum[0][chunk][lane] = warp.sum[1][chunk][lane] = Float4{};
    });
  }

  // This warp's half of the inner dimension.
  TAGRANK_DEVICE void product(int index, Warp& warp, int64_t t, int first_tile) {
    clear(warp);
    // One tile alone is too few independent sums to keep the tensor cores busy: every second step has its own.
    constexpr bool kSplit = S::kTiles == 1;
    Lanes<Float4> odd[2];
    if constexpr (kSplit) {
      each_lane([&](int lane) { odd[0][lane] = odd[1][lane] = Float4{}; });
    }
    const uint16_t* h = state(t) + first_tile * kTile * kRow;
#pragma unroll
    for (int k = 0; k < kSlices; ++k) {
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        Lanes<Words4> eight;
        each_lane([&](int lane) {
          const uint16_t* from = h + (chunk * kTile + lane / 4) * kRow + inner_of(index, lane, k, S::kPadded);
          eight[lane] = *reinterpret_cast<const Words4*>(from);
        });
        const bool apart = kSplit && k % 2;
        multiply<T>(apart ? odd[0] : warp.sum[0][chunk], warp.weight[0][k], warp.weight[1][k], eight);
        multiply<T>(apart ? odd[1] : warp.sum[1][chunk], warp.weight[2][k], warp.weight[3][k], eight);
      }
    }
    if constexpr (kSplit) {
      each_lane([&](int lane) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          warp.sum[0][0][lane].at[i] += odd[0][lane].at[i];
          warp.sum[1][0][lane].at[i] += odd[1][lane].at[i];
        }
      });
    }
  }

  // What a warp has summed up for the row 2q, or 2q + 1, of a tile.
  TAGRANK_DEVICE static Gates sums_of(const Warp& warp, int chunk, int lane, bool second) {
    const Float4 &if_ = warp.sum[0][chunk][lane], &go = warp.sum[1][chunk][lane];
    return second ? Gates{if_.at[1], if_.at[3], go.at[1], go.at[3]} : Gates{if_.at[0], if_.at[2], go.at[0], go.at[2]};
  }

  // The sums of the rows that the other warp updates.
  TAGRANK_DEVICE void send_half(int index, Warp& warp, int first_tile) {
    each_lane([&](int lane) {
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        partial_[((index ^ 1) * S::kTiles + first_tile + chunk) * kLanes + lane] =
            sums_of(warp, chunk, lane, index % 2 == 0);
      }
    });
  }

  TAGRANK_DEVICE void update(int index, Warp& warp, int64_t t, int first_tile) {
    uint16_t* h = state(t + 1) + slice_.first;
    each_lane([&](int lane) {
      // All that is read before anything is written, which the compiler must take for the same memory.
      Gates others[kChunk];
      uint16_t out[kChunk];
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        others[chunk] = partial_[(index * S::kTiles + first_tile + chunk) * kLanes + lane];
      }
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        const int tile = first_tile + chunk;
        const Gates sums = sums_of(warp, chunk, lane, index % 2 == 1) + others[chunk];
        const Gates gates = activate(sums + widen<T>(warp.input[chunk], lane));
        out[chunk] = to_bits(T{}, cell_forward(gates, warp.c[tile][lane]));
        warp.gates[tile][lane] = round_gates<T>(gates);
      }
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        h[forward_row(index, lane, first_tile + chunk) * kRow + unit_of(index, lane)] = out[chunk];
      }
    });
  }

  // This block's slice of h_t to all others, each beginning with another.
  TAGRANK_DEVICE void put_state(int64_t t) {
    constexpr int kPieces = S::kRows * kGroups;
    block_.share(kPieces * (block_.blocks() - 1), [&](int i) {
      const int piece = i % kPieces, to = block_.rank() + 1 + i / kPieces;
      const uint16_t* h = state(t + 1) + piece / kGroups * kRow + slice_.first + piece % kGroups * kGroup;
      block_.put(to < block_.blocks() ? to : to - block_.blocks(), h, *reinterpret_cast<const Words4*>(h));
    });
  }

  TAGRANK_DEVICE void store_output(int64_t t) {
    by_alignment(call_.output, hidden_, [&](auto aligned) {
      block_.share(S::kRows * kGroups, [&](int piece) {
        const int row = piece / kGroups, first = slice_.first + piece % kGroups * kGroup;
        if (!row_exists(row)) return;
        const uint16_t* h = state(t + 1) + row * kRow + first;
        store_eight<aligned>(call_.output + (t * call_.batch + first_row_ + row) * hidden_, first, hidden_,
                             *reinterpret_cast<const Words4*>(h));
      });
    });
  }

  TAGRANK_DEVICE void store(int index, Warp& warp, int64_t t) {
    each_lane([&](int lane) {
      const int u = unit_of(index, lane);
      if (u >= slice_.count) return;
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) {
        const int r = forward_row(index, lane, tile);
        if (!row_exists(r)) continue;
        const int64_t at = t * call_.batch + first_row_ + r;
        if (call_.gates != nullptr) store_gates(gates_at(call_.gates, at, u), hidden_, warp.gates[tile][lane]);
        if (call_.cells != nullptr) call_.cells[at * hidden_ + slice_.first + u] = warp.c[tile][lane];
        if (t + 1 == call_.steps) {
          call_.c_n[(first_row_ + r) * hidden_ + slice_.first + u] = to_bits(T{}, warp.c[tile][lane]);
        }
      }
    });
  }

  const ForwardCall& call_;
  Block& block_;
  const int hidden_;
  const Slice slice_;
  const int64_t first_row_;
  Gates* const partial_;
};

}  // namespace tagrank::cuda
