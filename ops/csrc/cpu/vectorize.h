// Compile a function for several instruction sets and choose at load time. Its callees must be inlined.
#pragma once

#include "inline.h"

// Of compilers, only GCC makes clones of function templates.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__) && !defined(GROOTV_DEBUG)
// x86-64-v4 is AVX-512 with vectors of 16-bit numbers.
#define GROOTV_VECTORIZE __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define GROOTV_VECTORIZE
#endif

// Before a loop: its iterations do not depend on each other, whatever the pointers may seem to share.
#ifdef __clang__
#define GROOTV_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define GROOTV_IVDEP _Pragma("GCC ivdep")
#endif
