// Distances between feature vectors, in an order of operations that every device keeps: with no fused
// multiply-add and the same sequence of roundings, CPU and CUDA return the same bits.
#pragma once

#include "inline.h"

namespace grootv {

// Sums over channels run in SIMD_WIDTH interleaved partial sums (sum i adds the channels i, i + SIMD_WIDTH, ...),
// whose upper half is then added to the lower half until one is left.
constexpr int SIMD_WIDTH = 16;

constexpr float MIN_NORM = 1e-8f;

enum class Metric { cosine, euclidean, manhattan };

// exp on [-1, 1]: the Taylor polynomial of degree 13 by Horner's rule, off by less than 3e-11.
GROOTV_INLINE float exp_unit(double x) {
    constexpr double INVERSE_FACTORIAL[] = {
        1,         1,          1. / 2,      1. / 6,       1. / 24,       1. / 120,       1. / 720,
        1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
    double result = INVERSE_FACTORIAL[13];
    for (int n = 12; n >= 0; --n) result = result * x + INVERSE_FACTORIAL[n];
    return static_cast<float>(result);
}

// Weight of an edge between vectors of the given norms (not below MIN_NORM) and dot product.
GROOTV_INLINE float cosine_weight(float dot, float norm_x, float norm_y) {
    return exp_unit(-(dot / (norm_x * norm_y)));
}

}  // namespace grootv
