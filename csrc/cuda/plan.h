// Who holds what: how a call is divided among clusters, blocks, warps and lanes. Plain arithmetic, the same on host and GPU.
#pragma once

#include <cstdint>

#include "target.h"

namespace tagrank::cuda {

constexpr int kGates = 4;               // i, f, g, o
constexpr int kGroup = 8;               // hidden units of a group: a matrix fragment has a row g in 0..7 for each
constexpr int kGroups = 4;              // groups of a block; one or two warps work on each
constexpr int kUnits = kGroup * kGroups;  // hidden units of a block, each with all four gates
constexpr int kWarps = 2 * kGroups;     // of a block of the backward pass
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 8;                // batch rows in one matrix instruction
constexpr int kSliceBytes = 64;         // of the inner dimension that two matrix instructions multiply
constexpr int kMaxBlocks = 16;          // blocks of a cluster

// The numbers of a slice, of `bytes` bytes each.
TAGRANK_EVERYWHERE constexpr int slice_numbers(int bytes) { return kSliceBytes / bytes; }
// The largest H. U has to fit in the registers of the blocks, of which there are enough for H = 512 in 16 bit.
TAGRANK_EVERYWHERE constexpr int max_hidden(int bytes) { return kMaxBlocks * kUnits * 2 / bytes; }

// The sizes that are known when a kernel is compiled: kPadded is H rounded up to a multiple of 128, the hidden units that
// its products run over; kTiles is the number of batch tiles of a cluster; kUnits is the number of hidden units of a block.
template <int kPadded_, int kTiles_, int kUnits_ = kUnits>
struct Sizes {
  static constexpr int kPadded = kPadded_, kTiles = kTiles_, kRows = kTile * kTiles_;
  static constexpr int kUnits = kUnits_, kGroups = kUnits / kGroup;
};

// The length of a row of n numbers in shared memory. The padding avoids bank conflicts when eight lanes read 16 bytes each:
// four lanes from one row and four from the next.
TAGRANK_EVERYWHERE constexpr int padded_row(int n, int bytes) { return ((n * bytes + 127) / 128 * 128 + 64) / bytes; }

// The number of blocks of a cluster.
TAGRANK_EVERYWHERE constexpr int blocks_for(int hidden) { return (hidden + kUnits - 1) / kUnits; }

// kPadded of the kernels that serve H.
TAGRANK_EVERYWHERE constexpr int padded(int hidden) { return (hidden + 127) / 128 * 128; }

// The hidden units [first, first + count) of a block. The last block may have fewer than kUnits.
struct Slice {
  int first, count;
};
TAGRANK_EVERYWHERE Slice slice_of(int block, int hidden, int units = kUnits) {
  const int first = block * units;
  const int left = hidden - first;
  return {first, left < units ? left : units};
}

// The row of U (and of its gradient) for one gate of one hidden unit.
TAGRANK_EVERYWHERE int gate_row(int gate, int unit, int hidden) { return gate * hidden + unit; }

// Forward: how the gates of a block's units are divided among its warps. A warp has all four gates of eight units.
enum class Division {
  kWhole,  // a warp has all of the inner dimension, too: no warp waits for another one of its block
  kPairs,  // two warps have the same units, each half of the inner dimension: they exchange sums, each updates half the rows
};
// If a row of U is long, U does not fit in the registers of as few warps as kWhole has.
TAGRANK_EVERYWHERE constexpr Division division_for(int row_bytes) {
  return row_bytes <= 512 ? Division::kWhole : Division::kPairs;
}

// For numbers of kBytes bytes. With kQuads_, which needs kPairs, three groups have two pairs of warps instead of three. Each pair
// has a group of its own and half of the gates of the third one: i and f, or g and o. So a warp has three fragments of U in a
// slice instead of two, and there are fewer warps, with more registers each. The four warps exchange the sums of the third group.
template <typename S, int kBytes, bool kQuads_ = false>
struct ForwardLayout {
  static constexpr bool kQuads = kQuads_, kPairs = division_for(S::kPadded * kBytes) == Division::kPairs;
  static constexpr int kWarps = kQuads ? S::kGroups / 3 * 4 : kPairs ? 2 * S::kGroups : S::kGroups;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kCells = kPairs && !kQuads ? 1 : 2;  // of a lane in each tile
  static constexpr int kInner = kPairs ? S::kPadded / 2 : S::kPadded;  // what a warp has of the inner dimension
  static constexpr int kSlice = slice_numbers(kBytes), kSlices = kInner / kSlice;
  // With kQuads, the warps of a pair have every second slice, so that both have some of what each mailbox counts.
  static constexpr int kSliceStep = kQuads ? 2 : 1;
  static constexpr int kFragments = kQuads ? 3 : 2;  // of U in each slice of a warp
  // The fragments of all slices, and for how many a thread has registers, 8 for each. The others are in shared memory. In
  // float32, where the library's H ends at 256, all are in registers.
  static constexpr int kAll = kSlices * kFragments, kMostHeld = kBytes == 4 ? kAll : kQuads ? 20 : kThreads <= 256 ? 16 : 8;
  static constexpr int kHeld = kAll < kMostHeld ? kAll : kMostHeld, kInMemory = kAll - kHeld;
  // So many of the latter are on their way at a time.
  static constexpr int kFetched = kQuads ? 2 : 4;
  static_assert(!kQuads || (kPairs && S::kTiles == 1 && S::kGroups % 3 == 0), "pairs of warps share a third group");

  // Fragments in memory are spread among the others, the first one is in memory: how many of those before n are, whether n is,
  // and which n a number of them is.
  TAGRANK_EVERYWHERE static constexpr int memory_before(int n) { return (n * kInMemory + kAll - 1) / kAll; }
  TAGRANK_EVERYWHERE static constexpr bool in_memory(int n) { return memory_before(n + 1) > memory_before(n); }
  TAGRANK_EVERYWHERE static constexpr int from_memory(int number) { return number * kAll / kInMemory; }

  // The hidden unit of a lane's cells. Row g = lane / 4 of a matrix fragment is unit g of the warp's group. With kQuads, cell 1
  // is in the third group.
  TAGRANK_EVERYWHERE static constexpr int unit(int warp, int lane, int i = 0) {
    const int group = kQuads ? warp / 4 * 3 + (i == 0 ? side(warp) : 2) : kPairs ? warp / 2 : warp;
    return group * kGroup + lane / 4;
  }
  // kQuads: which pair of the two a warp is of.
  TAGRANK_EVERYWHERE static constexpr int side(int warp) { return warp / 2 % 2; }
  // kQuads: whether a lane's cell 1 is its own. The other half of them belongs to the warp of the other pair, to lane ^ 2.
  TAGRANK_EVERYWHERE static constexpr bool owns(int warp, int lane) { return lane % 4 / 2 == side(warp); }
  // The gate in the upper or lower half of a fragment.
  TAGRANK_EVERYWHERE static constexpr int gate(int warp, int fragment, int lower) {
    return 2 * (fragment == 2 ? side(warp) : fragment) + lower;
  }
  // The batch row of a lane's cell i in a tile. With q = lane % 4, the product leaves sums of the rows 2q and 2q + 1 in a lane.
  // In a pair, the even warp updates row 2q, the odd warp row 2q + 1.
  TAGRANK_EVERYWHERE static constexpr int row(int warp, int lane, int tile, int i) {
    return kTile * tile + 2 * (lane % 4) + (kPairs ? warp % 2 : i);
  }
  // The first of the hidden states, 16 bytes of them, that a lane multiplies in a slice.
  TAGRANK_EVERYWHERE static constexpr int inner(int warp, int lane, int slice) {
    if (kQuads) return (2 * slice + warp % 2) * kSlice + lane % 4 * (kSlice / 4);
    return (kPairs ? warp % 2 * kInner : 0) + slice * kSlice + lane % 4 * (kSlice / 4);
  }
};

// Forward: where h is in shared memory, in bytes: at(row, number). A piece is 16 bytes of a row. Eight lanes that read at once have two
// neighbouring rows and four neighbouring pieces, which are in different banks.
template <typename S, int kNumber, bool kMatrices>
struct States {
  // Row after row.
  static constexpr int kRow = padded_row(S::kPadded, kNumber);    // in numbers
  static constexpr int kPieces = kRow * kNumber / 16;             // of a row, some of which pad it
  static constexpr int kPieceBytes = 16, kSliceBytes = 64;        // from a piece and a slice to the next
  static constexpr int kTileBytes = kTile * kRow * kNumber, kBytes = S::kRows * kRow * kNumber;
  TAGRANK_EVERYWHERE static constexpr int at(int row, int number) { return (row * kRow + number) * kNumber; }
};
template <typename S, int kNumber>
struct States<S, kNumber, true> {
  // Matrices of eight rows and one piece, 128 bytes each. So what a warp sends to a block at once lies together: all rows, or
  // all even or all odd ones. A message to another multiprocessor has up to 32 bytes that lie together.
  static constexpr int kPieces = S::kPadded * kNumber / 16;
  static constexpr int kPieceBytes = 128, kSliceBytes = 4 * kPieceBytes;
  static constexpr int kTileBytes = kPieces * kPieceBytes, kBytes = S::kTiles * kTileBytes;
  TAGRANK_EVERYWHERE static constexpr int at(int row, int number) {
    const int r = row % kTile, byte = number * kNumber, piece = byte / 16, column = ((r / 2) ^ piece % 4) + r % 2 * 4;
    return row / kTile * kTileBytes + piece * kPieceBytes + column * 16 + byte % 16;
  }
};

// Backward: the hidden unit of a lane. Row g = lane / 4 of a matrix fragment is hidden unit g of the warp's group.
TAGRANK_EVERYWHERE constexpr int unit_of(int warp, int lane) { return warp / 2 * kGroup + lane / 4; }
// The even warp of a group has the even tiles, the odd warp the odd tiles; a lane has rows 2q and 2q + 1 of each.
// Tile i of a warp:
TAGRANK_EVERYWHERE constexpr int tile_of(int warp, int i) { return 2 * i + warp % 2; }
// Row 2q + which of tile i of a warp:
TAGRANK_EVERYWHERE constexpr int backward_row(int warp, int lane, int i, int which) {
  return kTile * tile_of(warp, i) + 2 * (lane % 4) + which;
}
// The inner dimension is the gates of a block, the four gates of a unit next to each other. In 16 bit, U passes through shared
// memory, which holds the slices in the order in which fragments read them: position `at` of a slice holds this element.
TAGRANK_EVERYWHERE constexpr int staged_inner(int slice, int at) {
  return slice * slice_numbers(2) + at % 8 / 2 * 8 + at / 8 * 2 + at % 2;
}
// The outer dimension is all hidden units of the cluster, in groups that each belong to one block. A stripe of a warp is one
// fragment: two groups, `lower` = 0 and 1.
TAGRANK_EVERYWHERE constexpr int group_of(int warp, int stripe, int stripes, int lower) {
  return (warp * stripes + stripe) * 2 + lower;
}

}  // namespace tagrank::cuda
