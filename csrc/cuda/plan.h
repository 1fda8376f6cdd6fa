// Who holds what: how a call is cut into clusters, blocks and tiles. Plain arithmetic, the same on host and GPU.
#pragma once

#include <cstdint>

#include "target.h"

namespace tagrank::cuda {

constexpr int kGates = 4;               // i, f, g, o
constexpr int kGroup = 8;               // hidden units that a warp takes: as many as a matrix fragment has rows for
constexpr int kGroups = 4;              // of a block, each with two warps
constexpr int kUnits = kGroup * kGroups;  // hidden units of a block, with all four gates
constexpr int kWarps = 2 * kGroups;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 8;                // rows of the batch in one matrix instruction
constexpr int kStep = 32;               // of the inner dimension, what two matrix instructions do
constexpr int kMaxBlocks = 16;          // of a cluster
constexpr int kMaxHidden = kMaxBlocks * kUnits;

// The sizes that are known when a kernel is compiled: the hidden units that its products run over, which are H padded to
// a multiple of 128, and the tiles of the batch that a cluster has.
template <int kPadded_, int kTiles_>
struct Sizes {
  static constexpr int kPadded = kPadded_, kTiles = kTiles_, kRows = kTile * kTiles_;
};

// A row of n 16-bit numbers in shared memory, padded so that eight lanes that read 16 bytes each, four from either of two
// neighbouring rows, meet no bank twice.
TAGRANK_EVERYWHERE constexpr int padded_row(int n) { return (n + 63) / 64 * 64 + 32; }

// The blocks of a cluster.
TAGRANK_EVERYWHERE constexpr int blocks_for(int hidden) { return (hidden + kUnits - 1) / kUnits; }

// Which size of kernel H takes.
TAGRANK_EVERYWHERE constexpr int padded(int hidden) { return (hidden + 127) / 128 * 128; }

// The hidden units [first, first + count) of a block; the last one's may be fewer than the others'.
struct Slice {
  int first, count;
};
TAGRANK_EVERYWHERE Slice slice_of(int block, int hidden) {
  const int first = block * kUnits;
  const int left = hidden - first;
  return {first, left < kUnits ? left : kUnits};
}

// The row of U, and of its gradient, of a gate of a hidden unit.
TAGRANK_EVERYWHERE int gate_row(int gate, int unit, int hidden) { return gate * hidden + unit; }

// Both passes. Two warps share a group of hidden units, one to each row g of a matrix fragment.
TAGRANK_EVERYWHERE constexpr int unit_of(int warp, int lane) { return warp / 2 * kGroup + lane / 4; }

// Forward. The two warps of a group have half of the inner dimension each: the first of the eight hidden states that a lane
// multiplies at a step.
TAGRANK_EVERYWHERE constexpr int inner_of(int warp, int lane, int step, int padded) {
  return warp % 2 * (padded / 2) + step * kStep + lane % 4 * 8;
}
// Of the rows of the batch that a lane has sums of, 2q and 2q + 1 of each tile, the one that it updates.
TAGRANK_EVERYWHERE constexpr int row_of(int warp, int lane, int tile) { return kTile * tile + 2 * (lane % 4) + warp % 2; }

// Backward. The two warps of a group take turns with the tiles, of which a lane has the rows 2q and 2q + 1.
TAGRANK_EVERYWHERE constexpr int tile_of(int warp, int i) { return 2 * i + warp % 2; }
TAGRANK_EVERYWHERE constexpr int row_of(int warp, int lane, int i, int which) {
  return kTile * tile_of(warp, i) + 2 * (lane % 4) + which;
}
// The inner dimension is a block's gates, the four of a unit next to each other. Staged in shared memory are 32 at a time,
// in the order in which fragments are read.
TAGRANK_EVERYWHERE constexpr int staged_inner(int step, int at) {
  return step * kStep + at % 8 / 2 * 8 + at / 8 * 2 + at % 2;
}
// The outer dimension is all hidden units, in groups that belong to one block each; a fragment has two.
TAGRANK_EVERYWHERE constexpr int group_of(int warp, int stripe, int stripes, int lower) {
  return (warp * stripes + stripe) * 2 + lower;
}

}  // namespace tagrank::cuda
