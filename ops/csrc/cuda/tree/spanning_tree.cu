// Boruvka's algorithm: every component joins the neighbour at the other end of its lightest edge, until no component
// has a neighbour. The total order on the edges excludes cycles other than two components that choose the same edge.
//
// A block is the thread group of one graph if it is small or there are many, else the whole grid is that of all.
#include "spanning_tree.h"

#include <array>

#include "cuda/common/primitives.h"
#include "cuda/common/thread_group.h"
#include "cuda/common/workspace.h"

namespace grootv {
namespace {

// An edge as a number that compares like (weight, edge index): key and name of the edge.
using Candidate = unsigned long long;
constexpr Candidate NO_CANDIDATE = ~Candidate{0};

__device__ Candidate candidate(float weight, uint32_t edge) {
    return Candidate{ordered_key(weight)} << 32 | edge;
}

struct Ends {
    int32_t a, b;
};

// `graphs` grids, one after the other. An edge is named by its upper or left vertex, and its side: vertical edges
// come first in the order of the indices.
struct Grids {
    static constexpr uint32_t RIGHT = 0x80000000u;

    const float* weight;
    uint8_t *down, *right;
    int32_t graphs, height, width;

    __device__ int32_t vertices() const { return graphs * height * width; }

    __device__ Grids select(int32_t graph) const {
        const int64_t size = int64_t{height} * width, vertical = size - width;
        return {
            weight + graph * (vertical + size - height), down + graph * size, right + graph * size, 1, height, width};
    }

    template <class Group>
    __device__ void clear() const {
        for_each<Group>(vertices(), [this](int64_t v) { down[v] = right[v] = 0; });
    }

    // Every vertex proposes the lightest of its edges that leave its component.
    template <class Group>
    __device__ void propose(const int32_t* component, Candidate* lightest) const {
        const int32_t size = height * width;
        const int64_t vertical = size - width, edges = vertical + size - height;
        for_each<Group>(vertices(), [=, this](int64_t i) {
            const int32_t v = static_cast<int32_t>(i), graph = v / size, place = v - graph * size;
            const int32_t row = place / width, column = place - row * width, own = component[v];
            const float *down_weight = weight + graph * edges, *right_weight = down_weight + vertical;
            Candidate best = NO_CANDIDATE;
            auto consider = [&](bool exists, int32_t neighbour, const float* weights, int32_t index, uint32_t edge) {
                if (!exists || component[neighbour] == own) return;
                Candidate other = candidate(weights[index], edge);
                best = other < best ? other : best;
            };
            consider(row > 0, v - width, down_weight, place - width, v - width);
            consider(row + 1 < height, v + width, down_weight, place, v);
            consider(column > 0, v - 1, right_weight, place - row - 1, RIGHT | (v - 1));
            consider(column + 1 < width, v + 1, right_weight, place - row, RIGHT | v);
            if (best != NO_CANDIDATE) atomicMin(lightest + own, best);
        });
    }

    __device__ Ends ends(uint32_t edge, int32_t) const {
        const int32_t v = static_cast<int32_t>(edge & ~RIGHT);
        return {v, v + (edge & RIGHT ? 1 : width)};
    }

    __device__ void choose(uint32_t edge, int32_t) const { (edge & RIGHT ? right : down)[edge & ~RIGHT] = 1; }
};

// `graphs` graphs of `size` vertices and `count` edges each; their edges are the same if pair_stride is 0.
struct EdgeLists {
    const float* weight;
    const int32_t* pairs;
    int64_t pair_stride;
    uint8_t* chosen;
    int32_t* status;  // see GraphStatus
    int32_t graphs, size;
    int64_t count;

    __device__ int32_t vertices() const { return graphs * size; }

    __device__ EdgeLists select(int32_t graph) const {
        return {weight + graph * count, pairs + graph * pair_stride, 0, chosen + graph * count, status, 1, size, count};
    }

    template <class Group>
    __device__ void clear() const {
        for_each<Group>(graphs * count, [this](int64_t i) { chosen[i] = 0; });
    }

    template <class Group>
    __device__ void propose(const int32_t* component, Candidate* lightest) const {
        for_each<Group>(graphs * count, [=, this](int64_t i) {
            const int32_t graph = static_cast<int32_t>(i / count), edge = static_cast<int32_t>(i - graph * count);
            const int32_t* pair = pairs + graph * pair_stride + 2 * int64_t{edge};
            for (int side = 0; side < 2; ++side) {
                if (pair[side] >= 0 && pair[side] < size) continue;
                atomicExch(status + 1, pair[side]);
                atomicExch(status, 1);
                return;
            }
            const int32_t a = component[graph * size + pair[0]], b = component[graph * size + pair[1]];
            if (a == b) return;
            const Candidate proposal = candidate(weight[i], edge);
            atomicMin(lightest + a, proposal);
            atomicMin(lightest + b, proposal);
        });
    }

    __device__ Ends ends(uint32_t edge, int32_t vertex) const {
        const int32_t graph = vertex / size, first = graph * size;
        const int32_t* pair = pairs + graph * pair_stride + 2 * int64_t{edge};
        return {first + pair[0], first + pair[1]};
    }

    __device__ void choose(uint32_t edge, int32_t vertex) const { chosen[vertex / size * count + edge] = 1; }
};

// Per vertex: its component, named by one of its vertices; and for these, the lightest edge and the component joined.
struct Forest {
    static constexpr int64_t BYTES = sizeof(Candidate) + 3 * sizeof(int32_t);  // of one vertex

    __device__ Forest(std::byte* memory, int64_t vertices)
        : lightest(reinterpret_cast<Candidate*>(memory)),
          component(reinterpret_cast<int32_t*>(lightest + vertices)),
          next(component + vertices),
          spare(next + vertices),
          flags(spare + vertices) {}

    static int64_t bytes(int64_t vertices) {
        return (vertices * BYTES + Flags::COUNT * sizeof(int32_t) + 15) / 16 * 16;
    }

    Candidate* lightest;
    int32_t *component, *next, *spare, *flags;
};

// Follows the pointers from c a few times. True if that ends at a root.
__device__ bool follow(const int32_t* next, int32_t c, int32_t* to) {
    constexpr int JUMPS = 8;
    int32_t found = next[c];
    for (int jump = 0; jump < JUMPS; ++jump) found = next[found];
    *to = found;
    return next[found] == found;
}

template <class Group, class Graph>
__device__ void boruvka(Graph graph, Forest forest) {
    const int32_t vertices = graph.vertices();
    int32_t* component = forest.component;
    Candidate* lightest = forest.lightest;
    Flags flags(forest.flags);
    flags.clear<Group>();
    graph.template clear<Group>();
    for_each<Group>(vertices, [=](int64_t v) {
        component[v] = static_cast<int32_t>(v);
        lightest[v] = NO_CANDIDATE;
    });
    Group::sync();
    for (;;) {
        graph.template propose<Group>(component, lightest);
        Group::sync();
        int32_t *next = forest.next, *spare = forest.spare;
        for_each<Group>(vertices, [=](int64_t i) {
            const int32_t c = static_cast<int32_t>(i);
            if (component[c] != c) return;
            next[c] = c;
            const Candidate choice = lightest[c];
            if (choice == NO_CANDIDATE) return;
            const uint32_t edge = static_cast<uint32_t>(choice);
            const Ends ends = graph.ends(edge, c);
            const int32_t other = component[ends.a] ^ component[ends.b] ^ c;
            if (lightest[other] == choice && c < other) return;  // both chose this edge: the first is the root
            next[c] = other;
            graph.choose(edge, c);
            flags.raise();
        });
        Group::sync();
        if (!flags.take()) return;
        do {
            for_each<Group>(vertices, [=](int64_t i) {
                const int32_t c = static_cast<int32_t>(i);
                if (component[c] == c && !follow(next, c, spare + c)) flags.raise();
            });
            Group::sync();
            int32_t* swapped = next;
            next = spare;
            spare = swapped;
        } while (flags.take());
        for_each<Group>(vertices, [=](int64_t v) {
            component[v] = next[component[v]];
            lightest[v] = NO_CANDIDATE;
        });
        Group::sync();
    }
}

// In shared memory, or in `bytes` of memory for each block.
template <bool SHARED, class Graph>
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    spanning_tree_block_kernel(Graph graphs, std::byte* memory, int64_t bytes) {
    Graph graph = graphs.select(blockIdx.x);
    boruvka<BlockGroup>(graph, Forest(SHARED ? shared_memory() : memory + blockIdx.x * bytes, graph.vertices()));
}

template <class Graph>
__global__ void __launch_bounds__(GROUP_THREADS, 1) spanning_tree_grid_kernel(Graph graphs, std::byte* memory) {
    boruvka<GridGroup>(graphs, Forest(memory, graphs.vertices()));
}

template <class Graph>
void launch_boruvka(const Device& device, Workspace& workspace, Graph graphs, int64_t vertices_of_one) {
    const int64_t bytes = Forest::bytes(vertices_of_one), vertices = graphs.graphs * vertices_of_one;
    if (one_block_each(device, graphs.graphs, vertices_of_one)) {
        if (bytes <= device.shared_bytes())
            device.launch(spanning_tree_block_kernel<true, Graph>, dim3(graphs.graphs), GROUP_THREADS, bytes, graphs,
                          nullptr, bytes);
        else
            device.launch(spanning_tree_block_kernel<false, Graph>, dim3(graphs.graphs), GROUP_THREADS, 0, graphs,
                          workspace.take<std::byte>(bytes * graphs.graphs), bytes);
    } else {
        launch_grid_group(device, spanning_tree_grid_kernel<Graph>, vertices, graphs,
                          workspace.take<std::byte>(Forest::bytes(vertices)));
    }
}

// From flags by vertex to flags by edge index.
__global__ void edge_flags_kernel(const uint8_t* down, const uint8_t* right, int32_t height, int32_t width,
                                  int64_t count, uint8_t* chosen) {
    const int64_t size = int64_t{height} * width, vertical = size - width, edges = vertical + size - height;
    for_each<GridGroup>(count, [=](int64_t i) {
        const int64_t graph = i / edges, edge = i - graph * edges, horizontal = edge - vertical;
        chosen[i] =
            horizontal < 0 ? down[graph * size + edge] : right[graph * size + horizontal + horizontal / (width - 1)];
    });
}

__global__ void tree_edges_kernel(const uint8_t* chosen, const int32_t* position, int64_t count, int64_t edges,
                                  int64_t vertices, int32_t* tree) {
    for_each<GridGroup>(count, [=](int64_t i) {
        const int64_t graph = i / edges, first = graph * edges;
        if (chosen[i]) tree[graph * (vertices - 1) + position[i] - position[first]] = static_cast<int32_t>(i - first);
    });
}

// The indices of the chosen edges of each graph. `tree` is not written where edges are missing.
void write_tree_edges(const Device& device, Workspace& workspace, const uint8_t* chosen, int64_t count, int64_t edges,
                      int64_t vertices, int32_t* tree) {
    auto* position = workspace.take<int32_t>(count);
    exclusive_sum(device, workspace, chosen, position, count);
    device.launch(tree_edges_kernel, blocks_for(count), ELEMENT_THREADS, 0, chosen, position, count, edges, vertices,
                  tree);
}

// What is wrong with an edge list: an invalid vertex (flag, vertex), a graph in several parts (flag, graph).
using GraphStatus = std::array<int32_t, 4>;

__global__ void check_connected_kernel(const uint8_t* chosen, int64_t count, int32_t vertices, int32_t* status) {
    const uint8_t* mine = chosen + blockIdx.x * count;
    auto* sum = reinterpret_cast<int32_t*>(shared_memory());
    if (threadIdx.x == 0) *sum = 0;
    __syncthreads();
    for_each<BlockGroup>(count, [=](int64_t e) {
        if (mine[e]) atomicAdd(sum, 1);
    });
    __syncthreads();
    if (threadIdx.x == 0 && *sum != vertices - 1) {
        atomicExch(status + 3, static_cast<int32_t>(blockIdx.x));
        atomicExch(status + 2, 1);
    }
}

Tensor minimum_spanning_tree(const Tensor& edge_weight, int64_t height, int64_t width) {
    const char* function = "minimum_spanning_tree";
    GridWeights grid(function, edge_weight, height, width);
    check_batch(function, grid.batch, grid.vertices);
    Device device(function, edge_weight);
    Tensor weight = as_contiguous(edge_weight);
    Tensor tree = make_empty(weight, {grid.batch, grid.vertices - 1}, ScalarType::Int);
    const int64_t vertices = grid.batch * grid.vertices, edges = grid.batch * grid.edges;
    if (edges == 0) return tree;
    Workspace workspace(weight);
    auto [down, right, chosen] = workspace.take<uint8_t, uint8_t, uint8_t>(vertices, vertices, edges);
    grid_spanning_tree_cuda(device, workspace, weight.const_data_ptr<float>(), grid.batch, height, width, down, right);
    device.launch(edge_flags_kernel, blocks_for(edges), ELEMENT_THREADS, 0, down, right, height, width, edges, chosen);
    write_tree_edges(device, workspace, chosen, edges, grid.edges, grid.vertices, tree.mutable_data_ptr<int32_t>());
    return tree;
}

Tensor minimum_spanning_tree_from_edges(const Tensor& edges, const Tensor& edge_weight, int64_t num_vertices,
                                        bool wait) {
    const char* function = "minimum_spanning_tree_from_edges";
    GraphWeights sizes(function, edges, edge_weight, num_vertices);
    check_batch(function, sizes.batch, num_vertices);
    Device device(function, edge_weight);
    Tensor pairs = as_contiguous(edges), weight = as_contiguous(edge_weight);
    Tensor tree = make_empty(weight, {sizes.batch, num_vertices - 1}, ScalarType::Int);
    const int64_t count = sizes.batch * sizes.count;
    if (count == 0) return tree;
    torch::stable::fill_(tree, -1);
    Workspace workspace(weight);
    auto* chosen = workspace.take<uint8_t>(count);
    Tensor status = make_zeros(weight, {static_cast<int64_t>(GraphStatus{}.size())}, ScalarType::Int);
    auto* status_ptr = status.mutable_data_ptr<int32_t>();
    EdgeLists graphs{weight.const_data_ptr<float>(),
                     pairs.const_data_ptr<int32_t>(),
                     sizes.graphs == 1 ? 0 : 2 * sizes.count,
                     chosen,
                     status_ptr,
                     static_cast<int32_t>(sizes.batch),
                     static_cast<int32_t>(num_vertices),
                     sizes.count};
    launch_boruvka(device, workspace, graphs, num_vertices);
    device.launch(check_connected_kernel, dim3(graphs.graphs), GROUP_THREADS, sizeof(int32_t), chosen, sizes.count,
                  graphs.size, status_ptr);
    write_tree_edges(device, workspace, chosen, count, sizes.count, num_vertices, tree.mutable_data_ptr<int32_t>());
    GraphStatus found{};
    if (wait && device.read(status_ptr, found.size(), found.data())) {
        GraphWeights::check_vertex(function, found[0] == 0, num_vertices, found[1]);
        GraphWeights::check_connected(function, found[2] == 0, found[3]);
    }
    return tree;
}

}  // namespace

void grid_spanning_tree_cuda(const Device& device, Workspace& workspace, const float* weight, int64_t batch,
                             int32_t height, int32_t width, uint8_t* down, uint8_t* right) {
    if (batch == 0) return;
    Grids grids{weight, down, right, static_cast<int32_t>(batch), height, width};
    launch_boruvka(device, workspace, grids, int64_t{height} * width);
}

}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, minimum_spanning_tree);
    GROOTV_IMPL(m, minimum_spanning_tree_from_edges);
}
