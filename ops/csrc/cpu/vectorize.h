// Compile a function for several instruction sets and choose at load time. Its callees must be inlined.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define GROOTV_VECTORIZE __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define GROOTV_VECTORIZE
#endif

#define GROOTV_INLINE inline __attribute__((always_inline))

// Before a loop: its iterations do not depend on each other, whatever the pointers may seem to share.
#ifdef __clang__
#define GROOTV_IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define GROOTV_IVDEP _Pragma("GCC ivdep")
#endif
