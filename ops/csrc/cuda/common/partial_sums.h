// The partial sums of metric.h, by the threads of a vertex or edge: thread t holds the sums 4 t ... 4 t + 3.
#pragma once

#include "cuda/common/vector.h"
#include "metric.h"

namespace grootv {

constexpr int SUM_THREADS = 4;                         // threads of one vertex or edge
constexpr int THREAD_SUMS = SIMD_WIDTH / SUM_THREADS;  // partial sums of one thread

template <class Element>
using SumVector = Vector<Element, THREAD_SUMS>;
using FloatVector = SumVector<float>;

// Elements c ... c + THREAD_SUMS - 1 of a feature vector; those beyond its end are 0. ALIGNED: see is_aligned.
template <bool ALIGNED, class scalar_t>
__device__ FloatVector load(const scalar_t* from, int64_t c, int64_t channels) {
    FloatVector loaded;
    if constexpr (ALIGNED) {
        const auto vector = *reinterpret_cast<const SumVector<scalar_t>*>(from + c);
        for (int i = 0; i < THREAD_SUMS; ++i) loaded.element[i] = static_cast<float>(vector.element[i]);
    } else {
        for (int i = 0; i < THREAD_SUMS; ++i)
            loaded.element[i] = c + i < channels ? static_cast<float>(from[c + i]) : 0.0f;
    }
    return loaded;
}

// Upper half onto lower half, until one is left; every thread of the vertex gets the sum.
__device__ inline float add_up(FloatVector sums) {
    for (int other = SUM_THREADS / 2; other > 0; other /= 2)
        for (int i = 0; i < THREAD_SUMS; ++i) sums.element[i] += __shfl_xor_sync(~0u, sums.element[i], other);
    return (sums.element[0] + sums.element[2]) + (sums.element[1] + sums.element[3]);
}

__device__ inline float norm_of(float square) {
    float root = sqrtf(square);
    return root < MIN_NORM ? MIN_NORM : root;
}

// Whether feature vectors of this many channels may be loaded as vectors.
template <class scalar_t>
bool is_aligned(const scalar_t* features, int64_t channels) {
    return channels % THREAD_SUMS == 0 && reinterpret_cast<uintptr_t>(features) % sizeof(SumVector<scalar_t>) == 0;
}

}  // namespace grootv
