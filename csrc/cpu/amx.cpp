// AVX-512, with products on the matrix unit (Intel AMX) if the batch has rows enough.
#include "capability.h"
#if defined(TAGRANK_X86) && defined(TAGRANK_AMX)
#define TAGRANK_ISA amx
#define TAGRANK_VECTOR_BYTES 64
#define TAGRANK_ROWS 6
#define TAGRANK_TILES
#include "instruction_set.h"
#endif
