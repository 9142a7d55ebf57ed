// The tree scan: h = sum over j of P(i, j) u_j by one pass to the root and one back. Element types and argument
// checks of all backends; no check reads the values of a tensor.
#pragma once

#include <optional>
#include <string>
#include <type_traits>

#include "checks.h"

namespace grootv {

// The type that signals of type scalar_t are added up in: wider for 16-bit ones.
template <class scalar_t>
using acc_type = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

inline ScalarType acc_dtype_of(ScalarType dtype) {
    return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls function(scalar_t{}) for the element type of a checked floating tensor.
template <class Function>
void dispatch_floating(const Tensor& tensor, Function function) {
#ifdef GROOTV_ONNXRUNTIME  // its operators have float32 inputs only
    function(float{});
#else
    switch (tensor.scalar_type()) {
        case ScalarType::Float: return function(float{});
        case ScalarType::Double: return function(double{});
        case ScalarType::Half: return function(torch::headeronly::Half{});
        default: return function(torch::headeronly::BFloat16{});
    }
#endif
}

inline void check_tree(const char* function, const Tensor& order, const Tensor& parent) {
    check_dtype(function, "order", order, ScalarType::Int);
    check_dim(function, "order", order, 2, "(B, L)");
    check_num_vertices(function, "order", order.size(1));
    check(order.size(1) >= 1, function, ": order must have at least one vertex, got shape ",
          format_shape(order.sizes()));
    check_tensor(function, "parent", "one entry per vertex of each item", parent, ScalarType::Int,
                 {order.size(0), order.size(1)}, order);
}

// Sizes of a scan, and the checks that every scan shares.
struct ScanSizes {
    ScanSizes(const char* function, const char* name, const Tensor& signal) : function(function) {
        check_floating(function, name, signal);
        check_dim(function, name, signal, 3, "(B, L, C)");
        batch = signal.size(0), vertices = signal.size(1), channels = signal.size(2);
        check(vertices >= 1, function, ": ", name, " must have at least one vertex, got shape ",
              format_shape(signal.sizes()));
    }

    void check_per_element(const char* name, const Tensor& tensor, const Tensor& signal) const {
        check_tensor(function, name, "one value per vertex and channel", tensor, signal.scalar_type(),
                     {batch, vertices, channels}, signal);
    }

    void check_per_channel(const char* name, const Tensor& tensor, const Tensor& signal) const {
        check_tensor(function, name, "one value per channel", tensor, acc_dtype_of(signal.scalar_type()), {channels},
                     signal);
    }

    void check_per_vertex(const char* name, const Tensor& tensor, const Tensor& signal) const {
        check_tensor(function, name, "one value per vertex", tensor, signal.scalar_type(), {batch, vertices}, signal);
    }

    void check_tree(const Tensor& order, const Tensor& parent, const Tensor& signal) const {
        const char* rule = "one entry per vertex of each item";
        check_num_vertices(function, "order", vertices);
        check_tensor(function, "order", rule, order, ScalarType::Int, {batch, vertices}, signal);
        check_tensor(function, "parent", rule, parent, ScalarType::Int, {batch, vertices}, signal);
    }

    void check_grad(const Tensor& grad, const Tensor& signal) const { check_per_element("grad", grad, signal); }

    const char* function;
    int64_t batch, vertices, channels;
};

// The arguments of tree_scan; its backward calls check_grad as well.
struct ScanArguments : ScanSizes {
    ScanArguments(const char* function, const Tensor& input, const Tensor& decay, const Tensor& order,
                  const Tensor& parent, const std::string& direction)
        : ScanSizes(check_direction(function, direction), "input", input), both(direction == "both") {
        check_per_element("decay", decay, input);
        check_tree(order, parent, input);
    }

    static const char* check_direction(const char* function, const std::string& direction) {
        check(direction == "both" || direction == "up", function, ": direction must be one of both, up, got '",
              direction, "'");
        return function;
    }

    bool both;
};

// The arguments of selective_tree_scan; its backward calls check_grad as well. A, delta_bias, distance and scale have
// the dtype of the accumulator, all others that of x.
struct SelectiveScanArguments : ScanSizes {
    SelectiveScanArguments(const char* function, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                           const std::optional<Tensor>& delta_bias, const std::optional<Tensor>& distance,
                           const std::optional<Tensor>& scale, const Tensor& order, const Tensor& parent)
        : ScanSizes(function, "x", x) {
        check_per_element("delta", delta, x);
        check_per_channel("A", A, x);
        check_per_vertex("B", B, x);
        if (delta_bias) check_per_channel("delta_bias", *delta_bias, x);
        check(distance.has_value() == scale.has_value(), function, ": distance and scale must be given together, got ",
              distance ? "distance" : "scale", " alone; give both or neither");
        if (distance) {
            check_tensor(function, "distance", "one value per vertex", *distance, acc_dtype_of(x.scalar_type()),
                         {batch, vertices}, x);
            check_per_channel("scale", *scale, x);
        }
        check_tree(order, parent, x);
    }
};

}  // namespace grootv
