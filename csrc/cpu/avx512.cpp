#include "capability.h"
#if defined(TAGRANK_X86)
#define TAGRANK_ISA avx512
#define TAGRANK_VECTOR_BYTES 64
#define TAGRANK_ROWS 6
#include "instruction_set.h"
#endif
