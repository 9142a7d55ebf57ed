// Four threads share a vertex: thread t has the partial sums 4 t ... 4 t + 3 of the vertex with itself and with its
// neighbours below and to the right, whose norms their own threads leave in shared memory.
#include "edge_weight.h"

#include "cuda/common/partial_sums.h"
#include "tree_scan.h"

namespace grootv {
namespace {

constexpr int TILE_HEIGHT = 4;  // a block's vertices: a tile, whose rows are read from the L1 cache again
constexpr int TILE_WIDTH = ELEMENT_THREADS / SUM_THREADS / TILE_HEIGHT;
// A tile's norms, with those of the row below it and of the column to its right.
constexpr int NORM_COLUMNS = TILE_WIDTH + 1, NORMS = (TILE_HEIGHT + 1) * NORM_COLUMNS;

template <Metric metric>
__device__ void add_term(FloatVector x, FloatVector y, FloatVector& sum) {
    for (int i = 0; i < THREAD_SUMS; ++i) {
        const float difference = x.element[i] - y.element[i];
        if constexpr (metric == Metric::cosine)
            sum.element[i] += x.element[i] * y.element[i];
        else if constexpr (metric == Metric::euclidean)
            sum.element[i] += difference * difference;
        else
            sum.element[i] += difference < 0 ? -difference : difference;
    }
}

template <Metric metric, bool ALIGNED, class scalar_t>
__global__ void grid_edge_weight_kernel(const scalar_t* features, int32_t height, int32_t width, int64_t channels,
                                        float* weight) {
    const int32_t tile_columns = (width + TILE_WIDTH - 1) / TILE_WIDTH;
    const int32_t tile_rows = (height + TILE_HEIGHT - 1) / TILE_HEIGHT;
    const int32_t tile = static_cast<int32_t>(blockIdx.x), tile_row = tile / tile_columns;
    const int64_t image = tile_row / tile_rows;
    const int32_t place = static_cast<int32_t>(threadIdx.x) / SUM_THREADS, rank = threadIdx.x % SUM_THREADS;
    const int32_t first_row = tile_row % tile_rows * TILE_HEIGHT, first_column = tile % tile_columns * TILE_WIDTH;
    const int32_t row = first_row + place / TILE_WIDTH, column = first_column + place % TILE_WIDTH;
    const bool has_below = row + 1 < height && column < width, has_right = row < height && column + 1 < width;

    // Threads outside the grid take part in the shuffles with the first vertex.
    auto vertex_at = [=](int32_t row, int32_t column) {
        return row < height && column < width ? int64_t{row} * width + column : 0;
    };
    const int64_t vertex = vertex_at(row, column);
    features += image * height * width * channels;
    const scalar_t* own = features + vertex * channels;
    const scalar_t* below = has_below ? own + width * channels : own;
    const scalar_t* right = has_right ? own + channels : own;
    FloatVector down_sum{}, right_sum{}, square{};
    for (int64_t c = THREAD_SUMS * rank; c < channels; c += SIMD_WIDTH) {
        FloatVector x = load<ALIGNED>(own, c, channels), y = load<ALIGNED>(below, c, channels);
        FloatVector z = load<ALIGNED>(right, c, channels);
        add_term<metric>(x, y, down_sum);
        add_term<metric>(x, z, right_sum);
        if constexpr (metric == Metric::cosine) add_term<metric>(x, x, square);
    }

    // The first thread has the edge down, the second that to the right.
    const float down_weight = add_up(down_sum), right_weight = add_up(right_sum);
    float own_weight = rank == 0 ? down_weight : right_weight;
    if constexpr (metric == Metric::cosine) {
        auto* norms = reinterpret_cast<float*>(shared_memory());
        const int32_t at = place / TILE_WIDTH * NORM_COLUMNS + place % TILE_WIDTH;
        const float norm = norm_of(add_up(square));
        if (rank == 0) norms[at] = norm;
        if (place - place % (WARP / SUM_THREADS) < TILE_WIDTH + TILE_HEIGHT) {  // by whole warps
            const bool is_below = place < TILE_WIDTH;
            const int32_t next_row = is_below ? TILE_HEIGHT : place - TILE_WIDTH;
            const int32_t next_column = is_below ? place : TILE_WIDTH;
            const scalar_t* next = features + vertex_at(first_row + next_row, first_column + next_column) * channels;
            FloatVector next_square{};
            for (int64_t c = THREAD_SUMS * rank; c < channels; c += SIMD_WIDTH) {
                FloatVector x = load<ALIGNED>(next, c, channels);
                add_term<metric>(x, x, next_square);
            }
            const float next_norm = norm_of(add_up(next_square));
            if (rank == 0 && place < TILE_WIDTH + TILE_HEIGHT) norms[next_row * NORM_COLUMNS + next_column] = next_norm;
        }
        __syncthreads();
        own_weight = cosine_weight(own_weight, norm, norms[at + (rank == 0 ? NORM_COLUMNS : 1)]);
    }
    const int64_t vertical = int64_t{height - 1} * width;
    float* to = weight + image * (vertical + int64_t{height} * (width - 1));
    if (rank == 0 && has_below) to[vertex] = own_weight;
    if (rank == 1 && has_right) to[vertical + vertex - row] = own_weight;
}

template <Metric metric, class scalar_t>
void launch_kernel(const Device& device, const Tensor& features, const FeatureMap& map, float* weight) {
    const scalar_t* from = features.const_data_ptr<scalar_t>();
    const bool aligned = is_aligned(from, map.channels);
    const int64_t tiles =
        map.batch * ((map.height + TILE_HEIGHT - 1) / TILE_HEIGHT) * ((map.width + TILE_WIDTH - 1) / TILE_WIDTH);
    auto* kernel =
        aligned ? grid_edge_weight_kernel<metric, true, scalar_t> : grid_edge_weight_kernel<metric, false, scalar_t>;
    device.launch(kernel, tiles, ELEMENT_THREADS, NORMS * sizeof(float), from, map.height, map.width, map.channels,
                  weight);
}

Tensor grid_edge_weight(const Tensor& features, const std::string& metric_name) {
    const char* function = "grid_edge_weight";
    FeatureMap map(function, features, metric_name);
    check_batch(function, map.batch, map.vertices);
    Device device(function, features);
    Tensor contiguous = as_contiguous(features);
    Tensor weight = make_empty(contiguous, {map.batch, map.edges}, ScalarType::Float);
    grid_edge_weight_cuda(device, contiguous, map, weight.mutable_data_ptr<float>());
    return weight;
}

}  // namespace

void grid_edge_weight_cuda(const Device& device, const Tensor& features, const FeatureMap& map, float* weight) {
    if (map.batch * map.edges == 0) return;
    dispatch_floating(features, [&]<class scalar_t>(scalar_t) {
        switch (map.metric) {
            case Metric::cosine: return launch_kernel<Metric::cosine, scalar_t>(device, features, map, weight);
            case Metric::euclidean: return launch_kernel<Metric::euclidean, scalar_t>(device, features, map, weight);
            case Metric::manhattan: return launch_kernel<Metric::manhattan, scalar_t>(device, features, map, weight);
        }
    });
}

}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, grid_edge_weight);
}
