// Functions that vectorised loops and, in headers that CUDA shares, kernels must inline.
#pragma once

#ifdef __CUDACC__
#define GROOTV_INLINE __host__ __device__ __forceinline__
#elif defined(GROOTV_DEBUG)
#define GROOTV_INLINE inline  // a debugger steps into it
#else
#define GROOTV_INLINE inline __attribute__((always_inline))
#endif
