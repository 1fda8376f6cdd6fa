#include "capability.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(TAGRANK_X86) && defined(TAGRANK_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tagrank::cpu {
namespace {

#if defined(TAGRANK_X86) && defined(TAGRANK_AMX)
// Whether the CPU multiplies tiles of bfloat16 and the system allows this process to use them. A process must request that.
bool may_use_tiles() {
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBfloat16) == 0 || (d & kTiles) == 0) return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#endif

Capability widest() {
#if defined(TAGRANK_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
#if defined(TAGRANK_AMX)
    if (may_use_tiles()) return Capability::amx;
#endif
    return Capability::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Capability::avx2;
#endif
  return Capability::portable;
}

Capability choose() {
  const Capability best = widest();
  const char* requested = std::getenv("TAGRANK_CPU_CAPABILITY");
  if (requested == nullptr) return best;
  for (const Capability candidate : {Capability::portable, Capability::avx2, Capability::avx512, Capability::amx}) {
    if (requested == std::string(name(candidate)) && candidate <= best) return candidate;
  }
  throw std::runtime_error("TAGRANK_CPU_CAPABILITY: expected portable, avx2, avx512 or amx, and at most " +
                           std::string(name(best)) + " on this CPU; got '" + requested + "'");
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

const char* name(Capability capability) {
  switch (capability) {
    case Capability::amx:
      return "amx";
    case Capability::avx512:
      return "avx512";
    case Capability::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace tagrank::cpu
