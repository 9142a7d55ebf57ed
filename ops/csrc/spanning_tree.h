// Minimum spanning trees under the total order (float32 weight, edge index).
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "checks.h"
#include "edge_weight.h"

namespace grootv {

// Keys compare as unsigned integers the way the weights compare: -0 equals 0 and NaN follows infinity. No
// weight has the largest key, which marks a missing edge.
constexpr uint32_t NO_EDGE = 0xFFFFFFFFu;

GROOTV_INLINE uint32_t ordered_key(float weight) {
    uint32_t bits = std::bit_cast<uint32_t>(weight + 0.0f);
    uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return weight != weight ? NO_EDGE - 1 : key;
}

// Entries before and after the grid in arrays over its vertices, so that every vertex may read its four neighbours.
constexpr int64_t grid_padding(int32_t width) {
    return int64_t{width} + 1;
}

// Checked weights (B, E) of the edges of a grid.
struct GridWeights {
    GridWeights(const char* function, const Tensor& edge_weight, int64_t height, int64_t width) {
        check_grid(function, height, width);
        check_dtype(function, "edge_weight", edge_weight, ScalarType::Float);
        check_dim(function, "edge_weight", edge_weight, 2, "(B, E)");
        batch = edge_weight.size(0), vertices = height * width, edges = grid_edges(height, width);
        check_shape(function, "edge_weight", "one value per edge of the grid", edge_weight, {batch, edges});
    }

    int64_t batch, vertices, edges;
};

// Checked weights (B, M) of the edges of any graph, (1 or B, M, 2).
struct GraphWeights {
    GraphWeights(const char* function, const Tensor& edges, const Tensor& edge_weight, int64_t num_vertices) {
        check_num_vertices(function, num_vertices);
        check_dtype(function, "edge_weight", edge_weight, ScalarType::Float);
        check_dim(function, "edge_weight", edge_weight, 2, "(B, M)");
        check_dtype(function, "edges", edges, ScalarType::Int);
        batch = edge_weight.size(0), count = edge_weight.size(1);
        check(count <= std::numeric_limits<int32_t>::max(), function, ": a graph must have less than 2^31 edges, got ",
              count);
        check(batch == 0 || count >= num_vertices - 1, function, ": every graph must be connected, but ", count,
              " edges cannot join ", num_vertices, " vertices");
        graphs = edges.dim() == 3 && edges.size(0) == 1 ? 1 : batch;
        check_shape(function, "edges", "one pair of vertices per weight", edges, {graphs, count, 2});
        check_same_device(function, "edge_weight", edge_weight, edges);
    }

    // What is wrong with the data itself.
    static void check_vertex(const char* function, bool found, int64_t num_vertices, int64_t vertex) {
        check(found, function, ": edges must join vertices 0 to ", num_vertices - 1, ", got ", vertex);
    }
    static void check_connected(const char* function, bool connected, int64_t graph) {
        check(connected, function, ": every graph must be connected, but graph ", graph,
              " of the batch has several components");
    }

    int64_t batch, graphs, count;
};

// The tree of a grid as flags: down[v] joins v to v + width, right[v] joins v to v + 1. Their padding is not touched.
void grid_spanning_tree_cpu(const float* weight, int32_t height, int32_t width, uint8_t* down, uint8_t* right);

// The same for a batch of grids on a CUDA device; v counts the vertices of the whole batch, and there is no padding.
class Device;
class Workspace;
void grid_spanning_tree_cuda(const Device& device, Workspace& workspace, const float* weight, int64_t batch,
                             int32_t height, int32_t width, uint8_t* down, uint8_t* right);

}  // namespace grootv
