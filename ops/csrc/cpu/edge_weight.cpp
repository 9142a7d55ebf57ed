#include "edge_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/workspace.h"

namespace grootv {
namespace {

template <Metric metric>
GROOTV_INLINE Lanes<float> term(Lanes<float> x, Lanes<float> y) {
    if constexpr (metric == Metric::cosine) return x * y;
    Lanes<float> difference = x - y;
    if constexpr (metric == Metric::euclidean) return difference * difference;
    return difference < 0 ? -difference : difference;
}

struct VertexSums {
    float own, down, right;
};

// Terms of vertex x with itself and its two neighbours, each vector read once.
template <Metric metric>
GROOTV_INLINE VertexSums vertex_sums(const float* x, const float* down, const float* right, int64_t channels) {
    Lanes<float> own_sum{}, down_sum{}, right_sum{};
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= channels; c += SIMD_WIDTH) {
        Lanes<float> lanes = load(x + c);
        if constexpr (metric == Metric::cosine) own_sum += lanes * lanes;
        down_sum += term<metric>(lanes, load(down + c));
        right_sum += term<metric>(lanes, load(right + c));
    }
    if (int64_t rest = channels - c) {
        Lanes<float> lanes = load_tail(x + c, rest);
        if constexpr (metric == Metric::cosine) own_sum += lanes * lanes;
        down_sum += term<metric>(lanes, load_tail(down + c, rest));
        right_sum += term<metric>(lanes, load_tail(right + c, rest));
    }
    return {sum<float>(own_sum), sum<float>(down_sum), sum<float>(right_sum)};
}

constexpr int64_t STRIP_BYTES = 12 << 10;

// down, right: (vertices), an entry without a neighbour is meaningless. own: squared norms.
template <Metric metric>
GROOTV_INLINE void sum_terms(const float* features, int32_t height, int32_t width, int64_t channels, float* own,
                             float* down, float* right) {
    // In strips narrow enough that a row is still in the L1 cache when it is read as the row above.
    const int32_t strip = static_cast<int32_t>(std::max<int64_t>(1, STRIP_BYTES / sizeof(float) / (channels + 1)));
    for (int32_t left = 0; left < width; left += strip) {
        for (int32_t row = 0; row < height; ++row) {
            for (int32_t column = left; column < std::min(width, left + strip); ++column) {
                int64_t vertex = int64_t{row} * width + column;
                const float* x = features + vertex * channels;
                const float* below = row + 1 < height ? x + width * channels : x;
                const float* beside = column + 1 < width ? x + channels : x;
                VertexSums sums = vertex_sums<metric>(x, below, beside, channels);
                own[vertex] = sums.own;
                down[vertex] = sums.down;
                right[vertex] = sums.right;
            }
        }
    }
}

GROOTV_VECTORIZE void sum_terms(const float* features, int32_t height, int32_t width, int64_t channels, Metric metric,
                                float* own, float* down, float* right) {
    switch (metric) {
        case Metric::cosine: return sum_terms<Metric::cosine>(features, height, width, channels, own, down, right);
        case Metric::euclidean:
            return sum_terms<Metric::euclidean>(features, height, width, channels, own, down, right);
        case Metric::manhattan:
            return sum_terms<Metric::manhattan>(features, height, width, channels, own, down, right);
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
    sum_terms(features, height, width, channels, metric, norm, down, right);

    int64_t vertical = vertices - width;
    float* horizontal = weight + vertical;
    if (metric == Metric::cosine) {
        square_norm_to_norm(norm, vertices);
        dot_to_weight(down, norm, norm + width, vertical, weight);
        dot_to_weight(right, norm, norm + 1, vertices - 1, right);
    } else {
        std::memcpy(weight, down, vertical * sizeof(float));
    }
    for (int32_t row = 0; row < height; ++row)
        std::memcpy(horizontal + int64_t{row} * (width - 1), right + int64_t{row} * width, (width - 1) * sizeof(float));
}

namespace {

Tensor grid_edge_weight(const Tensor& features, const std::string& metric_name) {
    const char* function = "grid_edge_weight";
    FeatureMap map(function, features, metric_name);
    Tensor vectors = as_contiguous_float32(features);
    Tensor weight = torch::stable::new_empty(vectors, {map.batch, map.edges});

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
    m.impl("grid_edge_weight", TORCH_BOX(&grootv::grid_edge_weight));
}
