// How kernels may differ from those that the library launches. Until a GPU has shown that one is right and faster, only
// benchmarks/cluster_variants.cu has them.
#pragma once

namespace tagrank::cuda {

// kFull: the kernel serves H = kPadded only. Strides and the number of blocks are constants, no send has a condition, all
//   addresses of other blocks are computed once, and the sums of a product begin with gates_x. In 16 bit only.
// kBoxes: the mailboxes of each buffer of h. With more than one, a warp multiplies what some blocks have sent while it waits
//   for others; the block's own part comes first.
//   kEachBlock stands for a mailbox for each block.
// kMatrices: h is in shared memory in matrices of eight rows, see States.
constexpr int kEachBlock = 0;
// kShort: where a warp has all of the inner dimension, lanes send 4 bytes each to every block, and do not put together 16 bytes
//   by shuffles first.
// kQuads: three groups of units have four warps, see ForwardLayout.
template <bool kFull_, int kBoxes_ = 1, bool kMatrices_ = false, bool kShort_ = false, bool kQuads_ = false>
struct Variant {
  static constexpr bool kFull = kFull_, kMatrices = kMatrices_, kShort = kShort_, kQuads = kQuads_;
  static constexpr int kBoxes = kBoxes_;
};
using Present = Variant<false>;

// The same for the backward pass.
// kFull: as above. Besides, a lane has one hidden unit and a warp a pair of rows, so that its accesses to global memory lie
//   together and every warp has rows; and the gradient of h_n lies in a slot where the last step finds it.
// kTogether: how many stripes of a product a warp computes before it sends them.
//   kAllStripes stands for all.
// kHalf: parts of dh are exchanged in 16 bit.
constexpr int kAllStripes = 0;
template <bool kFull_, int kTogether_ = kAllStripes, bool kHalf_ = false>
struct BackwardVariant {
  static constexpr bool kFull = kFull_, kHalf = kHalf_;
  static constexpr int kTogether = kTogether_;
};
using BackwardPresent = BackwardVariant<false>;

}  // namespace tagrank::cuda
