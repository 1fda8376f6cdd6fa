// Macros with which the same source compiles to a CUDA kernel, and to a host program that runs the kernel's schedule.
#pragma once

#ifdef __CUDACC__
#define TAGRANK_EVERYWHERE __host__ __device__ __forceinline__
#define TAGRANK_DEVICE __device__ __forceinline__
#else
#define TAGRANK_EVERYWHERE inline
#define TAGRANK_DEVICE inline
#endif
