// exp, softplus and its derivative in arithmetic that compilers vectorise, which calls to libm prevent. In float32
// they are off by less than 2.5 units in the last place and treat infinities, NaN and subnormal results as libm does.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "cpu/vectorize.h"

namespace grootv {

GROOTV_INLINE float vector_exp(float x) {
    // exp(x) = 2^k exp(r) with |r| <= ln 2 / 2. Beyond +-104 the result is 0 or infinite anyway. Two bounds in place of
    // one and a sign would make compilers compute three cases apart.
    const float size = std::fabs(x);
    x = std::copysign(size > 104.0f ? 104.0f : size, x);
    constexpr float ROUND = 12582912.0f;              // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    constexpr float LN2_HIGH = 0x1.62e4p-1f;          // few bits, so that k LN2_HIGH is exact
    constexpr float LN2_LOW = 1.428606820309417e-6f;  // ln 2 - LN2_HIGH
    const float rounded = x * 1.44269504088896341f + ROUND;
    const float k = rounded - ROUND;
    const float r = (x - k * LN2_HIGH) - k * LN2_LOW;
    // Least greatest relative error of 1 + r + r^2 q(r), q of degree 4: 0.05 units in the last place.
    float q = 1.381432046968273e-3f;
    q = q * r + 8.368851204599622e-3f;
    q = q * r + 4.166840109510132e-2f;
    q = q * r + 0.16666519522901896f;
    q = q * r + 0.49999993373009827f;
    const float power = 1.0f + (r + r * r * q);
    // 2^k in two steps: k may lie beyond the exponents of normal numbers.
    const uint32_t shifted = std::bit_cast<uint32_t>(rounded) - std::bit_cast<uint32_t>(ROUND) + 256;
    const uint32_t half = shifted >> 1;
    return power * std::bit_cast<float>((half - 1) << 23) * std::bit_cast<float>((shifted - half - 1) << 23);
}

// log(1 + z) for z in [0, 1], by 2 artanh(z / (2 + z)).
GROOTV_INLINE float vector_log1p_unit(float z) {
    const float s = z / (2.0f + z);
    const float w = s * s;
    // Least greatest relative error of 2 s + s w q(w), q of degree 3: 0.08 units in the last place. 2 s is written
    // as z - s z, which rounding errors of s change less.
    float q = 0.2801878016342578f;
    q = q * w + 0.2800053529771779f;
    q = q * w + 0.400215974321217f;
    q = q * w + 0.6666641521327628f;
    return z - s * (z - w * q);
}

// log(1 + exp(x)). In float32 this is x itself above 20, as PyTorch has it.
GROOTV_INLINE float softplus(float x) {
    return (x > 0.0f ? x : 0.0f) + vector_log1p_unit(vector_exp(x > 0.0f ? -x : x));
}

// 1 / (1 + exp(-x))
GROOTV_INLINE float sigmoid(float x) {
    const float z = vector_exp(x > 0.0f ? -x : x);
    return (x > 0.0f ? 1.0f : z) / (1.0f + z);
}

GROOTV_INLINE double vector_exp(double x) {
    return std::exp(x);
}

GROOTV_INLINE double softplus(double x) {
    return x > 20 ? x : std::log1p(std::exp(x));
}

GROOTV_INLINE double sigmoid(double x) {
    return 1 / (1 + std::exp(-x));
}

// The derivative of softplus.
GROOTV_INLINE float softplus_slope(float x) {
    return sigmoid(x);
}

GROOTV_INLINE double softplus_slope(double x) {
    return x > 20 ? 1 : sigmoid(x);
}

}  // namespace grootv
