#include "capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace tagrank::cpu {
namespace {

Capability widest() {
#if defined(TAGRANK_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Capability::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::avx2;
#endif
  return Capability::portable;
}

Capability choose() {
  const Capability best = widest();
  const char* wish = std::getenv("TAGRANK_CPU_CAPABILITY");
  if (wish == nullptr) return best;
  for (const Capability one : {Capability::portable, Capability::avx2, Capability::avx512}) {
    if (wish == std::string(name(one)) && one <= best) return one;
  }
  throw std::runtime_error("TAGRANK_CPU_CAPABILITY: expected portable, avx2 or avx512, and at most " +
                           std::string(name(best)) + " on this CPU; got '" + wish + "'");
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

const char* name(Capability capability) {
  switch (capability) {
    case Capability::avx512:
      return "avx512";
    case Capability::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace tagrank::cpu
