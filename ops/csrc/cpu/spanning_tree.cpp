// A grid decides most edges in two vector passes: the lightest edge of a vertex is in the tree (cut
// property), the heaviest edge of a 2 x 2 cell is not (cycle property). Kruskal's algorithm settles the rest,
// about 0.6 L of 2 L edges. A general graph is all rest.
#include "spanning_tree.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "cpu/vectorize.h"

namespace grootv {
namespace {

struct Candidate {
    uint32_t key;
    uint32_t edge;
};

// Stable least-significant-digit radix sort by key: candidates that come in by edge index leave in the total
// order. The result is in `candidates`; `spare` has the same size.
void sort_by_key(std::vector<Candidate>& candidates, std::vector<Candidate>& spare) {
    constexpr int BITS = 11, DIGITS = 3;
    constexpr uint32_t BUCKETS = 1u << BITS;
    std::array<std::array<uint32_t, BUCKETS>, DIGITS> start{};
    for (Candidate candidate : candidates)
        for (int digit = 0; digit < DIGITS; ++digit) ++start[digit][candidate.key >> digit * BITS & (BUCKETS - 1)];
    for (int digit = 0; digit < DIGITS; ++digit) {
        uint32_t shift = digit * BITS, total = 0;
        auto& bucket = start[digit];
        if (!candidates.empty() && bucket[candidates[0].key >> shift & (BUCKETS - 1)] == candidates.size()) continue;
        for (uint32_t& count : bucket) total += std::exchange(count, total);
        for (Candidate candidate : candidates) spare[bucket[candidate.key >> shift & (BUCKETS - 1)]++] = candidate;
        std::swap(candidates, spare);
    }
}

class Components {
public:
    explicit Components(int32_t* parent) : parent_(parent) {}

    int32_t find(int32_t vertex) {
        while (parent_[vertex] != vertex) {
            parent_[vertex] = parent_[parent_[vertex]];
            vertex = parent_[vertex];
        }
        return vertex;
    }

    bool join(int32_t a, int32_t b) {
        a = find(a);
        b = find(b);
        parent_[b] = a;
        return a != b;
    }

private:
    int32_t* parent_;
};

enum Direction : uint8_t { UP, DOWN, LEFT, RIGHT, NONE };

GROOTV_VECTORIZE void ordered_keys(const float* weight, int64_t count, uint32_t* key) {
    for (int64_t i = 0; i < count; ++i) key[i] = ordered_key(weight[i]);
}

// Edge keys by vertex, with NO_EDGE wherever the grid has no edge.
struct GridKeys {
    GridKeys(const float* weight, int32_t height, int32_t width)
        : storage(2 * (int64_t{height} * width + 2 * grid_padding(width)), NO_EDGE),
          down(storage.data() + grid_padding(width)),
          right(down + int64_t{height} * width + 2 * grid_padding(width)) {
        int64_t vertical = int64_t{height - 1} * width;
        ordered_keys(weight, vertical, down);
        for (int64_t row = 0; row < height; ++row)
            ordered_keys(weight + vertical + row * (width - 1), width - 1, right + row * width);
    }

    std::vector<uint32_t> storage;
    uint32_t *down, *right;
};

// Direction of each vertex's lightest edge. Edge indices grow from up to right, so the first of equals wins.
GROOTV_VECTORIZE void lightest_edges(const uint32_t* down, const uint32_t* right, int64_t vertices, int32_t width,
                                     uint8_t* lightest) {
    for (int64_t v = 0; v < vertices; ++v) {
        uint32_t key = down[v - width];
        uint32_t direction = UP;
        direction = down[v] < key ? uint32_t{DOWN} : direction;
        key = std::min(key, down[v]);
        direction = right[v - 1] < key ? uint32_t{LEFT} : direction;
        key = std::min(key, right[v - 1]);
        direction = right[v] < key ? uint32_t{RIGHT} : direction;
        lightest[v] = static_cast<uint8_t>(direction);
    }
}

// Side of each cell's heaviest edge; a cell is named by its upper left vertex. Edge indices grow from left to
// right side to top to bottom, so the last of equals wins.
GROOTV_VECTORIZE void heaviest_edges(const uint32_t* down, const uint32_t* right, int64_t vertices, int32_t width,
                                     uint8_t* heaviest) {
    for (int64_t v = 0; v < vertices; ++v) {
        uint32_t key = down[v];
        uint32_t direction = LEFT;
        direction = down[v + 1] >= key ? uint32_t{RIGHT} : direction;
        key = std::max(key, down[v + 1]);
        direction = right[v] >= key ? uint32_t{UP} : direction;
        key = std::max(key, right[v]);
        direction = right[v + width] >= key ? uint32_t{DOWN} : direction;
        bool cell = (down[v] != NO_EDGE) & (right[v] != NO_EDGE);
        heaviest[v] = static_cast<uint8_t>(cell ? direction : uint32_t{NONE});
    }
}

// chosen: 1 for edges of the tree so far. open: 1 for edges still to be decided.
GROOTV_VECTORIZE void decide_edges(const uint8_t* lightest, const uint8_t* heaviest, const uint32_t* down,
                                   const uint32_t* right, int64_t vertices, int32_t width, uint8_t* down_chosen,
                                   uint8_t* right_chosen, uint8_t* down_open, uint8_t* right_open) {
    for (int64_t v = 0; v < vertices; ++v) {
        bool chosen = (lightest[v] == DOWN) | (lightest[v + width] == UP);
        bool rejected = (heaviest[v] == LEFT) | (heaviest[v - 1] == RIGHT);
        down_chosen[v] = chosen & (down[v] != NO_EDGE);
        down_open[v] = !chosen & !rejected & (down[v] != NO_EDGE);
    }
    for (int64_t v = 0; v < vertices; ++v) {
        bool chosen = (lightest[v] == RIGHT) | (lightest[v + 1] == LEFT);
        bool rejected = (heaviest[v] == UP) | (heaviest[v - width] == DOWN);
        right_chosen[v] = chosen & (right[v] != NO_EDGE);
        right_open[v] = !chosen & !rejected & (right[v] != NO_EDGE);
    }
}

// Following lightest edges ends in a pair of vertices that chose each other; the smaller one is the root. The
// result is a forest of component pointers. Returns its number of roots.
GROOTV_VECTORIZE int32_t link_components(const uint8_t* lightest, int32_t vertices, int32_t width, int32_t* parent) {
    int32_t roots = 0;
    for (int32_t v = 0; v < vertices; ++v) {
        int32_t direction = lightest[v], below = lightest[v + width], beside = lightest[v + 1];
        int32_t root = ((direction == DOWN) & (below == UP)) | ((direction == RIGHT) & (beside == LEFT));
        int32_t offset = direction == UP ? -width : direction == DOWN ? width : direction == LEFT ? -1 : 1;
        parent[v] = v + (root ? 0 : offset);
        roots += root;
    }
    return roots;
}

// Kruskal over `candidates`, given by edge index; calls choose(edge) for the edges of the tree until one
// component is left. Returns the number of components.
template <class Ends, class Choose>
int64_t kruskal(std::vector<Candidate>& candidates, Components components, int64_t count, Ends ends, Choose choose) {
    std::vector<Candidate> spare(candidates.size());
    sort_by_key(candidates, spare);
    for (Candidate candidate : candidates) {
        if (count == 1) break;
        auto [a, b] = ends(candidate.edge);
        if (components.join(a, b)) {
            choose(candidate.edge);
            --count;
        }
    }
    return count;
}

}  // namespace

void grid_spanning_tree_cpu(const float* weight, int32_t height, int32_t width, uint8_t* down, uint8_t* right) {
    const int64_t vertices = int64_t{height} * width, padding = grid_padding(width), padded = vertices + 2 * padding;
    if (vertices == 1) return;
    GridKeys keys(weight, height, width);

    std::vector<uint8_t> flags(4 * padded, NONE);
    uint8_t* lightest = flags.data() + padding;
    uint8_t* heaviest = lightest + padded;
    uint8_t* open[2] = {heaviest + padded, heaviest + 2 * padded};
    lightest_edges(keys.down, keys.right, vertices, width, lightest);
    heaviest_edges(keys.down, keys.right, vertices, width, heaviest);
    decide_edges(lightest, heaviest, keys.down, keys.right, vertices, width, down, right, open[0], open[1]);

    std::vector<int32_t> parent(vertices);
    int64_t components = link_components(lightest, vertices, width, parent.data());

    // Candidates carry 2 v for the edge down of v and 2 v + 1 for the edge to its right.
    std::vector<Candidate> candidates(2 * vertices);
    int64_t count = 0;
    for (uint32_t side = 0; side < 2; ++side) {
        const uint32_t* key = side ? keys.right : keys.down;
        for (uint32_t v = 0; v < vertices; ++v) {
            candidates[count] = {key[v], 2 * v + side};
            count += open[side][v];
        }
    }
    candidates.resize(count);
    kruskal(
        candidates, Components(parent.data()), components,
        [width](uint32_t edge) {
            int32_t v = edge / 2;
            return std::pair(v, edge % 2 ? v + 1 : v + width);
        },
        [down, right](uint32_t edge) { (edge % 2 ? right : down)[edge / 2] = 1; });
}

namespace {

Tensor minimum_spanning_tree(const Tensor& edge_weight, int64_t height, int64_t width) {
    const char* function = "minimum_spanning_tree";
    check_grid(function, height, width);
    check_dtype(function, "edge_weight", edge_weight, ScalarType::Float);
    check_dim(function, "edge_weight", edge_weight, 2, "(B, E)");
    int64_t batch = edge_weight.size(0), vertices = height * width;
    int64_t edges = (height - 1) * width + height * (width - 1);
    check_shape(function, "edge_weight", "one value per edge of the grid", edge_weight, {batch, edges});
    Tensor weight = torch::stable::contiguous(edge_weight);
    Tensor tree = torch::stable::new_empty(weight, {batch, vertices - 1}, ScalarType::Int);

    const float* from = weight.const_data_ptr<float>();
    int32_t* to = tree.mutable_data_ptr<int32_t>();
    torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
        int64_t padding = grid_padding(width), padded = vertices + 2 * padding;
        std::vector<uint8_t> flags(2 * padded);
        uint8_t *down = flags.data() + padding, *right = down + padded;
        for (int64_t image = begin; image < end; ++image) {
            grid_spanning_tree_cpu(from + image * edges, height, width, down, right);
            int32_t* next = to + image * (vertices - 1);
            int32_t vertical = static_cast<int32_t>((height - 1) * width);
            for (int32_t v = 0; v < vertical; ++v)
                if (down[v]) *next++ = v;
            for (int32_t row = 0; row < height; ++row)
                for (int32_t column = 0; column + 1 < width; ++column)
                    if (right[row * width + column]) *next++ = vertical + row * (width - 1) + column;
        }
    });
    return tree;
}

Tensor minimum_spanning_tree_from_edges(const Tensor& edges, const Tensor& edge_weight, int64_t num_vertices) {
    const char* function = "minimum_spanning_tree_from_edges";
    check(num_vertices >= 1 && num_vertices <= 1 << 30, function, ": num_vertices must be 1 to 2^30, got ",
          num_vertices);
    check_dtype(function, "edge_weight", edge_weight, ScalarType::Float);
    check_dim(function, "edge_weight", edge_weight, 2, "(B, M)");
    check_dtype(function, "edges", edges, ScalarType::Int);
    int64_t batch = edge_weight.size(0), count = edge_weight.size(1);
    check(count <= std::numeric_limits<int32_t>::max(), function, ": a graph must have less than 2^31 edges, got ",
          count);
    int64_t graphs = edges.dim() == 3 && edges.size(0) == 1 ? 1 : batch;
    check_shape(function, "edges", "one pair of vertices per weight", edges, {graphs, count, 2});
    check_same_device(function, "edge_weight", edge_weight, edges);
    Tensor pairs = torch::stable::contiguous(edges), weight = torch::stable::contiguous(edge_weight);
    Tensor tree = torch::stable::new_empty(weight, {batch, num_vertices - 1}, ScalarType::Int);

    const int32_t* ends_of = pairs.const_data_ptr<int32_t>();
    const float* from = weight.const_data_ptr<float>();
    int32_t* to = tree.mutable_data_ptr<int32_t>();
    for (int64_t i = 0; i < 2 * graphs * count; ++i)
        check(ends_of[i] >= 0 && ends_of[i] < num_vertices, function, ": edges must join vertices 0 to ",
              num_vertices - 1, ", got ", ends_of[i]);

    std::atomic<int64_t> unconnected{-1};
    torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t graph = begin; graph < end; ++graph) {
            const int32_t* pair = ends_of + (graphs == 1 ? 0 : graph) * count * 2;
            std::vector<Candidate> candidates(count);
            for (int64_t e = 0; e < count; ++e)
                candidates[e] = {ordered_key(from[graph * count + e]), static_cast<uint32_t>(e)};
            std::vector<int32_t> parent(num_vertices);
            for (int32_t v = 0; v < num_vertices; ++v) parent[v] = v;
            int32_t* first = to + graph * (num_vertices - 1);
            int32_t* next = first;
            int64_t left = kruskal(
                candidates, Components(parent.data()), num_vertices,
                [pair](uint32_t e) { return std::pair(pair[2 * e], pair[2 * e + 1]); },
                [&next](uint32_t e) { *next++ = static_cast<int32_t>(e); });
            if (left > 1) unconnected = graph;
            std::sort(first, next);
        }
    });
    check(unconnected < 0, function, ": every graph must be connected, but graph ", unconnected.load(),
          " of the batch has several components");
    return tree;
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    m.impl("minimum_spanning_tree", TORCH_BOX(&grootv::minimum_spanning_tree));
    m.impl("minimum_spanning_tree_from_edges", TORCH_BOX(&grootv::minimum_spanning_tree_from_edges));
}
