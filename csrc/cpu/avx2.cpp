// AVX2: 16 registers, all of which tiles of 3 rows by 4 vectors and what they are made from take.
#include "capability.h"
#if defined(TAGRANK_X86)
#define TAGRANK_ISA avx2
#define TAGRANK_VECTOR_BYTES 32
#define TAGRANK_ROWS 3
#include "instruction_set.h"
#endif
