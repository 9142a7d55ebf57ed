// Softplus and its derivative as PyTorch has them: above 20 the identity.
#pragma once

#include <cmath>

#include "cuda/device.h"

namespace grootv {

template <class A>
__device__ A softplus(A x) {
    using std::exp, std::log1p;
    return x > 20 ? x : log1p(exp(x));
}

template <class A>
__device__ A softplus_slope(A x) {
    using std::exp;
    return x > 20 ? A{1} : 1 / (1 + exp(-x));
}

}  // namespace grootv
