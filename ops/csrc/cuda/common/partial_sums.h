// The partial sums of metric.h, by the threads of a vertex: thread t holds the lanes 4 t ... 4 t + 3.
#pragma once

#include "cuda/common/device.h"
#include "metric.h"

namespace grootv {

constexpr int SHARE = 4;                  // threads of one vertex
constexpr int PART = SIMD_WIDTH / SHARE;  // lanes of one thread

template <class T>
struct alignas(PART * sizeof(T)) Part {
    T element[PART];
};

struct Floats {
    float element[PART];
};

// Elements c ... c + PART - 1 of a vector; those beyond its end are 0. ALIGNED: see in_parts.
template <bool ALIGNED, class T>
__device__ Floats load(const T* from, int64_t c, int64_t channels) {
    Floats lanes;
    if constexpr (ALIGNED) {
        const Part<T> part = *reinterpret_cast<const Part<T>*>(from + c);
        for (int i = 0; i < PART; ++i) lanes.element[i] = static_cast<float>(part.element[i]);
    } else {
        for (int i = 0; i < PART; ++i) lanes.element[i] = c + i < channels ? static_cast<float>(from[c + i]) : 0.0f;
    }
    return lanes;
}

// Upper half onto lower half, down to one lane; every thread of the vertex gets the sum.
__device__ inline float sum_lanes(Floats lanes) {
    for (int other = SHARE / 2; other > 0; other /= 2)
        for (int i = 0; i < PART; ++i) lanes.element[i] += __shfl_xor_sync(~0u, lanes.element[i], other);
    return (lanes.element[0] + lanes.element[2]) + (lanes.element[1] + lanes.element[3]);
}

__device__ inline float norm_of(float square) {
    float root = sqrtf(square);
    return root < MIN_NORM ? MIN_NORM : root;
}

// Whether vectors of this many channels may be read in parts.
template <class T>
bool in_parts(const T* vectors, int64_t channels) {
    return channels % PART == 0 && reinterpret_cast<uintptr_t>(vectors) % sizeof(Part<T>) == 0;
}

}  // namespace grootv
