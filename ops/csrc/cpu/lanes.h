// Sixteen numbers at once, and sums in the one order that every device keeps.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/vectorize.h"
#include "metric.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // Lanes crosses inlined calls only

namespace grootv {

template <class A>
struct LanesOf {
    typedef A type __attribute__((vector_size(SIMD_WIDTH * sizeof(A))));
};
template <class A>
using Lanes = typename LanesOf<A>::type;

template <class A>
GROOTV_INLINE Lanes<A> load(const A* from) {
    Lanes<A> lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

template <class A>
GROOTV_INLINE Lanes<A> load_tail(const A* from, int64_t count) {
    Lanes<A> lanes{};
    std::memcpy(&lanes, from, count * sizeof(A));
    return lanes;
}

template <class A>
GROOTV_INLINE void store(A* to, Lanes<A> lanes) {
    std::memcpy(to, &lanes, sizeof lanes);
}

// Upper half onto lower half, down to one lane.
template <class A>
GROOTV_INLINE A sum(Lanes<A> x) {
    auto x8 = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    auto x4 = __builtin_shufflevector(x8, x8, 0, 1, 2, 3) + __builtin_shufflevector(x8, x8, 4, 5, 6, 7);
    auto x2 = __builtin_shufflevector(x4, x4, 0, 1) + __builtin_shufflevector(x4, x4, 2, 3);
    return x2[0] + x2[1];
}

}  // namespace grootv
