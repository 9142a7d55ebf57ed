// Four threads share a vertex: thread t sums the lanes 4 t ... 4 t + 3 of the vertex with itself and with its
// neighbours below and beside, and of these with themselves, so that no other thread is needed for their norms.
#include "edge_weight.h"

#include <torch/csrc/stable/library.h>

#include "cuda/common/partial_sums.h"
#include "tree_scan.h"

namespace grootv {
namespace {

constexpr int TILE_HEIGHT = 4;  // a block's vertices: a tile, whose rows are read from the L1 cache again
constexpr int TILE_WIDTH = ITEM_THREADS / SHARE / TILE_HEIGHT;

template <Metric metric>
__device__ void add_term(Floats x, Floats y, Floats& sum) {
    for (int i = 0; i < PART; ++i) {
        const float difference = x.element[i] - y.element[i];
        if constexpr (metric == Metric::cosine)
            sum.element[i] += x.element[i] * y.element[i];
        else if constexpr (metric == Metric::euclidean)
            sum.element[i] += difference * difference;
        else
            sum.element[i] += difference < 0 ? -difference : difference;
    }
}

template <Metric metric, bool ALIGNED, class T>
__global__ void grid_edge_weight_kernel(const T* features, int32_t height, int32_t width, int64_t channels,
                                        float* weight) {
    const int32_t tiles_beside = (width + TILE_WIDTH - 1) / TILE_WIDTH;
    const int32_t tiles_below = (height + TILE_HEIGHT - 1) / TILE_HEIGHT;
    const int32_t tile = static_cast<int32_t>(blockIdx.x), tile_row = tile / tiles_beside;
    const int64_t image = tile_row / tiles_below;
    const int32_t place = static_cast<int32_t>(threadIdx.x) / SHARE, share = threadIdx.x % SHARE;
    const int32_t row = tile_row % tiles_below * TILE_HEIGHT + place / TILE_WIDTH;
    const int32_t column = tile % tiles_beside * TILE_WIDTH + place % TILE_WIDTH;
    const bool has_below = row + 1 < height && column < width, has_beside = row < height && column + 1 < width;

    // Threads outside the grid take part in the shuffles with the first vertex.
    const int64_t vertex = row < height && column < width ? int64_t{row} * width + column : 0;
    const T* own = features + (image * height * width + vertex) * channels;
    const T* below = has_below ? own + width * channels : own;
    const T* beside = has_beside ? own + channels : own;
    Floats down{}, right{}, own_square{}, below_square{}, beside_square{};
    for (int64_t c = PART * share; c < channels; c += SIMD_WIDTH) {
        Floats x = load<ALIGNED>(own, c, channels), y = load<ALIGNED>(below, c, channels);
        Floats z = load<ALIGNED>(beside, c, channels);
        add_term<metric>(x, y, down);
        add_term<metric>(x, z, right);
        if constexpr (metric == Metric::cosine) {
            add_term<metric>(x, x, own_square);
            add_term<metric>(y, y, below_square);
            add_term<metric>(z, z, beside_square);
        }
    }

    float down_weight = sum_lanes(down), right_weight = sum_lanes(right);
    if constexpr (metric == Metric::cosine) {
        const float norm = norm_of(sum_lanes(own_square));
        down_weight = cosine_weight(down_weight, norm, norm_of(sum_lanes(below_square)));
        right_weight = cosine_weight(right_weight, norm, norm_of(sum_lanes(beside_square)));
    }
    const int64_t vertical = int64_t{height - 1} * width;
    float* to = weight + image * (vertical + int64_t{height} * (width - 1));
    if (share == 0 && has_below) to[vertex] = down_weight;
    if (share == 1 && has_beside) to[vertical + vertex - row] = right_weight;
}

template <Metric metric, class T>
void launch_kernel(const Device& device, const Tensor& features, const FeatureMap& map, float* weight) {
    const T* from = features.const_data_ptr<T>();
    const bool aligned = in_parts(from, map.channels);
    const int64_t tiles =
        map.batch * ((map.height + TILE_HEIGHT - 1) / TILE_HEIGHT) * ((map.width + TILE_WIDTH - 1) / TILE_WIDTH);
    auto* kernel = aligned ? grid_edge_weight_kernel<metric, true, T> : grid_edge_weight_kernel<metric, false, T>;
    device.launch(kernel, dim3(static_cast<unsigned>(tiles)), ITEM_THREADS, 0, from, map.height, map.width,
                  map.channels, weight);
}

Tensor grid_edge_weight(const Tensor& features, const std::string& metric_name) {
    const char* function = "grid_edge_weight";
    FeatureMap map(function, features, metric_name);
    check_batch(function, map.batch, map.vertices);
    Device device(function, features);
    Tensor vectors = as_contiguous(features);
    Tensor weight = torch::stable::new_empty(vectors, {map.batch, map.edges}, ScalarType::Float);
    grid_edge_weight_cuda(device, vectors, map, weight.mutable_data_ptr<float>());
    return weight;
}

}  // namespace

void grid_edge_weight_cuda(const Device& device, const Tensor& features, const FeatureMap& map, float* weight) {
    if (map.batch * map.edges == 0) return;
    dispatch_floating(features, [&](auto zero) {
        using T = decltype(zero);
        switch (map.metric) {
            case Metric::cosine: return launch_kernel<Metric::cosine, T>(device, features, map, weight);
            case Metric::euclidean: return launch_kernel<Metric::euclidean, T>(device, features, map, weight);
            case Metric::manhattan: return launch_kernel<Metric::manhattan, T>(device, features, map, weight);
        }
    });
}

}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    m.impl("grid_edge_weight", TORCH_BOX(&grootv::grid_edge_weight));
}
