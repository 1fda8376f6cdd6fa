// The instruction set that every CPU of the architecture has: SSE2, NEON or the like.
#define TAGRANK_ISA portable
#define TAGRANK_VECTOR_BYTES 16
#define TAGRANK_ROWS 3
#include "instruction_set.h"
