// Which instruction set the kernels use on this CPU.
#pragma once

#if defined(__GNUC__) && defined(__x86_64__)
#define TAGRANK_X86 1
#endif

namespace tagrank::cpu {

enum class Capability { portable, avx2, avx512, amx };

// The widest that the CPU has, or the one that the environment variable TAGRANK_CPU_CAPABILITY names; read once.
// Throws std::runtime_error where it names none, or one that the CPU lacks.
Capability capability();

// "portable", "avx2", "avx512" or "amx".
const char* name(Capability capability);

}  // namespace tagrank::cpu
