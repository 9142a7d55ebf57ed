// Distances of vertices to their parents, and their gradients. Arguments and arithmetic of all backends.
#pragma once

#include <cmath>
#include <string>

#include "edge_weight.h"
#include "tree_scan.h"

namespace grootv {

// The arguments, checked and made contiguous; the backward pass calls check_grad as well.
struct EdgeDistanceArguments : ScanSizes {
    EdgeDistanceArguments(const char* function, const Tensor& features, const Tensor& order, const Tensor& parent,
                          const std::string& metric_name)
        : ScanSizes(check_features(function, features), "features", features),
          metric(parse_metric(function, metric_name)) {
        check_tree(order, parent, features);
        this->features = as_contiguous(features), this->order = as_contiguous(order);
        this->parent = as_contiguous(parent);
    }

    Tensor check_grad(const Tensor& grad) const {
        check_per_vertex("grad", grad, features);
        return as_contiguous(grad);
    }

    int64_t rows() const { return batch * vertices; }

    // Calls function.operator()<metric>(acc_t{}) with the element type of the features.
    template <class Function>
    void dispatch(Function function) const {
        dispatch_floating(features, [&](auto zero) {
            const acc_type<decltype(zero)> acc{};
            switch (metric) {
                case Metric::cosine: return function.template operator()<Metric::cosine>(acc);
                case Metric::euclidean: return function.template operator()<Metric::euclidean>(acc);
                case Metric::manhattan: return function.template operator()<Metric::manhattan>(acc);
            }
        });
    }

    Metric metric;
    Tensor features, order, parent;

private:
    static const char* check_features(const char* function, const Tensor& features) {
        check(features.scalar_type() == ScalarType::Float || features.scalar_type() == ScalarType::Double, function,
              ": features must be float32 or float64, got ", dtype_name(features.scalar_type()));
        return function;
    }
};

// MIN_NORM in the type that is computed in.
template <class acc_t>
constexpr acc_t LEAST_NORM = static_cast<acc_t>(1e-8);

template <class acc_t>
GROOTV_INLINE acc_t norm_of_square(acc_t square) {
    using std::sqrt;
    const acc_t norm = sqrt(square);
    return norm < LEAST_NORM<acc_t> ? LEAST_NORM<acc_t> : norm;
}

// 1 - cos, which rounding leaves in [0, 2].
template <class acc_t>
GROOTV_INLINE acc_t cosine_distance(acc_t dot, acc_t norm_x, acc_t norm_y) {
    const acc_t distance = 1 - dot / (norm_x * norm_y);
    return distance < 0 ? acc_t{0} : distance > 2 ? acc_t{2} : distance;
}

// What an edge adds to the gradient of its end x, whose other end is y:
//   cosine      own x - other y
//   euclidean   other (x - y)
//   manhattan   other sign(x - y)
template <class acc_t>
struct EdgeGradient {
    acc_t own, other;
};

// `grad` is the gradient of the edge's distance; of cosine the dot product and the norms are used as well. A norm that
// is taken as LEAST_NORM does not depend on x.
template <Metric metric, class acc_t>
GROOTV_INLINE EdgeGradient<acc_t> edge_gradient(acc_t grad, acc_t dot, acc_t norm_x, acc_t norm_y) {
    if constexpr (metric == Metric::cosine) {
        const acc_t other = grad / (norm_x * norm_y);
        return {norm_x > LEAST_NORM<acc_t> ? other * dot / (norm_x * norm_x) : acc_t{0}, other};
    }
    return {acc_t{0}, metric == Metric::euclidean ? 2 * grad : grad};
}

}  // namespace grootv
