// Compile a function for several instruction sets and choose at load time. Its callees must be inlined.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define GROOTV_VECTORIZE __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define GROOTV_VECTORIZE
#endif

#define GROOTV_INLINE inline __attribute__((always_inline))
