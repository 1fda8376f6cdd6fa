// AVX-512: 32 registers, so that tiles of 6 rows by 4 vectors leave 8 for what they are made from.
#include "capability.h"
#if defined(TAGRANK_X86)
#define TAGRANK_ISA avx512
#define TAGRANK_VECTOR_BYTES 64
#define TAGRANK_ROWS 6
#include "instruction_set.h"
#endif
