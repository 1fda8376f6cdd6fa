// The forward pass of one cluster: kRows batch rows, all hidden units, all steps.
//
// A block keeps the rows of U for its hidden units in registers and multiplies U h^T, with U as the left operand. Two matrix
// fragments hold the four gates of eight hidden units, so that a lane gets all four gates of a unit and can compute its cell.
// The two warps of a group each multiply half of the inner dimension. Each then sends the other the sums that the other one
// needs: one updates the even batch rows, the other the odd ones.
//
// Every block of the cluster holds h of all hidden units in shared memory, in two buffers that take turns. So one barrier a
// step is enough: a block that has received h_{t+1} of all others knows that they no longer read h_t.
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
  static constexpr int kRow = padded_row(S::kPadded);  // the length of a row of h in shared memory
  // The tiles that a warp multiplies at a time. With 8 tiles the registers suffice only for one at a time.
  static constexpr int kChunk = S::kTiles == 2 || S::kTiles == 4 ? 2 : 1;
  static constexpr int kSlices = S::kPadded / 2 / kSlice;  // of a warp's half of the inner dimension

  struct Warp {
    Lanes<Words4> weight[kGates][kSlices];
    Lanes<float> c[S::kTiles];
    Lanes<Words2> gates[S::kTiles];  // i, f, g, o, to be stored once the other blocks have h
    Lanes<Float4> sum[2][kChunk];    // (i, f) and (g, o) of the batch rows 2q and 2q + 1
    RawGates input[kChunk], addend[kChunk];
  };

 public:
  // Shared memory, in bytes: the two buffers of h, and the sums that the two warps of a group send each other.
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
      store_state(t, call_.output, t * call_.batch + first_row_);
      warps.each([&](int index, Warp& warp) { store(index, warp, t); });
    }
    store_state(call_.steps - 1, call_.h_n, first_row_);
  }

 private:
  // The buffer of h that step t reads: its h_{t-1}, rows of kRow numbers.
  TAGRANK_DEVICE uint16_t* state(int64_t t) const {
    return reinterpret_cast<uint16_t*>(block_.shared() + (t % 2) * kStateBytes);
  }
  TAGRANK_DEVICE bool row_exists(int row) const { return first_row_ + row < call_.batch; }

  // The gates of unit u of this block in a row of an array [rows, 4H].
  template <typename Bits>
  TAGRANK_DEVICE Bits* gates_at(Bits* array, int64_t row, int u) const {
    return array + row * kGates * hidden_ + slice_.first + u;
  }

  // Writes h0 (zeros if there is none) into the first buffer. The rest of both buffers becomes zero, because the products run
  // over kPadded hidden units.
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

  // Issues the loads of gates_x and the addend. They are on their way while the warp waits for the other blocks or multiplies.
  TAGRANK_DEVICE void load_input(int index, Warp& warp, int64_t t, int first_tile) {
    each_lane([&](int lane) {
      const int u = unit_of(index, lane);
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        const int r = forward_row(index, lane, first_tile + chunk);
        const bool there = u < slice_.count && row_exists(r);
        const int64_t at = (call_.constant ? 0 : t * call_.batch) + first_row_ + r;
        load_gates(warp.input[chunk], lane, gates_at(call_.gates_x, at, u), hidden_, there);
        const uint16_t* addend = call_.addend + (first_row_ + r) * call_.addend_stride + slice_.first + u;
        load_gates(warp.addend[chunk], lane, addend, hidden_, there && call_.addend != nullptr);
      }
    });
  }

  TAGRANK_DEVICE void clear(Warp& warp) {
    each_lane([&](int lane) {
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) warp.sum[0][chunk][lane] = warp.sum[1][chunk][lane] = Float4{};
    });
  }

  // Multiplies this warp's half of the inner dimension.
  TAGRANK_DEVICE void product(int index, Warp& warp, int64_t t, int first_tile) {
    clear(warp);
    // A single tile gives too few independent sums to keep the tensor cores busy, so odd slices are summed apart.
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

  // A warp's sums for batch row 2q (or, if `second`, 2q + 1) of a tile.
  TAGRANK_DEVICE static Gates sums_of(const Warp& warp, int chunk, int lane, bool second) {
    const Float4 &if_ = warp.sum[0][chunk][lane], &go = warp.sum[1][chunk][lane];
    return second ? Gates{if_.at[1], if_.at[3], go.at[1], go.at[3]} : Gates{if_.at[0], if_.at[2], go.at[0], go.at[2]};
  }

  // Gives the other warp of the group the sums of the batch rows that it updates.
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
      // All reads come before all writes: the compiler must assume that they touch the same memory.
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
        const Gates gates = activate(sums + (widen<T>(warp.input[chunk], lane) + widen<T>(warp.addend[chunk], lane)));
        out[chunk] = to_bits(T{}, cell_forward(gates, warp.c[tile][lane]));
        warp.gates[tile][lane] = round_gates<T>(gates);
      }
#pragma unroll
      for (int chunk = 0; chunk < kChunk; ++chunk) {
        h[forward_row(index, lane, first_tile + chunk) * kRow + unit_of(index, lane)] = out[chunk];
      }
    });
  }

  // Writes this block's slice of h_t to all other blocks. Each block begins with a different one.
  TAGRANK_DEVICE void put_state(int64_t t) {
    constexpr int kPieces = S::kRows * kGroups;
    block_.share(kPieces * (block_.blocks() - 1), [&](int i) {
      const int piece = i % kPieces, to = block_.rank() + 1 + i / kPieces;
      const uint16_t* h = state(t + 1) + piece / kGroups * kRow + slice_.first + piece % kGroups * kGroup;
      block_.put(to < block_.blocks() ? to : to - block_.blocks(), h, *reinterpret_cast<const Words4*>(h));
    });
  }

  // Stores this block's slice of h_t into rows of an array [rows, H], from row `first_row` on.
  TAGRANK_DEVICE void store_state(int64_t t, uint16_t* array, int64_t first_row) {
    by_alignment(array, hidden_, [&](auto aligned) {
      block_.share(S::kRows * kGroups, [&](int piece) {
        const int row = piece / kGroups, first = slice_.first + piece % kGroups * kGroup;
        if (!row_exists(row)) return;
        const uint16_t* h = state(t + 1) + row * kRow + first;
        store_eight<aligned>(array + (first_row + row) * hidden_, first, hidden_, *reinterpret_cast<const Words4*>(h));
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
