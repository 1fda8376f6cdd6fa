// A block of a cluster: its threads, its shared memory, and the access to the other blocks. A schedule that is written with
// these classes runs on a GPU and on the host. On the host a block is one thread, which runs its warps one after another. A
// cluster is as many threads as it has blocks, and these threads really wait for each other.
#pragma once

#include <cstdint>
#include <cstring>

#include "plan.h"
#include "target.h"
#include "warp.h"

#ifndef __CUDACC__
#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>
#endif

namespace tagrank::cuda {

constexpr int kBoxBytes = 8;  // of shared memory, for a mailbox
constexpr int kMailBytes = 2 * kBoxBytes;

#ifdef __CUDACC__

class Block {
 public:
  TAGRANK_DEVICE explicit Block(unsigned char* shared) : shared_(shared) {
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank_));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks_));
    // The shuffle makes the compiler keep the address in a register. It would compute it again before each use, from a
    // special register that takes some 20 clocks to read.
    base_ = __shfl_sync(0xffffffff, static_cast<uint32_t>(__cvta_generic_to_shared(shared)), 0);
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

  // store(i, load(i)) for i in [0, kCount), shared out to the block's kThreads threads. Each thread issues all its loads before its
  // first store.
  template <int kCount, int kThreads, typename Load, typename Store>
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

  // A barrier among kWarps neighbouring warps, the first of which is a multiple of kWarps.
  template <int kWarps>
  TAGRANK_DEVICE void sync_among() const {
    constexpr int kThreads = 32 * kWarps;
    asm volatile("bar.sync %0, %1;" : : "r"(1 + static_cast<int>(threadIdx.x) / kThreads), "n"(kThreads) : "memory");
  }

  // A barrier of the cluster in two halves: what a block wrote before arrive() is seen by all blocks after wait().
  TAGRANK_DEVICE void arrive() const { asm volatile("barrier.cluster.arrive.release;" : : : "memory"); }
  TAGRANK_DEVICE void wait() const { asm volatile("barrier.cluster.wait.acquire;" : : : "memory"); }

  // The V, of 4, 8 or 16 bytes, at a multiple of its size in this block's shared memory; and its replacement.
  template <typename V>
  TAGRANK_DEVICE V read(int at) const {
    static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16, "one load");
    uint32_t word[sizeof(V) / 4];
    if constexpr (sizeof(V) == 16) {
      asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                   : "r"(base_ + at)
                   : "memory");
    } else if constexpr (sizeof(V) == 8) {
      asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "r"(base_ + at) : "memory");
    } else {
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word[0]) : "r"(base_ + at) : "memory");
    }
    V value;
    memcpy(&value, word, sizeof value);
    return value;
  }
  template <typename V>
  TAGRANK_DEVICE void write(int at, const V& value) const {
    static_assert(sizeof(V) == 8 || sizeof(V) == 16, "one store");
    uint32_t word[sizeof(V) / 4];
    memcpy(word, &value, sizeof value);
    if constexpr (sizeof(V) == 16) {
      asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};"
                   :
                   : "r"(base_ + at), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
                   : "memory");
    } else {
      asm volatile("st.shared.v2.b32 [%0], {%1,%2};" : : "r"(base_ + at), "r"(word[0]), "r"(word[1]) : "memory");
    }
  }

  // Mailboxes that count the bytes that other blocks send to this one: two of them, 0 and 1, if all blocks send to the same
  // one. A mailbox is full when it has received `bytes` bytes, and then begins again. They take kBoxBytes of shared memory
  // each, from `at` on, a multiple of 8. Those before `first` are not open: reopen() opens them.
  // Before the first send(), the cluster must meet: arrive() and wait().
  TAGRANK_DEVICE void open_mail(int at, int bytes, int boxes = 2, int first = 0) {
    mail_ = at;
    mail_bytes_ = bytes;
    if (threadIdx.x == 0) {
      for (int box = 0; box < boxes; ++box) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" : : "r"(mail(box)) : "memory");
      }
      asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
      for (int box = first; box < boxes; ++box) expect(box);
    }
  }
  // Waits until a mailbox is full for the time `count`, counted from 0. What was sent can then be read.
  // The acquire is of this block: an acquire of the cluster would also empty the first-level cache of global memory.
  TAGRANK_DEVICE void await(int box, uint32_t count) const {
    for (uint32_t full = 0; !full;) {
      asm volatile(
          "{.reg .pred full; mbarrier.try_wait.parity.shared::cta.b64 full, [%1], %2; selp.u32 %0, 1, 0, full;}"
          : "=r"(full)
          : "r"(mail(box)), "r"(count & 1)
          : "memory");
    }
  }
  // Lets a mailbox become full once more. To be called in one warp, after its await(). A kernel calls it before its next send()
  // or, as below, after it.
  TAGRANK_DEVICE void reopen(int box) const {
    if (threadIdx.x % kLanes == 0) expect(box);
  }
  // The same for the mailboxes [first, first + count) in the lanes of a warp. A mailbox that is not open counts what comes all the
  // same, but cannot become full.
  TAGRANK_DEVICE void reopen(int first, int count, int lane) const {
    if (lane < count) expect(first + lane);
  }
  // Writes to the shared memory of block `rank`, from `at` on, and counts the bytes in a mailbox of that block.
  TAGRANK_DEVICE void send(int rank, int at, uint32_t value, int box) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 :
                 : "r"(map(rank, base_ + at)), "r"(value), "r"(map(rank, mail(box)))
                 : "memory");
  }
  TAGRANK_DEVICE void send(int rank, int at, const Words4& value, int box) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];"
                 :
                 : "r"(map(rank, base_ + at)), "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]),
                   "r"(value.word[3]), "r"(map(rank, mail(box)))
                 : "memory");
  }

  // The same with the address of a block that was computed before.
  TAGRANK_DEVICE uint32_t peer(int rank) const { return map(rank, base_); }
  TAGRANK_DEVICE void send_to(uint32_t peer, int at, uint32_t value, int box) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 :
                 : "r"(peer + at), "r"(value), "r"(peer + mail_ + kBoxBytes * box)
                 : "memory");
  }
  TAGRANK_DEVICE void send_to(uint32_t peer, int at, const Words2& value, int box) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];"
                 :
                 : "r"(peer + at), "r"(value.word[0]), "r"(value.word[1]), "r"(peer + mail_ + kBoxBytes * box)
                 : "memory");
  }
  TAGRANK_DEVICE void send_to(uint32_t peer, int at, const Words4& value, int box) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];"
                 :
                 : "r"(peer + at), "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]), "r"(value.word[3]),
                   "r"(peer + mail_ + kBoxBytes * box)
                 : "memory");
  }

  // A number that is the same in all lanes, in a register: the compiler cannot know how to compute it again.
  TAGRANK_DEVICE static int keep(int value) { return __shfl_sync(0xffffffff, value, 0); }
  TAGRANK_DEVICE static int64_t keep(int64_t value) { return __shfl_sync(0xffffffff, value, 0); }

 private:
  TAGRANK_DEVICE void expect(int box) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :
                 : "r"(mail(box)), "r"(mail_bytes_)
                 : "memory");
  }
  TAGRANK_DEVICE uint32_t mail(int box) const { return base_ + mail_ + kBoxBytes * box; }
  TAGRANK_DEVICE static uint32_t map(int rank, uint32_t mine) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(mine), "r"(rank));
    return address;
  }

  unsigned char* shared_;
  int rank_, blocks_;
  uint32_t base_;
  int mail_, mail_bytes_;
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

#ifdef TAGRANK_WITHOUT_WAITS
constexpr bool kWaits = false;
#else
constexpr bool kWaits = true;
#endif
// Ends the program: a GPU would hang, or compute with what is not there.
inline void require(bool right) {
  if (kWaits && !right) std::abort();
}

// A mailbox as an mbarrier of one arrival: in a phase it is opened once, which adds the bytes that it waits for, and receives
// bytes, which may come before. With both done the next phase begins. Only a message orders what its sender did before it and
// what its receiver does after it has waited; opening a mailbox orders nothing, as on a GPU.
class Mailbox {
 public:
  void open(int bytes) {
    change(std::memory_order_relaxed, [&](State& state) {
      require(!state.open);
      state.open = true;
      state.missing += bytes;
    });
  }
  void receive(int bytes) {
    change(std::memory_order_acq_rel, [&](State& state) { state.missing -= bytes; });
  }
  // Waits until phase `count`, from 0 on, is over; -1 is the one before the first. A GPU knows a phase by its last bit only, so
  // that a mailbox that is two phases ahead would be taken for one that is not full.
  void await(uint32_t count) const {
    uint32_t phase;
    while (kWaits && ((phase = state_.load(std::memory_order_acquire).phase) & 1) == (count & 1)) std::this_thread::yield();
    require(!kWaits || phase == count + 1);
  }

 private:
  struct State {
    uint32_t phase : 31, open : 1;
    int32_t missing;  // bytes
  };
  template <typename Change>
  void change(std::memory_order order, const Change& change) {
    State before = state_.load(std::memory_order_relaxed), after;
    do {
      after = before;
      change(after);
      if (after.open && after.missing == 0) {
        after.phase += 1;
        after.open = false;
      }
    } while (!state_.compare_exchange_weak(before, after, order, std::memory_order_relaxed));
  }
  std::atomic<State> state_{State{0, 0, 0}};
};

// The barrier of a cluster, and its mailboxes. Each block waits with the number of times that it has arrived.
class Meeting {
 public:
  explicit Meeting(int blocks) : blocks_(blocks), mail_(kMostBoxes * blocks) {}
  void arrive() { arrived_.fetch_add(1, std::memory_order_release); }
  void wait(int times) const {
    while (arrived_.load(std::memory_order_acquire) < times * blocks_) std::this_thread::yield();
  }
  Mailbox& mail(int rank, int box) { return mail_[kMostBoxes * rank + box]; }

 private:
  static constexpr int kMostBoxes = 2 * kMaxBlocks;
  const int blocks_;
  std::atomic<int> arrived_{0};
  std::vector<Mailbox> mail_;
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
  template <int kCount, int, typename Load, typename Store>
  void copy(const Load& load, const Store& store) const {
    for (int i = 0; i < kCount; ++i) store(i, load(i));
  }
  void sync() const {}
  template <int>
  void sync_among() const {}
  void arrive() {
    meeting_.arrive();
    ++arrivals_;
  }
  void wait() const {
    if (kWaits) meeting_.wait(arrivals_);
  }
  template <typename V>
  V read(int at) const {
    return *reinterpret_cast<const V*>(shared() + at);
  }
  template <typename V>
  void write(int at, const V& value) const {
    *reinterpret_cast<V*>(shared() + at) = value;
  }
  void open_mail(int, int bytes, int boxes = 2, int first = 0) {
    mail_bytes_ = bytes;
    for (int box = first; box < boxes; ++box) reopen(box);
  }
  void await(int box, uint32_t count) const { meeting_.mail(rank_, box).await(count); }
  void reopen(int box) const { meeting_.mail(rank_, box).open(mail_bytes_); }
  void reopen(int first, int count, int lane) const {
    if (lane < count) reopen(first + lane);
  }
  uint32_t peer(int rank) const { return static_cast<uint32_t>(rank); }
  template <typename V>
  void send_to(uint32_t peer, int at, const V& value, int box) const {
    send(static_cast<int>(peer), at, value, box);
  }
  template <typename V>
  static V keep(V value) {
    return value;
  }
  template <typename V>
  void send(int rank, int at, const V& value, int box) const {
    std::memcpy(shared_[rank] + at, &value, sizeof value);
    meeting_.mail(rank, box).receive(sizeof value);
  }

 private:
  const int rank_, cluster_;
  const std::vector<unsigned char*>& shared_;
  Meeting& meeting_;
  int arrivals_ = 0;
  int mail_bytes_ = 0;
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
