// Four threads share an edge: the sums of both tokens' outer products with themselves and with each other, so that no
// other thread is needed for the norms.
#include "token_tree.h"

#include "cuda/common/partial_sums.h"
#include "cuda/common/thread_group.h"
#include "tree_scan.h"

namespace grootv {
namespace {

// One feature vector per token.
template <class scalar_t>
struct TokenFeatures {
    const scalar_t* first;
    int64_t channels;

    template <bool ALIGNED>
    __device__ float cosine(int64_t i, int64_t j) const {
        FloatVector dot{}, square_i{}, square_j{};
        for (int64_t c = THREAD_SUMS * (threadIdx.x % SUM_THREADS); c < channels; c += SIMD_WIDTH) {
            const FloatVector x = load<ALIGNED>(first + i * channels, c, channels);
            const FloatVector y = load<ALIGNED>(first + j * channels, c, channels);
            for (int k = 0; k < THREAD_SUMS; ++k) {
                dot.element[k] += x.element[k] * y.element[k];
                square_i.element[k] += x.element[k] * x.element[k];
                square_j.element[k] += y.element[k] * y.element[k];
            }
        }
        const float norm_i = norm_of(add_up(square_i)), norm_j = norm_of(add_up(square_j));
        return add_up(dot) / (norm_i * norm_j);
    }
};

template <bool ALIGNED, class scalar_t>
__global__ void token_edge_weight_kernel(TokenFeatures<scalar_t> x, TokenFeatures<scalar_t> B, const int64_t* context,
                                         int64_t edges, int64_t length, int64_t reach, float* weight) {
    // Threads beyond the last edge take part in its shuffles.
    const int64_t place = GridGroup::rank() / SUM_THREADS, edge = place < edges ? place : edges - 1;
    const int64_t count = (length - 1) * reach, item = edge / count, index = edge - item * count;
    const int64_t later = length - 1 - index / reach, span = 1 + index % reach;
    const int64_t first = item * length, earlier = later < span ? 0 : later - span;
    const float x_cosine = x.template cosine<ALIGNED>(first + earlier, first + later);
    const float B_cosine = B.template cosine<ALIGNED>(first + earlier, first + later);
    if (threadIdx.x % SUM_THREADS > 0 || place >= edges) return;
    const bool exists = is_token_edge(later, span, context[2 * item], context[2 * item + 1]);
    weight[edge] = exists ? token_weight(x_cosine, B_cosine) : INFINITY;
}

Tensor token_edge_weight(const Tensor& x, const Tensor& B, const Tensor& context, int64_t reach) {
    const char* function = "token_edge_weight";
    TokenEdges sizes(x, B, context, reach);
    check_batch(function, sizes.batch, sizes.length);
    Device device(function, x);
    Tensor x_rows = as_contiguous(x), B_rows = as_contiguous(B);
    Tensor bounds = as_contiguous(context, ScalarType::Long);
    Tensor weight = make_empty(x_rows, {sizes.batch, sizes.count}, ScalarType::Float);
    const int64_t edges = sizes.batch * sizes.count;
    if (edges == 0) return weight;
    dispatch_floating(x, [&]<class scalar_t>(scalar_t) {
        const TokenFeatures<scalar_t> x_features{x_rows.const_data_ptr<scalar_t>(), sizes.channels};
        const TokenFeatures<scalar_t> B_features{B_rows.const_data_ptr<scalar_t>(), sizes.states};
        const bool aligned =
            is_aligned(x_features.first, x_features.channels) && is_aligned(B_features.first, B_features.channels);
        auto* kernel = aligned ? token_edge_weight_kernel<true, scalar_t> : token_edge_weight_kernel<false, scalar_t>;
        const int64_t blocks = (edges * SUM_THREADS + ELEMENT_THREADS - 1) / ELEMENT_THREADS;
        device.launch(kernel, blocks, ELEMENT_THREADS, 0, x_features, B_features, bounds.const_data_ptr<int64_t>(),
                      edges, sizes.length, sizes.reach, weight.mutable_data_ptr<float>());
    });
    return weight;
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, token_edge_weight);
}
