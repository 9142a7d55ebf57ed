// Edges between the tokens of a sequence that are at most `reach` apart: from token t to t - 1, t - 2 ...; those of the
// last token come first.
#pragma once

#include <cstdint>
#include <limits>

#include "checks.h"
#include "metric.h"

namespace grootv {

// Checked x (B, L, C), B (B, L, N) and context (B, 2).
struct TokenEdges {
    TokenEdges(const Tensor& x, const Tensor& B, const Tensor& context, int64_t reach) : reach(reach) {
        const char* function = "token_edge_weight";
        check_floating(function, "x", x);
        check_dim(function, "x", x, 3, "(B, L, C)");
        check_dim(function, "B", B, 3, "(B, L, N)");
        batch = x.size(0), length = x.size(1), channels = x.size(2), states = B.size(2);
        check(length >= 1, function, ": x must have at least one token, got shape ", format_shape(x.sizes()));
        check(reach >= 1, function, ": reach must be at least 1, got ", reach);
        check(length <= std::numeric_limits<int32_t>::max() / reach, function,
              ": a sequence must have less than 2^31 edges, got ", length, " tokens of ", reach);
        check_tensor(function, "B", "one row per token", B, x.scalar_type(), {batch, length, states}, x);
        const ScalarType bound = context.scalar_type();
        check(bound == ScalarType::Int || bound == ScalarType::Long, function, ": context must be int32 or int64, got ",
              dtype_name(bound));
        check_shape(function, "context", "two bounds per sequence", context, {batch, 2});
        check_same_device(function, "context", context, x);
        count = (length - 1) * reach;
    }

    // What is wrong with the data itself.
    void check_context(int64_t item, int64_t first, int64_t stop) const {
        check(first >= 0 && first <= length && stop >= 0 && stop <= length,
              "token_edge_weight: context must be within the sequence, 0 to ", length, ", got first ", first,
              " and stop ", stop, " of item ", item);
    }

    int64_t reach, batch, length, channels, states, count;
};

// Whether the edge from token `later` to the token `span` before it exists, in a context [first, stop).
GROOTV_INLINE bool is_token_edge(int64_t later, int64_t span, int64_t first, int64_t stop) {
    return span == 1 || (later >= span && later - span >= first && later < stop);
}

// Weight of an edge between outer products, by the cosines of their factors.
GROOTV_INLINE float token_weight(float x_cosine, float B_cosine) {
    return exp_unit(-(x_cosine * B_cosine));
}

}  // namespace grootv
