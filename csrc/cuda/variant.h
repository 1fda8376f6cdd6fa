// How kernels of the forward pass differ from the one that the library launches. benchmarks/cluster_variants.cu has the
// others: until a GPU has shown that one is right and faster, only the benchmark runs them.
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
template <bool kFull_, int kBoxes_ = 1, bool kMatrices_ = false, bool kShort_ = false>
struct Variant {
  static constexpr bool kFull = kFull_, kMatrices = kMatrices_, kShort = kShort_;
  static constexpr int kBoxes = kBoxes_;
};
using Present = Variant<false>;

}  // namespace tagrank::cuda
