// Four threads share an edge: the sums of both tokens' outer products with themselves and with each other, so that no
// other thread is needed for the norms.
#include "token_tree.h"

#include <torch/csrc/stable/library.h>

#include "cuda/common/partial_sums.h"
#include "cuda/common/thread_group.h"
#include "tree_scan.h"

namespace grootv {
namespace {

// One vector per token.
template <class T>
struct Vectors {
    const T* first;
    int64_t channels;

    template <bool ALIGNED>
    __device__ float cosine(int64_t i, int64_t j) const {
        Floats dot{}, square_i{}, square_j{};
        for (int64_t c = PART * (threadIdx.x % SHARE); c < channels; c += SIMD_WIDTH) {
            const Floats x = load<ALIGNED>(first + i * channels, c, channels);
            const Floats y = load<ALIGNED>(first + j * channels, c, channels);
            for (int k = 0; k < PART; ++k) {
                dot.element[k] += x.element[k] * y.element[k];
                square_i.element[k] += x.element[k] * x.element[k];
                square_j.element[k] += y.element[k] * y.element[k];
            }
        }
        const float norm_i = norm_of(sum_lanes(square_i)), norm_j = norm_of(sum_lanes(square_j));
        return sum_lanes(dot) / (norm_i * norm_j);
    }
};

template <bool ALIGNED, class T>
__global__ void token_edge_weight_kernel(Vectors<T> x, Vectors<T> B, const int32_t* context, int64_t edges,
                                         int64_t length, int64_t reach, float* weight) {
    // Threads beyond the last edge take part in its shuffles.
    const int64_t place = GridTeam::rank() / SHARE, edge = place < edges ? place : edges - 1;
    const int64_t count = (length - 1) * reach, item = edge / count, index = edge - item * count;
    const int64_t later = length - 1 - index / reach, span = 1 + index % reach;
    const int64_t first = item * length, earlier = later < span ? 0 : later - span;
    const float x_cosine = x.template cosine<ALIGNED>(first + earlier, first + later);
    const float B_cosine = B.template cosine<ALIGNED>(first + earlier, first + later);
    if (threadIdx.x % SHARE > 0 || place >= edges) return;
    const bool exists = is_token_edge(later, span, context[2 * item], context[2 * item + 1]);
    weight[edge] = exists ? token_weight(x_cosine, B_cosine) : INFINITY;
}

Tensor token_edge_weight(const Tensor& x, const Tensor& B, const Tensor& context, int64_t reach) {
    const char* function = "token_edge_weight";
    TokenEdges sizes(x, B, context, reach);
    check_batch(function, sizes.batch, sizes.length);
    Device device(function, x);
    Tensor signal = as_contiguous(x), write = as_contiguous(B), bounds = as_contiguous(context);
    Tensor weight = torch::stable::new_empty(signal, {sizes.batch, sizes.count}, ScalarType::Float);
    const int64_t edges = sizes.batch * sizes.count;
    if (edges == 0) return weight;
    dispatch_floating(x, [&](auto zero) {
        using T = decltype(zero);
        const Vectors<T> signals{signal.const_data_ptr<T>(), sizes.channels};
        const Vectors<T> writes{write.const_data_ptr<T>(), sizes.states};
        const bool aligned = in_parts(signals.first, signals.channels) && in_parts(writes.first, writes.channels);
        auto* kernel = aligned ? token_edge_weight_kernel<true, T> : token_edge_weight_kernel<false, T>;
        const auto blocks = static_cast<unsigned>((edges * SHARE + ITEM_THREADS - 1) / ITEM_THREADS);
        device.launch(kernel, dim3(blocks), ITEM_THREADS, 0, signals, writes, bounds.const_data_ptr<int32_t>(), edges,
                      sizes.length, sizes.reach, weight.mutable_data_ptr<float>());
    });
    return weight;
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    m.impl("token_edge_weight", TORCH_BOX(&grootv::token_edge_weight));
}
