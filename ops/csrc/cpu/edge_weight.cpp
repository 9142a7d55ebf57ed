#include "edge_weight.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/workspace.h"

namespace grootv {
namespace {

template <Metric metric>
GROOTV_INLINE Simd<float> term(Simd<float> x, Simd<float> y) {
    if constexpr (metric == Metric::cosine) return x * y;
    Simd<float> difference = x - y;
    if constexpr (metric == Metric::euclidean) return difference * difference;
    return difference < 0 ? -difference : difference;
}

constexpr int64_t STRIP_BYTES = 12 << 10;

template <Metric metric>
GROOTV_INLINE void add_terms(Simd<float> x, Simd<float> below, Simd<float> right, Simd<float>& own_sum,
                             Simd<float>& down_sum, Simd<float>& right_sum) {
    if constexpr (metric == Metric::cosine) own_sum += x * x;
    down_sum += term<metric>(x, below);
    right_sum += term<metric>(x, right);
}

// Sums over channels of the terms of every vertex with itself and with its two neighbours, each vector read once.
// Entries without a neighbour are meaningless.
template <Metric metric>
GROOTV_VECTORIZE void sum_terms(const float* features, int32_t height, int32_t width, int64_t channels, float* own,
                                float* down, float* right) {
    // In strips narrow enough that a row is still in the L1 cache when it is read as the row above.
    const int32_t strip = static_cast<int32_t>(std::max<int64_t>(1, STRIP_BYTES / sizeof(float) / (channels + 1)));
    for (int32_t left = 0; left < width; left += strip) {
        for (int32_t row = 0; row < height; ++row) {
            for (int32_t column = left; column < std::min(width, left + strip); ++column) {
                const int64_t vertex = int64_t{row} * width + column;
                const float* x = features + vertex * channels;
                const float* below = row + 1 < height ? x + width * channels : x;
                const float* next = column + 1 < width ? x + channels : x;
                Simd<float> own_sum{}, down_sum{}, right_sum{};
                int64_t c = 0;
                for (; c + SIMD_WIDTH <= channels; c += SIMD_WIDTH)
                    add_terms<metric>(load(x + c), load(below + c), load(next + c), own_sum, down_sum, right_sum);
                if (int64_t rest = channels - c)
                    add_terms<metric>(load_tail(x + c, rest), load_tail(below + c, rest), load_tail(next + c, rest),
                                      own_sum, down_sum, right_sum);
                own[vertex] = sum<float>(own_sum);
                down[vertex] = sum<float>(down_sum);
                right[vertex] = sum<float>(right_sum);
            }
        }
    }
}

GROOTV_VECTORIZE void square_norm_to_norm(float* norm, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        float root = std::sqrt(norm[i]);
        norm[i] = root < MIN_NORM ? MIN_NORM : root;
    }
}

GROOTV_VECTORIZE void dot_to_weight(const float* dot, const float* norm, const float* neighbour_norm, int64_t count,
                                    float* weight) {
    for (int64_t i = 0; i < count; ++i) weight[i] = cosine_weight(dot[i], norm[i], neighbour_norm[i]);
}

}  // namespace

void grid_edge_weight_cpu(const float* features, int32_t height, int32_t width, int64_t channels, Metric metric,
                          float* weight) {
    int64_t vertices = int64_t{height} * width;
    Workspace workspace;
    auto* norm = workspace.take<float>(vertices);
    auto *down = workspace.take<float>(vertices), *right = workspace.take<float>(vertices);
    auto* sum = metric == Metric::cosine      ? sum_terms<Metric::cosine>
                : metric == Metric::euclidean ? sum_terms<Metric::euclidean>
                                              : sum_terms<Metric::manhattan>;
    sum(features, height, width, channels, norm, down, right);

    int64_t vertical = vertices - width;
    float* horizontal = weight + vertical;
    if (metric == Metric::cosine) {
        square_norm_to_norm(norm, vertices);
        dot_to_weight(down, norm, norm + width, vertical, weight);
        dot_to_weight(right, norm, norm + 1, vertices - 1, right);
    } else {
        std::copy_n(down, vertical, weight);
    }
    for (int32_t row = 0; row < height; ++row)
        std::copy_n(right + int64_t{row} * width, width - 1, horizontal + int64_t{row} * (width - 1));
}

namespace {

Tensor grid_edge_weight(const Tensor& features, const std::string& metric_name) {
    const char* function = "grid_edge_weight";
    FeatureMap map(function, features, metric_name);
    Tensor vectors = as_contiguous_float32(features);
    Tensor weight = make_empty(vectors, {map.batch, map.edges});

    const float* from = vectors.const_data_ptr<float>();
    float* to = weight.mutable_data_ptr<float>();
    parallel_for_each(function, map.batch, [&](int64_t image) {
        grid_edge_weight_cpu(from + image * map.vertices * map.channels, map.height, map.width, map.channels,
                             map.metric, to + image * map.edges);
    });
    return weight;
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    GROOTV_IMPL(m, grid_edge_weight);
}
