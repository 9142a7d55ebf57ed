#include "traversal.h"

#include <algorithm>
#include <atomic>

#include "cpu/parallel.h"
#include "cpu/vectorize.h"
#include "cpu/workspace.h"
#include "edge_weight.h"
#include "spanning_tree.h"

namespace grootv {
namespace {

// Breadth-first search. append(vertex, its parent, queue, parents, tail) appends the other neighbours of a vertex by
// index, with the vertex as their parent, and returns the new tail. False if the
// search finds more vertices than there are, or fewer: then the edges are not a spanning tree.
template <class Append>
bool breadth_first(int32_t vertices, int32_t root, TreePointers tree, Append append) {
    // Four more entries than vertices: a vertex of a grid is stored before it is known to exist.
    Workspace workspace;
    auto* queue = workspace.take<int32_t>(int64_t{vertices} + 4);
    auto* parent = workspace.take<int32_t>(int64_t{vertices} + 4);
    int32_t tail = 1;
    queue[0] = parent[0] = root;
    for (int32_t head = 0; head < tail; ++head) {
        tail = append(queue[head], parent[head], queue, parent, tail);
        if (tail > vertices) return false;
    }
    if (tail != vertices) return false;
    std::copy_n(queue, vertices, tree.order);
    for (int32_t i = 0; i < vertices; ++i) tree.parent[queue[i]] = parent[i];
    return true;
}

// Bit by bit, whether a vertex is joined to the one above, left, right and below.
GROOTV_VECTORIZE void join_flags(const uint8_t* down, const uint8_t* right, int32_t vertices, int32_t width,
                                 uint8_t* joined) {
    for (int32_t v = 0; v < vertices; ++v)
        joined[v] = down[v - width] | right[v - 1] << 1 | right[v] << 2 | down[v] << 3;
}

}  // namespace

bool grid_breadth_first_order_cpu(const uint8_t* down, const uint8_t* right, int32_t height, int32_t width,
                                  int32_t root, TreePointers tree) {
    int32_t vertices = height * width;
    Workspace workspace;
    auto* joined = workspace.take<uint8_t>(vertices);
    join_flags(down, right, vertices, width, joined);
    const int32_t offset[4] = {-width, -1, 1, width};
    return breadth_first(vertices, root, tree,
                         [&](int32_t v, int32_t from, int32_t* queue, int32_t* parent, int32_t tail) {
                             for (int side = 0; side < 4; ++side) {
                                 int32_t neighbour = v + offset[side];
                                 queue[tail] = neighbour;
                                 parent[tail] = v;
                                 tail += (joined[v] >> side & 1) & (neighbour != from);
                             }
                             return tail;
                         });
}

namespace {

// Tree flags of one grid, none set.
struct GridFlags {
    GridFlags(Workspace& workspace, int64_t height, int32_t width) : size(height * width + 2 * grid_padding(width)) {
        down = workspace.take<uint8_t>(size) + grid_padding(width);
        right = workspace.take<uint8_t>(size) + grid_padding(width);
        std::fill_n(down - grid_padding(width), size, 0);
        std::fill_n(right - grid_padding(width), size, 0);
    }

    int64_t size;
    uint8_t *down, *right;
};

std::tuple<Tensor, Tensor> breadth_first_order(const Tensor& tree_edges, int64_t height, int64_t width, int64_t root) {
    const char* function = "breadth_first_order";
    GridTreeEdges grid(function, tree_edges, height, width, root);
    const int64_t batch = grid.batch, vertices = grid.vertices, edges = grid.edges, vertical = (height - 1) * width;
    Tensor chosen = as_contiguous(tree_edges);
    EmptyTree tree(chosen, batch, vertices);

    const int32_t* from = chosen.const_data_ptr<int32_t>();
    std::atomic<int64_t> wrong{-1};
    parallel_for_each(function, batch, [&](int64_t image) {
        Workspace workspace;
        GridFlags flags(workspace, height, width);
        bool fine = true;
        for (int64_t i = 0; i < vertices - 1; ++i) {
            int64_t edge = from[image * (vertices - 1) + i];
            if (edge < 0 || edge >= edges) {
                fine = false;
            } else if (edge < vertical) {
                flags.down[edge] = 1;
            } else {
                flags.right[edge - vertical + (edge - vertical) / (width - 1)] = 1;
            }
        }
        fine = fine && grid_breadth_first_order_cpu(flags.down, flags.right, height, width, root, tree[image]);
        if (!fine) wrong = image;
    });
    GridTreeEdges::check_tree(function, wrong < 0, height, width, wrong);
    return tree.tensors();
}

std::tuple<Tensor, Tensor> breadth_first_order_from_edges(const Tensor& edges, const Tensor& tree_edges,
                                                          int64_t num_vertices, int64_t root, bool /*wait*/) {
    const char* function = "breadth_first_order_from_edges";
    GraphTreeEdges graph_edges(function, edges, tree_edges, num_vertices, root);
    const int64_t batch = graph_edges.batch, graphs = graph_edges.graphs, count = graph_edges.count;
    const int64_t vertices = num_vertices;
    Tensor pairs = as_contiguous(edges), chosen = as_contiguous(tree_edges);
    EmptyTree tree(chosen, batch, vertices);

    const int32_t* ends_of = pairs.const_data_ptr<int32_t>();
    const int32_t* from = chosen.const_data_ptr<int32_t>();
    std::atomic<int64_t> wrong{-1};
    parallel_for_each(function, batch, [&](int64_t graph) {
        const int32_t* pair = ends_of + (graphs == 1 ? 0 : graph) * count * 2;
        const int32_t* tree_edge = from + graph * (vertices - 1);
        bool fine = true;
        for (int64_t i = 0; i < vertices - 1 && fine; ++i) {
            int64_t edge = tree_edge[i];
            fine = edge >= 0 && edge < count;
            for (int side = 0; side < 2 && fine; ++side)
                fine = pair[2 * edge + side] >= 0 && pair[2 * edge + side] < vertices;
        }
        if (!fine) {
            wrong = graph;
            return;
        }
        // Neighbours of v: neighbour[start[v]] to neighbour[start[v + 1] - 1], by index.
        Workspace workspace;
        auto *start = workspace.take<int32_t>(vertices + 2), *neighbour = workspace.take<int32_t>(2 * vertices);
        std::fill_n(start, vertices + 2, 0);
        for (int64_t i = 0; i < vertices - 1; ++i)
            for (int side = 0; side < 2; ++side) ++start[pair[2 * int64_t{tree_edge[i]} + side] + 2];
        for (int64_t v = 2; v <= vertices + 1; ++v) start[v] += start[v - 1];
        for (int64_t i = 0; i < vertices - 1; ++i) {
            const int32_t* ends = pair + 2 * int64_t{tree_edge[i]};
            for (int side = 0; side < 2; ++side) neighbour[start[ends[side] + 1]++] = ends[1 - side];
        }
        for (int64_t v = 0; v < vertices; ++v) {
            int32_t *begin = neighbour + start[v], *end = neighbour + start[v + 1];
            std::sort(begin, end);
            fine = fine && std::adjacent_find(begin, end) == end;
        }
        auto append = [&](int32_t v, int32_t parent_of_v, int32_t* queue, int32_t* parent, int32_t tail) {
            for (int32_t i = start[v]; i < start[v + 1]; ++i) {
                if (neighbour[i] == parent_of_v) continue;
                if (tail == vertices) return tail + 1;
                queue[tail] = neighbour[i];
                parent[tail++] = v;
            }
            return tail;
        };
        fine = fine && breadth_first(static_cast<int32_t>(vertices), root, tree[graph], append);
        if (!fine) wrong = graph;
    });
    GraphTreeEdges::check_tree(function, wrong < 0, wrong);
    return tree.tensors();
}

std::tuple<Tensor, Tensor> build_tree(const Tensor& features, const std::string& metric_name, int64_t root) {
    const char* function = "build_tree";
    FeatureMap map(function, features, metric_name);
    check_root(function, root, map.vertices);
    Tensor vectors = as_contiguous_float32(features);
    EmptyTree tree(vectors, map.batch, map.vertices);

    const float* from = vectors.const_data_ptr<float>();
    const auto height = static_cast<int32_t>(map.height), width = static_cast<int32_t>(map.width);
    parallel_for_each(function, map.batch, [&](int64_t image) {
        Workspace workspace;
        auto* weight = workspace.take<float>(map.edges);
        GridFlags flags(workspace, height, width);
        grid_edge_weight_cpu(from + image * map.vertices * map.channels, height, width, map.channels, map.metric,
                             weight);
        grid_spanning_tree_cpu(weight, height, width, flags.down, flags.right);
        grid_breadth_first_order_cpu(flags.down, flags.right, height, width, root, tree[image]);
    });
    return tree.tensors();
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    GROOTV_IMPL(m, breadth_first_order);
    GROOTV_IMPL(m, breadth_first_order_from_edges);
    GROOTV_IMPL(m, build_tree);
}
