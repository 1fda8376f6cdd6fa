#include "recurrence.h"

#include <atomic>
#include <chrono>

#include "capability.h"

namespace tagrank::cpu {

#define TAGRANK_DECLARE(isa)                             \
  namespace isa {                                        \
  template <typename T>                                  \
  void forward(const ForwardCall<T>&, const Threads&);   \
  template <typename T>                                  \
  void backward(const BackwardCall<T>&, const Threads&); \
  int64_t multiply_adds(float* result);                  \
  }
TAGRANK_DECLARE(portable)
#if defined(TAGRANK_X86)
TAGRANK_DECLARE(avx2)
TAGRANK_DECLARE(avx512)
#if defined(TAGRANK_AMX)
TAGRANK_DECLARE(amx)
#endif
#endif

// The call in the namespace of the instruction set in use.
#define TAGRANK_DISPATCH(call)    \
  switch (capability()) {         \
    TAGRANK_DISPATCH_X86(call)    \
    default:                      \
      return portable::call;      \
  }
#if defined(TAGRANK_X86)
#if defined(TAGRANK_AMX)
#define TAGRANK_DISPATCH_AMX(call) \
  case Capability::amx:            \
    return amx::call;
#else
#define TAGRANK_DISPATCH_AMX(call)
#endif
#define TAGRANK_DISPATCH_X86(call) \
  TAGRANK_DISPATCH_AMX(call)       \
  case Capability::avx512:         \
    return avx512::call;           \
  case Capability::avx2:           \
    return avx2::call;
#else
#define TAGRANK_DISPATCH_X86(call)
#endif

template <typename T>
void forward(const ForwardCall<T>& call, const Threads& threads) {
  TAGRANK_DISPATCH(forward(call, threads))
}

template <typename T>
void backward(const BackwardCall<T>& call, const Threads& threads) {
  TAGRANK_DISPATCH(backward(call, threads))
}

static int64_t multiply_adds(float* result) { TAGRANK_DISPATCH(multiply_adds(result)) }

double multiply_add_rate(double seconds, const Threads& threads) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int64_t> operations{0};
  const Clock::time_point start = Clock::now(), end = start + std::chrono::duration_cast<Clock::duration>(
                                                                  std::chrono::duration<double>(seconds));
  threads.run(threads.count, [&](int64_t, int64_t) {
    volatile float sink;
    while (Clock::now() < end) {
      float result;
      operations += multiply_adds(&result);
      sink = result;
    }
    (void)sink;
  });
  return static_cast<double>(operations) / std::chrono::duration<double>(Clock::now() - start).count() / 1e9;
}

template void forward(const ForwardCall<float>&, const Threads&);
template void forward(const ForwardCall<double>&, const Threads&);
template void forward(const ForwardCall<bfloat16>&, const Threads&);
template void backward(const BackwardCall<float>&, const Threads&);
template void backward(const BackwardCall<double>&, const Threads&);
template void backward(const BackwardCall<bfloat16>&, const Threads&);

}  // namespace tagrank::cpu
