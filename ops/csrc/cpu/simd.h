// SIMD vectors of SIMD_WIDTH numbers, and their sums in the one order that every device keeps.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/vectorize.h"
#include "metric.h"

namespace grootv {

template <class acc_t>
struct SimdOf {
    typedef acc_t type __attribute__((vector_size(SIMD_WIDTH * sizeof(acc_t))));
};
template <class acc_t>
using Simd = typename SimdOf<acc_t>::type;

template <class acc_t>
GROOTV_INLINE Simd<acc_t> load(const acc_t* from) {
    Simd<acc_t> vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class acc_t>
GROOTV_INLINE Simd<acc_t> load_tail(const acc_t* from, int64_t count) {
    Simd<acc_t> vector{};
    std::memcpy(&vector, from, count * sizeof(acc_t));
    return vector;
}

template <class acc_t>
GROOTV_INLINE void store(acc_t* to, Simd<acc_t> vector) {
    std::memcpy(to, &vector, sizeof vector);
}

// The upper half is added to the lower half until one element is left.
template <class acc_t>
GROOTV_INLINE acc_t sum(Simd<acc_t> x) {
    auto x8 = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    auto x4 = __builtin_shufflevector(x8, x8, 0, 1, 2, 3) + __builtin_shufflevector(x8, x8, 4, 5, 6, 7);
    auto x2 = __builtin_shufflevector(x4, x4, 0, 1) + __builtin_shufflevector(x4, x4, 2, 3);
    return x2[0] + x2[1];
}

}  // namespace grootv
