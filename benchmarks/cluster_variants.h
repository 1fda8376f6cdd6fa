// The variants of both passes of the cluster kernels in bfloat16, and the C interface by which cluster_variants.py runs
// them: on a GPU (cluster_variants.cu), or on the host (tests/recurrence/variants_host.cpp).
#pragma once

#include <cstdint>
#include <vector>

#include "backward.h"
#include "forward.h"

namespace tagrank::cuda {

// One kernel: its pass, its name, H, the rows and the blocks of a cluster, the threads and the shared memory of a block, the messages to
// other multiprocessors that a send of a warp makes, and what runs it.
template <typename Run>
struct Entry {
  const char *pass, *name;
  int hidden, rows, blocks, threads, shared, packets;
  Run run;
};

// A send of a warp is 32 lanes of 4 bytes (pairs of warps) or 16 bytes. Of each row of h a warp has 16 bytes, and rows are
// apart. In matrices, what is for one block lies together. A message has up to 32 bytes.
template <typename S, typename V>
constexpr int packets_of_send() {
  const int bytes = ForwardLayout<S, 2>::kPairs || V::kShort ? 4 : 16;
  return S::kPadded == S::kUnits ? 0 : kLanes * bytes / (V::kMatrices ? 32 : 16);
}

// H = 768 takes 48 units of each of 16 blocks.
template <int kPadded, int kTiles>
using SizesOf = Sizes<kPadded, kTiles, kPadded == 768 ? 48 : kUnits>;

// The entries of all variants for one size: Runner::forward<S, V>() and Runner::backward<S, V>() are what runs them.
template <typename Runner, int kPadded, int kTiles, typename Entries>
void add_forward(Entries& entries) {
  const auto add = [&](const char* name, auto variant, auto sizes) {
    using V = decltype(variant);
    using S = decltype(sizes);
    entries.push_back({"forward", name, S::kPadded, S::kRows, S::kPadded / S::kUnits, ForwardLayout<S, 2, V::kQuads>::kThreads,
                       Forward<BFloat16, S, V>::kShared, packets_of_send<S, V>(), Runner::template forward<S, V>()});
  };
  // With H = 768, 8 of 12 slices of U are in shared memory.
  using S = SizesOf<kPadded, kTiles>;
  if constexpr (kPadded <= 512) add("present", Present{}, S{});
  add("full", Variant<true>{}, S{});
  add("matrices", Variant<true, 1, true>{}, S{});
  if constexpr (kPadded <= 256) add("short", Variant<true, 1, true, true>{}, S{});
  // The others are for few rows: with more, most of a step is no waiting, and threads lack registers.
  if constexpr (kPadded <= 512 && kTiles == 1) {
    add("halves", Variant<true, 2, true>{}, S{});
    add("parts", Variant<true, kEachBlock, true>{}, S{});
    if constexpr (kPadded <= 256) add("short-halves", Variant<true, 2, true, true>{}, S{});
  }
  if constexpr (kPadded == 768) {
    add("quads", Variant<true, 1, true, false, true>{}, S{});
    add("quad-halves", Variant<true, 2, true, false, true>{}, S{});
    add("quad-quarters", Variant<true, 4, true, false, true>{}, S{});
  }
  // Fewer blocks, which send less: one for H = 128, four for H = 256.
  if constexpr (kPadded == 128 && kTiles == 1) add("fat", Variant<true, 1, true>{}, Sizes<kPadded, kTiles, 128>{});
  if constexpr (kPadded == 256 && kTiles == 1) add("fat", Variant<true, 1, true>{}, Sizes<kPadded, kTiles, 64>{});
}

template <typename Runner, int kPadded, int kTiles, typename Entries>
void add_backward(Entries& entries) {
  using S = SizesOf<kPadded, kTiles>;
  const auto add = [&](const char* name, auto variant) {
    using V = decltype(variant);
    using Pass = Backward<BFloat16, S, V>;
    // A send of a warp is 32 lanes of 8 or 16 bytes that lie together.
    entries.push_back({"backward", name, S::kPadded, S::kRows, S::kPadded / S::kUnits, Pass::kThreads, Pass::kShared,
                       V::kHalf ? 8 : 16, Runner::template backward<S, V>()});
  };
  if constexpr (kPadded == 768) {
    // What multiplies more stripes at a time lacks registers.
    add("stripes", BackwardVariant<true, 1>{});
    add("half-stripes", BackwardVariant<true, 1, true>{});
    add("half-pairs", BackwardVariant<true, 2, true>{});
  } else {
    add("present", BackwardPresent{});
    add("full", BackwardVariant<true>{});
    if constexpr (kPadded == 512 && kTiles == 1) add("stripes", BackwardVariant<true, 1>{});
    add("half", BackwardVariant<true, kAllStripes, true>{});
    // With H = 128 a warp has one stripe.
    if constexpr (kPadded > 128) add("half-stripes", BackwardVariant<true, 1, true>{});
  }
}

// The backward pass has at most four tiles.
template <typename Runner, int kPadded, int kTiles, typename Entries>
void add_variants(Entries& entries) {
  add_forward<Runner, kPadded, kTiles>(entries);
  if constexpr (kTiles <= 4) add_backward<Runner, kPadded, kTiles>(entries);
}

}  // namespace tagrank::cuda

// entries() is what the file that includes this one has.
#define TAGRANK_VARIANTS_INTERFACE(entries)                                                                          \
  extern "C" {                                                                                                       \
  int variants_count() { return static_cast<int>(entries().size()); }                                                \
  const char* variants_pass(int index) { return entries()[index].pass; }                                             \
  const char* variants_name(int index) { return entries()[index].name; }                                             \
  void variants_sizes(int index, int* sizes) {                                                                       \
    const auto& entry = entries()[index];                                                                            \
    const int all[] = {entry.hidden, entry.rows, entry.blocks, entry.threads, entry.shared, entry.packets};          \
    for (int i = 0; i < 6; ++i) sizes[i] = all[i];                                                                   \
  }                                                                                                                  \
  }
