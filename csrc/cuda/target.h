// What lets one source be a CUDA kernel and a program that runs its schedule on the host.
#pragma once

#ifdef __CUDACC__
#define TAGRANK_EVERYWHERE __host__ __device__ __forceinline__
#define TAGRANK_DEVICE __device__ __forceinline__
#else
#define TAGRANK_EVERYWHERE inline
#define TAGRANK_DEVICE inline
#endif
