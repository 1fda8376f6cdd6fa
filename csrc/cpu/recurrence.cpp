#include "recurrence.h"

#include "capability.h"

namespace tagrank::cpu {

#define TAGRANK_DECLARE(isa)                                   \
  namespace isa {                                              \
  template <typename T>                                        \
  void forward(const ForwardCall<T>&, const Threads&);         \
  template <typename T>                                        \
  void backward(const BackwardCall<T>&, const Threads&);       \
  }
TAGRANK_DECLARE(portable)
#if defined(TAGRANK_X86)
TAGRANK_DECLARE(avx2)
TAGRANK_DECLARE(avx512)
#endif

template <typename T>
void forward(const ForwardCall<T>& call, const Threads& threads) {
  switch (capability()) {
#if defined(TAGRANK_X86)
    case Capability::avx512:
      return avx512::forward(call, threads);
    case Capability::avx2:
      return avx2::forward(call, threads);
#endif
    default:
      return portable::forward(call, threads);
  }
}

template <typename T>
void backward(const BackwardCall<T>& call, const Threads& threads) {
  switch (capability()) {
#if defined(TAGRANK_X86)
    case Capability::avx512:
      return avx512::backward(call, threads);
    case Capability::avx2:
      return avx2::backward(call, threads);
#endif
    default:
      return portable::backward(call, threads);
  }
}

template void forward(const ForwardCall<float>&, const Threads&);
template void forward(const ForwardCall<double>&, const Threads&);
template void forward(const ForwardCall<bfloat16>&, const Threads&);
template void backward(const BackwardCall<float>&, const Threads&);
template void backward(const BackwardCall<double>&, const Threads&);
template void backward(const BackwardCall<bfloat16>&, const Threads&);

}  // namespace tagrank::cpu
