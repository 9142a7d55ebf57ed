// Compile a function for several instruction sets and choose at load time. Its callees must be inlined.
#pragma once

#include "inline.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(GROOTV_DEBUG)
#if __GNUC__ >= 12
#define GROOTV_AVX512 "arch=x86-64-v4"  // with vectors of 16-bit numbers
#else
#define GROOTV_AVX512 "avx512f"
#endif
#define GROOTV_VECTORIZE __attribute__((target_clones("default", "avx2", GROOTV_AVX512)))
#else
#define GROOTV_VECTORIZE
#endif

// Before a loop: its iterations do not depend on each other, whatever the pointers may seem to share.
#ifdef __clang__
#define GROOTV_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define GROOTV_IVDEP _Pragma("GCC ivdep")
#endif
