#include "capability.h"
#if defined(TAGRANK_X86)
#define TAGRANK_ISA avx2
#define TAGRANK_VECTOR_BYTES 32
#define TAGRANK_ROWS 3
#include "instruction_set.h"
#endif
