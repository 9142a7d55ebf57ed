// Breadth-first order of a rooted tree.
#pragma once

#include <cstdint>
#include <tuple>

#include "checks.h"
#include "edge_weight.h"

namespace grootv {

// Each of as many entries as there are vertices.
struct TreePointers {
    int32_t* order;
    int32_t* parent;
};

// The tensors of a batch of trees, to be filled.
struct EmptyTree {
    EmptyTree(const Tensor& like, int64_t batch, int64_t vertices)
        : order(make_empty(like, {batch, vertices}, ScalarType::Int)),
          parent(make_empty(like, {batch, vertices}, ScalarType::Int)),
          first{order.mutable_data_ptr<int32_t>(), parent.mutable_data_ptr<int32_t>()},
          vertices(vertices) {}

    TreePointers operator[](int64_t item) const {
        return {first.order + item * vertices, first.parent + item * vertices};
    }

    std::tuple<Tensor, Tensor> tensors() const { return {order, parent}; }

    Tensor order, parent;
    TreePointers first;
    int64_t vertices;
};

// Checked tree_edges (B, H * W - 1) of a grid.
struct GridTreeEdges {
    GridTreeEdges(const char* function, const Tensor& tree_edges, int64_t height, int64_t width, int64_t root) {
        check_grid(function, height, width);
        check_dtype(function, "tree_edges", tree_edges, ScalarType::Int);
        check_dim(function, "tree_edges", tree_edges, 2, "(B, H * W - 1)");
        batch = tree_edges.size(0), vertices = height * width, edges = grid_edges(height, width);
        check_shape(function, "tree_edges", "one edge less than the grid has vertices", tree_edges,
                    {batch, vertices - 1});
        check_root(function, root, vertices);
    }

    // What is wrong with the data itself.
    static void check_tree(const char* function, bool fine, int64_t height, int64_t width, int64_t item) {
        check(fine, function, ": tree_edges must be a spanning tree of the ", height, " x ", width,
              " grid, but those of item ", item, " are not");
    }

    int64_t batch, vertices, edges;
};

// Checked edges (1 or B, M, 2) of a graph and tree_edges (B, V - 1).
struct GraphTreeEdges {
    GraphTreeEdges(const char* function, const Tensor& edges, const Tensor& tree_edges, int64_t num_vertices,
                   int64_t root) {
        check_num_vertices(function, num_vertices);
        check_dtype(function, "edges", edges, ScalarType::Int);
        check_dtype(function, "tree_edges", tree_edges, ScalarType::Int);
        check_dim(function, "tree_edges", tree_edges, 2, "(B, V - 1)");
        check_dim(function, "edges", edges, 3, "(M, 2) or (B, M, 2)");
        batch = tree_edges.size(0), count = edges.size(1);
        graphs = edges.size(0) == 1 ? 1 : batch;
        check_shape(function, "edges", "one list of vertex pairs per tree, or one for all", edges, {graphs, count, 2});
        check_shape(function, "tree_edges", "one edge less than the graph has vertices", tree_edges,
                    {batch, num_vertices - 1});
        check_same_device(function, "tree_edges", tree_edges, edges);
        check_root(function, root, num_vertices);
    }

    // What is wrong with the data itself.
    static void check_tree(const char* function, bool fine, int64_t item) {
        check(fine, function, ": tree_edges must be a spanning tree of the graph, but those of item ", item,
              " are not");
    }

    int64_t batch, graphs, count;
};

// Flags as in spanning_tree.h, with zeros in their padding. False if they are not a spanning tree of the grid.
bool grid_breadth_first_order_cpu(const uint8_t* down, const uint8_t* right, int32_t height, int32_t width,
                                  int32_t root, TreePointers tree);

}  // namespace grootv
