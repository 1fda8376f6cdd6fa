// AVX-512 has 32 registers: a tile of 6 rows by 4 vectors leaves 8 for the operands of its product.
#include "capability.h"
#if defined(TAGRANK_X86)
#define TAGRANK_ISA avx512
#define TAGRANK_VECTOR_BYTES 64
#define TAGRANK_ROWS 6
#include "instruction_set.h"
#endif
