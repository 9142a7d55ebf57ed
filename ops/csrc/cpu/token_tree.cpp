#include "token_tree.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace grootv {
namespace {

constexpr int64_t TASK_TOKENS = 64;

GROOTV_INLINE float dot(const float* x, const float* y, int64_t channels) {
    Simd<float> products{};
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= channels; c += SIMD_WIDTH) products += load(x + c) * load(y + c);
    if (int64_t rest = channels - c) products += load_tail(x + c, rest) * load_tail(y + c, rest);
    return sum<float>(products);
}

// One vector per token, and its norms.
struct TokenFeatures {
    const float* first;
    const float* norm;
    int64_t channels;

    GROOTV_INLINE float cosine(int64_t i, int64_t j) const {
        return dot(first + i * channels, first + j * channels, channels) / (norm[i] * norm[j]);
    }
};

GROOTV_VECTORIZE void norms(const float* vectors, int64_t count, int64_t channels, float* norm) {
    for (int64_t i = 0; i < count; ++i) {
        const float* vector = vectors + i * channels;
        norm[i] = std::max(std::sqrt(dot(vector, vector, channels)), MIN_NORM);
    }
}

// weight: that of the edges of the tokens begin ... end - 1 to earlier ones, the last token first.
GROOTV_VECTORIZE void weigh(TokenFeatures x, TokenFeatures B, const int64_t* context, int64_t begin, int64_t end,
                            int64_t reach, float* weight) {
    for (int64_t later = end - 1; later >= begin; --later)
        for (int64_t span = 1; span <= reach; ++span)
            *weight++ = is_token_edge(later, span, context[0], context[1])
                            ? token_weight(x.cosine(later - span, later), B.cosine(later - span, later))
                            : INFINITY;
}

Tensor token_edge_weight(const Tensor& x, const Tensor& B, const Tensor& context, int64_t reach) {
    const char* function = "token_edge_weight";
    TokenEdges edges(x, B, context, reach);
    const int64_t batch = edges.batch, length = edges.length, chunks = (length + TASK_TOKENS - 1) / TASK_TOKENS;
    Tensor x32 = as_contiguous_float32(x), B32 = as_contiguous_float32(B);
    Tensor bounds = as_contiguous(context, ScalarType::Long);
    Tensor weight = make_empty(x32, {batch, edges.count});
    const auto *x_ptr = x32.const_data_ptr<float>(), *B_ptr = B32.const_data_ptr<float>();
    const auto* context_ptr = bounds.const_data_ptr<int64_t>();
    for (int64_t item = 0; item < batch; ++item)
        edges.check_context(item, context_ptr[2 * item], context_ptr[2 * item + 1]);
    auto* to = weight.mutable_data_ptr<float>();

    std::vector<float> x_norm(batch * length), B_norm(batch * length);
    parallel_for_each(function, batch * chunks, [&](int64_t task) {
        const int64_t begin = task % chunks * TASK_TOKENS, first = task / chunks * length + begin;
        const int64_t count = std::min(TASK_TOKENS, length - begin);
        norms(x_ptr + first * edges.channels, count, edges.channels, x_norm.data() + first);
        norms(B_ptr + first * edges.states, count, edges.states, B_norm.data() + first);
    });
    parallel_for_each(function, batch * chunks, [&](int64_t task) {
        const int64_t item = task / chunks, begin = task % chunks * TASK_TOKENS,
                      end = std::min(begin + TASK_TOKENS, length);
        const int64_t first = item * length;
        weigh({x_ptr + first * edges.channels, x_norm.data() + first, edges.channels},
              {B_ptr + first * edges.states, B_norm.data() + first, edges.states}, context_ptr + item * 2,
              std::max<int64_t>(begin, 1), end, reach, to + item * edges.count + (length - end) * reach);
    });
    return weight;
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    GROOTV_IMPL(m, token_edge_weight);
}
