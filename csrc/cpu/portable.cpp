#define TAGRANK_ISA portable
#define TAGRANK_VECTOR_BYTES 16
#define TAGRANK_ROWS 3
#include "instruction_set.h"
