// Runs the schedules of csrc/cuda on the host, for test_cluster.py. Each block of a cluster is a thread, and really waits for
// the others. Built without CUDA. -DTAGRANK_PADDED=128 -DTAGRANK_TILES=2 compiles only this size, which is quick.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "backward.h"
#include "cluster_threads.h"
#include "forward.h"

using namespace tagrank::cuda;

namespace {

template <typename T, int kPadded, int kTiles>
void run_pass(const ForwardCall<Element<T>>& call) {
  using Pass = Forward<T, Sizes<kPadded, kTiles>>;
  run<Pass>(call, kTile * kTiles, Pass::kShared);
}
// The backward pass has at most four tiles.
template <typename T, int kPadded, int kTiles>
void run_pass(const BackwardCall<Element<T>>& call) {
  using S = Sizes<kPadded, kTiles < 4 ? kTiles : 4>;
  run<Backward<T, S>>(call, S::kRows, Backward<T, S>::kShared);
}

// Runs a pass with the given tiles and returns true, or returns false if these sizes were not compiled.
#define CASE(padded, tiles)   \
  case padded * 10 + tiles:   \
    run_pass<T, padded, tiles>(call); \
    return true;
template <typename T, typename Call>
bool choose(const Call& call, int tiles) {
  switch (padded(call.hidden) * 10 + tiles) {
#ifdef TAGRANK_TILES
    CASE(TAGRANK_PADDED, TAGRANK_TILES)
#else
    CASE(128, 1)
    CASE(128, 2)
    CASE(128, 4)
    CASE(128, 8)
    CASE(256, 2)
    CASE(256, 8)
#endif
  }
#ifndef TAGRANK_TILES
  // float32 goes up to 256.
  if constexpr (sizeof(Element<T>) == 2) {
    switch (padded(call.hidden) * 10 + tiles) {
      CASE(384, 1)
      CASE(384, 8)
      CASE(512, 2)
      CASE(512, 4)
    }
  }
#endif
  return false;
}
#undef CASE

// The same for a call of any numbers.
template <template <typename> typename Call>
bool choose(const void* call, Numbers numbers, int tiles) {
  switch (numbers) {
    case Numbers::kFloat16:
      return choose<Float16>(*static_cast<const Call<uint16_t>*>(call), tiles);
    case Numbers::kBFloat16:
      return choose<BFloat16>(*static_cast<const Call<uint16_t>*>(call), tiles);
    case Numbers::kTf32:
      return choose<Tf32>(*static_cast<const Call<float>*>(call), tiles);
    default:
      return choose<Tf32x3>(*static_cast<const Call<float>*>(call), tiles);
  }
}

// The part of cluster_coverage() that belongs to the forward pass, for numbers of kBytes bytes.
template <int kPadded, int kBytes>
void cover_forward(int batch, int hidden, int tiles, int* weight, int* updated) {
  using Layout = ForwardLayout<Sizes<kPadded, 1>, kBytes>;
  for (int block = 0; block < blocks_for(hidden); ++block) {
    const Slice slice = slice_of(block, hidden);
    for (int warp = 0; warp < Layout::kWarps; ++warp) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int u = Layout::unit(warp, lane);
        if (u >= slice.count) continue;
        for (int gate = 0; gate < kGates; ++gate) {
          for (int step = 0; step < Layout::kSlices; ++step) {
            for (int i = 0; i < 16 / kBytes; ++i) {
              const int inner = Layout::inner(warp, lane, step) + i;
              if (inner < hidden) ++weight[gate_row(gate, slice.first + u, hidden) * hidden + inner];
            }
          }
        }
        for (int first = 0; first < batch; first += kTile * tiles) {
          for (int tile = 0; tile < tiles; ++tile) {
            for (int i = 0; i < Layout::kCells; ++i) {
              const int row = first + Layout::row(warp, lane, tile, i);
              if (row < batch) ++updated[row * hidden + slice.first + u];
            }
          }
        }
      }
    }
  }
}

}  // namespace

extern "C" {

bool cluster_forward(const void* call, Numbers numbers, int tiles) { return choose<ForwardCall>(call, numbers, tiles); }
bool cluster_backward(const void* call, Numbers numbers, int tiles) { return choose<BackwardCall>(call, numbers, tiles); }

int cluster_blocks(int hidden) { return blocks_for(hidden); }
int cluster_padded(int hidden) { return padded(hidden); }

// The shared memory of a block of the largest kernels, in bytes.
int cluster_forward_bytes() {
  return std::max(Forward<Float16, Sizes<512, 8>>::kShared, Forward<Tf32, Sizes<256, 8>>::kShared);
}
int cluster_backward_bytes() {
  return std::max(Backward<Float16, Sizes<512, 4>>::kShared, Backward<Tf32, Sizes<256, 4>>::kShared);
}

// Counts how often each element is covered: the elements of U [4H, H] in the product of each pass, the states [B, H] that the
// forward pass updates and the backward pass differentiates, and the elements of dh [H] that each block puts. Numbers have two
// bytes, or four if H is at most 256 and `float32`.
void cluster_coverage(int batch, int hidden, bool float32, int tiles, int* forward_weight, int* backward_weight, int* updated,
                      int* differentiated, int* put) {
  const int size = padded(hidden), blocks = blocks_for(hidden), stripes = size / kWarps / 16;
  const auto cover = size == 128   ? (float32 ? cover_forward<128, 4> : cover_forward<128, 2>)
                     : size == 256 ? (float32 ? cover_forward<256, 4> : cover_forward<256, 2>)
                     : size == 384 ? cover_forward<384, 2>
                                   : cover_forward<512, 2>;
  const int slice_size = slice_numbers(float32 ? 4 : 2);
  cover(batch, hidden, tiles, forward_weight, updated);
  for (int block = 0; block < blocks; ++block) {
    const Slice slice = slice_of(block, hidden);
    for (int warp = 0; warp < kWarps; ++warp) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int u = unit_of(warp, lane);
        for (int first = 0; first < batch; first += kTile * tiles) {
          for (int i = 0; u < slice.count && i < (tiles + 1) / 2; ++i) {
            for (int which = 0; which < 2 && tile_of(warp, i) < tiles; ++which) {
              const int row = first + backward_row(warp, lane, i, which);
              if (row < batch) ++differentiated[row * hidden + slice.first + u];
            }
          }
        }
      }
      for (int stripe = 0; stripe < stripes; ++stripe) {
        for (int lower = 0; lower < 2; ++lower) {
          const int group = group_of(warp, stripe, stripes, lower);
          for (int g = 0; g < kGroup; ++g) {
            const int state = group * kGroup + g;
            if (state >= hidden) continue;
            const Slice owner = slice_of(group / kGroups, hidden);
            if (owner.first + group % kGroups * kGroup + g == state) ++put[block * hidden + state];
            for (int step = 0; step < kGates * kUnits / slice_size; ++step) {
              for (int at = 0; at < slice_size; ++at) {
                const int inner = float32 ? step * slice_size + at : staged_inner(step, at), u = inner / kGates;
                if (u < slice.count) ++backward_weight[gate_row(inner % kGates, slice.first + u, hidden) * hidden + state];
              }
            }
          }
        }
      }
    }
  }
}
}

#ifdef TAGRANK_MAIN
// Runs both passes on a small problem, for the thread sanitizer.
int main() {
  const int batch = 9, hidden = TAGRANK_PADDED - 28, steps = 4, tiles = TAGRANK_TILES;
  Example<Float16> example(batch, hidden, steps);
  ForwardCall<uint16_t>& forward = example.forward;
  forward.gates = example.gates.data();
  forward.cells = example.cells.data();
  BackwardCall<uint16_t>& backward = example.backward;
  backward.grad_output = example.output.data();
  backward.grad_output_strides[0] = batch * hidden;
  backward.grad_output_strides[1] = hidden;
  backward.grad_output_strides[2] = 1;
  backward.grad_c_n = example.c_n.data();
  const auto numbers = Numbers::kFloat16;
  return cluster_forward(&forward, numbers, tiles) && cluster_backward(&backward, numbers, tiles) ? 0 : 1;
}
#endif
