// Mamba's selective scan along a tree over tokens, to the root. Argument checks of all backends; no check reads the
// values of a tensor.
#pragma once

#include <optional>

#include "tree_scan.h"

namespace grootv {

// The arguments of token_scan; its backward calls check_grads as well. A and delta_bias have the dtype of the
// accumulator, all others that of x.
struct TokenScanArguments {
    TokenScanArguments(const char* function, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                       const Tensor& C, const std::optional<Tensor>& delta_bias, const Tensor& order,
                       const Tensor& parent)
        : function(function), dtype(x.scalar_type()), acc_dtype(acc_dtype_of(dtype)) {
        check_floating(function, "x", x);
        check_dim(function, "x", x, 3, "(B, L, D)");
        check_dim(function, "A", A, 2, "(D, N)");
        batch = x.size(0), length = x.size(1), channels = x.size(2), states = A.size(1);
        check(length >= 1, function, ": x must have at least one token, got shape ", format_shape(x.sizes()));
        check_num_vertices(function, length);
        check_tensor(function, "delta", "one value per token and channel", delta, dtype, {batch, length, channels}, x);
        check_tensor(function, "A", "one row per channel", A, acc_dtype, {channels, states}, x);
        check_tensor(function, "B", "one value per token and state", B, dtype, {batch, length, states}, x);
        check_tensor(function, "C", "one value per token and state", C, dtype, {batch, length, states}, x);
        if (delta_bias)
            check_tensor(function, "delta_bias", "one value per channel", *delta_bias, acc_dtype, {channels}, x);
        const char* rule = "one entry per token of each sequence";
        check_tensor(function, "order", rule, order, ScalarType::Int, {batch, length}, x);
        check_tensor(function, "parent", rule, parent, ScalarType::Int, {batch, length}, x);
    }

    void check_grads(const Tensor& grad, const Tensor& grad_state, const Tensor& x) const {
        check_tensor(function, "grad", "one value per token and channel", grad, dtype, {batch, length, channels}, x);
        check_tensor(function, "grad_state", "one value per channel and state", grad_state, acc_dtype,
                     {batch, channels, states}, x);
    }

    // What is wrong with the data itself.
    static void check_tree(const char* function, bool fine, int64_t item) {
        check(fine, function,
              ": order and parent must be a tree rooted at the last token, parents first, but those of item ", item,
              " are not");
    }

    const char* function;
    ScalarType dtype, acc_dtype;
    int64_t batch, length, channels, states;
};

}  // namespace grootv
