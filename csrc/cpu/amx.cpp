// AVX-512, and products on the matrix unit of Intel's AMX where there are rows enough.
#include "capability.h"
#if defined(TAGRANK_X86) && defined(TAGRANK_AMX)
#define TAGRANK_ISA amx
#define TAGRANK_VECTOR_BYTES 64
#define TAGRANK_ROWS 6
#define TAGRANK_TILES
#include "instruction_set.h"
#endif
