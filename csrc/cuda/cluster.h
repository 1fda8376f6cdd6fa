// A block of a cluster: its threads, its shared memory, and the access to the other blocks. A schedule that is written with
// these classes runs on a GPU and on the host. On the host a block is one thread, which runs its warps one after another. A
// cluster is as many threads as it has blocks, and these threads really wait for each other.
#pragma once

#include <cstdint>

#include "plan.h"
#include "target.h"
#include "warp.h"

#ifndef __CUDACC__
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>
#endif

namespace tagrank::cuda {

#ifdef __CUDACC__

class Block {
 public:
  TAGRANK_DEVICE explicit Block(unsigned char* shared) : shared_(shared) {
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank_));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks_));
  }
  TAGRANK_DEVICE int rank() const { return rank_; }      // in the cluster
  TAGRANK_DEVICE int blocks() const { return blocks_; }  // of the cluster
  TAGRANK_DEVICE int cluster() const { return blockIdx.x / blocks_; }
  TAGRANK_DEVICE unsigned char* shared() const { return shared_; }

  // function(i) for i in [0, n), shared out to the block's threads.
  template <typename Function>
  TAGRANK_DEVICE void share(int n, const Function& function) const {
    for (int i = threadIdx.x; i < n; i += blockDim.x) function(i);
  }

  // store(i, load(i)) for i in [0, kCount), shared out to the block's threads. Each thread issues all its loads before its
  // first store.
  template <int kCount, typename Load, typename Store>
  TAGRANK_DEVICE void copy(const Load& load, const Store& store) const {
    static_assert(kCount % kThreads == 0, "every thread copies as much");
    Words4 values[kCount / kThreads];
#pragma unroll
    for (int i = 0; i < kCount / kThreads; ++i) values[i] = load(i * kThreads + static_cast<int>(threadIdx.x));
#pragma unroll
    for (int i = 0; i < kCount / kThreads; ++i) store(i * kThreads + static_cast<int>(threadIdx.x), values[i]);
  }

  // A barrier among the block's threads.
  TAGRANK_DEVICE void sync() const { __syncthreads(); }

  // A barrier between the warps 2n and 2n+1.
  TAGRANK_DEVICE void sync_pair() const {
    asm volatile("bar.sync %0, 64;" : : "r"(1 + static_cast<int>(threadIdx.x) / 64) : "memory");
  }

  // A barrier of the cluster in two halves: what a block wrote before arrive() is seen by all blocks after wait(). arrive()
  // also waits for writes to global memory, so these are better issued after it.
  TAGRANK_DEVICE void arrive() const { asm volatile("barrier.cluster.arrive.release;" : : : "memory"); }
  TAGRANK_DEVICE void wait() const { asm volatile("barrier.cluster.wait.acquire;" : : : "memory"); }

  // Writes to the shared memory of block `rank`, at the offset that `mine` has in this block's shared memory.
  TAGRANK_DEVICE void put(int rank, const void* mine, const Words4& value) const {
    asm volatile("st.shared::cluster.v4.b32 [%0], {%1,%2,%3,%4};"
                 :
                 : "r"(address_in(rank, mine)), "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]),
                   "r"(value.word[3])
                 : "memory");
  }
  TAGRANK_DEVICE void put(int rank, const void* mine, const Float2& value) const {
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};"
                 :
                 : "r"(address_in(rank, mine)), "f"(value.at[0]), "f"(value.at[1])
                 : "memory");
  }

 private:
  TAGRANK_DEVICE static uint32_t address_in(int rank, const void* mine) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(mine))), "r"(rank));
    return address;
  }

  unsigned char* shared_;
  int rank_, blocks_;
};

// The state that each warp of the block keeps in registers.
template <typename State>
class Warps {
 public:
  TAGRANK_DEVICE explicit Warps(int) {}
  // function(index, state) in each warp.
  template <typename Function>
  TAGRANK_DEVICE void each(const Function& function) {
    function(static_cast<int>(threadIdx.x) / kLanes, state_);
    __syncwarp();
  }

 private:
  State state_;
};

#else

// The barrier of a cluster. Each block waits with the number of times that it has arrived.
class Meeting {
 public:
  explicit Meeting(int blocks) : blocks_(blocks) {}
  void arrive() { arrived_.fetch_add(1, std::memory_order_release); }
  void wait(int times) const {
    while (arrived_.load(std::memory_order_acquire) < times * blocks_) std::this_thread::yield();
  }

 private:
  const int blocks_;
  std::atomic<int> arrived_{0};
};

class Block {
 public:
  Block(int rank, int cluster, const std::vector<unsigned char*>& shared, Meeting& meeting)
      : rank_(rank), cluster_(cluster), shared_(shared), meeting_(meeting) {}
  int rank() const { return rank_; }
  int blocks() const { return static_cast<int>(shared_.size()); }
  int cluster() const { return cluster_; }
  unsigned char* shared() const { return shared_[rank_]; }
  template <typename Function>
  void share(int n, const Function& function) const {
    for (int i = 0; i < n; ++i) function(i);
  }
  template <int kCount, typename Load, typename Store>
  void copy(const Load& load, const Store& store) const {
    for (int i = 0; i < kCount; ++i) store(i, load(i));
  }
  void sync() const {}
  void sync_pair() const {}
  void arrive() {
    meeting_.arrive();
    ++arrivals_;
  }
  void wait() const {
#ifndef TAGRANK_WITHOUT_BARRIER
    meeting_.wait(arrivals_);
#endif
  }
  template <typename V>
  void put(int rank, const void* mine, const V& value) const {
    std::memcpy(shared_[rank] + (static_cast<const unsigned char*>(mine) - shared()), &value, sizeof value);
  }

 private:
  const int rank_, cluster_;
  const std::vector<unsigned char*>& shared_;
  Meeting& meeting_;
  int arrivals_ = 0;
};

template <typename State>
class Warps {
 public:
  explicit Warps(int warps) : states_(warps) {}
  template <typename Function>
  void each(const Function& function) {
    for (int warp = 0; warp < static_cast<int>(states_.size()); ++warp) function(warp, states_[warp]);
  }

 private:
  std::vector<State> states_;
};

#endif

}  // namespace tagrank::cuda
