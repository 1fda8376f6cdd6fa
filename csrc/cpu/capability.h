// Which instruction set the kernels use on this CPU.
#pragma once

#if defined(__GNUC__) && defined(__x86_64__)
#define TAGRANK_X86 1
#endif

namespace tagrank::cpu {

enum class Capability { portable, avx2, avx512, amx };

// The instruction set that the environment variable TAGRANK_CPU_CAPABILITY names or, if it is not set, the widest that the
// CPU has. Read once. Throws std::runtime_error if the variable names no instruction set, or one that the CPU lacks.
Capability capability();

// "portable", "avx2", "avx512" or "amx".
const char* name(Capability capability);

}  // namespace tagrank::cpu
