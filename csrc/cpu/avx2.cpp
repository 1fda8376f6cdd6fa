// AVX2 has 16 registers: a tile of 3 rows by 4 vectors and the operands of its product take all of them.
#include "capability.h"
#if defined(TAGRANK_X86)
#define TAGRANK_ISA avx2
#define TAGRANK_VECTOR_BYTES 32
#define TAGRANK_ROWS 3
#include "instruction_set.h"
#endif
