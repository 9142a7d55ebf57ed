// The breadth-first order, in one of two ways.
//
// One warp walks a small grid level by level. Larger grids and other graphs take O(log V) synchronised phases: the
// Euler tour of the tree runs along every edge down and up again; its ranking gives parents, depths and the preorder,
// and a stable sort of the preorder by depth is the breadth-first order.
#include "traversal.h"

#include "cuda/tree/euler_tour.h"
#include "edge_weight.h"
#include "spanning_tree.h"

namespace grootv {
namespace {

// A vertex in the queue of a walk, and the side of it where its parent is.
struct QueueEntry {
    static constexpr int VERTEX_BITS = 12, NO_SIDE = 4;

    __device__ QueueEntry(int32_t vertex, int side) : bits(static_cast<int16_t>(vertex | side << VERTEX_BITS)) {}

    __device__ int32_t vertex() const { return bits & ((1 << VERTEX_BITS) - 1); }
    __device__ int side() const { return bits >> VERTEX_BITS; }  // NO_SIDE: it is the root

    int16_t bits;
};
static_assert(BLOCK_VERTICES <= 1 << QueueEntry::VERTEX_BITS);

struct WalkMemory {
    __device__ WalkMemory(std::byte* memory, int32_t vertices)
        : found(reinterpret_cast<int32_t*>(memory)),
          queue(reinterpret_cast<QueueEntry*>(found + 1)),
          sides(reinterpret_cast<uint8_t*>(queue + vertices)) {}

    static int64_t bytes(int64_t vertices) {
        return sizeof(int32_t) + vertices * (sizeof(QueueEntry) + sizeof(uint8_t));
    }

    int32_t* found;  // vertices
    QueueEntry* queue;
    uint8_t* sides;
};

// Threads stage the grid in shared memory, the first warp walks it, and all write the result.
__global__ void level_walk_kernel(const uint8_t* down, const uint8_t* right, int32_t height, int32_t width,
                                  int32_t root, TreePointers trees, int32_t* status) {
    const int32_t vertices = height * width, thread = static_cast<int32_t>(threadIdx.x);
    const int64_t first = int64_t{blockIdx.x} * vertices;
    WalkMemory memory(shared_memory(), vertices);
    for_each<BlockGroup>(vertices, [=](int64_t v) {
        const int32_t row = static_cast<int32_t>(v) / width, column = static_cast<int32_t>(v) - row * width;
        memory.sides[v] = static_cast<uint8_t>(
            joined_sides(down + first, right + first, static_cast<int32_t>(v), row, column, width));
    });
    __syncthreads();

    if (thread < WARP) {
        const unsigned lanes_before = (1u << thread) - 1;
        int32_t begin = 0, end = 1;
        if (thread == 0) memory.queue[0] = QueueEntry(root, QueueEntry::NO_SIDE);  // lane 0 reads it
        while (begin < end && end <= vertices) {
            int32_t tail = end;
            for (int32_t base = begin; base < end; base += WARP) {
                unsigned children = 0;  // the sides where they are
                int32_t v = 0;
                if (base + thread < end) {
                    const QueueEntry entry = memory.queue[base + thread];
                    v = entry.vertex();
                    children = memory.sides[v] & ~(1u << entry.side());
                }
                // The children of the lanes before this one, by the bits of their numbers.
                const unsigned count = __popc(children);
                int32_t to = tail;
                for (int bit = 0; bit < 3; ++bit) {
                    const unsigned lanes = __ballot_sync(~0u, count >> bit & 1);
                    to += __popc(lanes & lanes_before) << bit;
                    tail += __popc(lanes) << bit;
                }
                for (int side = 0; side < 4; ++side) {
                    if (!(children >> side & 1)) continue;
                    if (to < vertices) memory.queue[to] = QueueEntry(v + neighbour_offset(side, width), 3 - side);
                    ++to;
                }
            }
            __syncwarp();
            begin = end;
            end = tail;
        }
        if (thread == 0) *memory.found = end;
    }
    __syncthreads();

    const bool fine = *memory.found == vertices;
    if (!fine && thread == 0) report(status, blockIdx.x);
    for_each<BlockGroup>(vertices, [=](int64_t p) {
        if (!fine) {
            trees.order[first + p] = trees.parent[first + p] = -1;
            return;
        }
        const QueueEntry entry = memory.queue[p];
        const int32_t v = entry.vertex();
        trees.order[first + p] = v;
        trees.parent[first + v] = entry.side() == QueueEntry::NO_SIDE ? v : v + neighbour_offset(entry.side(), width);
    });
}

void grid_breadth_first_order_cuda(const Device& device, Workspace& workspace, const uint8_t* down,
                                   const uint8_t* right, int64_t batch, int64_t height, int64_t width, int64_t root,
                                   TreePointers trees, int32_t* status) {
    const int64_t vertices = height * width;
    if (vertices <= BLOCK_VERTICES) {
        device.launch(level_walk_kernel, batch, ELEMENT_THREADS, WalkMemory::bytes(vertices), down, right, height,
                      width, root, trees, status);
        return;
    }
    GridArcs arcs{down, right, static_cast<int32_t>(batch), static_cast<int32_t>(height), static_cast<int32_t>(width)};
    order_by_tour(device, workspace, arcs, vertices, 4 * vertices, root, trees, status);
}

// Sets the flags of tree edges given by index; all flags, and `seen` by edge, are 0 before.
__global__ void grid_flags_kernel(const int32_t* tree_edges, int64_t items, int32_t height, int32_t width,
                                  uint8_t* down, uint8_t* right, int32_t* seen, int32_t* status) {
    const int64_t vertices = int64_t{height} * width, vertical = vertices - width;
    for_each<GridGroup>(items * (vertices - 1), [=](int64_t i) {
        const int64_t item = i / (vertices - 1), edge = tree_edges[i], horizontal = edge - vertical;
        if (edge < 0 || horizontal >= vertices - height) return report(status, item);
        if (atomicExch(seen + item * (vertical + vertices - height) + edge, 1)) return report(status, item);
        uint8_t* flag = horizontal < 0 ? down + item * vertices + edge
                                       : right + item * vertices + horizontal + horizontal / (width - 1);
        *flag = 1;
    });
}

// Source and target of both arcs of every tree edge.
__global__ void arc_ends_kernel(const int32_t* pairs, int64_t pair_stride, int64_t count, const int32_t* tree_edges,
                                int64_t items, int32_t vertices, uint64_t* ends, int32_t* arc, int32_t* status) {
    for_each<GridGroup>(items * (vertices - 1), [=](int64_t i) {
        const int64_t item = i / (vertices - 1), edge = tree_edges[i];
        const int32_t* pair = pairs + item * pair_stride + 2 * edge;
        const bool fine =
            edge >= 0 && edge < count && pair[0] >= 0 && pair[0] < vertices && pair[1] >= 0 && pair[1] < vertices;
        if (!fine) report(status, item);
        for (int side = 0; side < 2; ++side) {
            const uint64_t source = fine ? item * vertices + pair[side] : 0;
            const uint64_t target = fine ? item * vertices + pair[1 - side] : 0;
            ends[2 * i + side] = fine ? source << 32 | target : SortedArcs::NO_ARC;
            arc[2 * i + side] = static_cast<int32_t>(2 * i + side);
        }
    });
}

__global__ void arc_places_kernel(SortedPairs sorted, int64_t count, int32_t* place, int32_t* first) {
    for_each<GridGroup>(count, [=](int64_t i) {
        place[sorted.values[i]] = static_cast<int32_t>(i);
        if (sorted.keys[i] == SortedArcs::NO_ARC) return;
        const uint64_t source = sorted.keys[i] >> 32;
        if (i == 0 || sorted.keys[i - 1] >> 32 != source) first[source] = static_cast<int32_t>(i);
    });
}

std::tuple<Tensor, Tensor> breadth_first_order(const Tensor& tree_edges, int64_t height, int64_t width, int64_t root) {
    const char* function = "breadth_first_order";
    GridTreeEdges grid(function, tree_edges, height, width, root);
    check_batch(function, grid.batch, grid.vertices);
    Device device(function, tree_edges);
    Tensor chosen = as_contiguous(tree_edges);
    EmptyTree tree(chosen, grid.batch, grid.vertices);
    if (grid.batch == 0) return tree.tensors();
    Workspace workspace(chosen);
    const int64_t size = grid.batch * grid.vertices;
    Tensor flags = make_zeros(chosen, {2 * size}, ScalarType::Byte);
    Tensor seen = make_zeros(chosen, {grid.batch * grid.edges}, ScalarType::Int);
    Tensor status = make_zeros(chosen, {static_cast<int64_t>(Status{}.size())}, ScalarType::Int);
    auto *down = flags.mutable_data_ptr<uint8_t>(), *right = down + size;
    auto* status_ptr = status.mutable_data_ptr<int32_t>();
    device.launch(grid_flags_kernel, blocks_for(size), ELEMENT_THREADS, 0, chosen.const_data_ptr<int32_t>(), grid.batch,
                  height, width, down, right, seen.mutable_data_ptr<int32_t>(), status_ptr);
    grid_breadth_first_order_cuda(device, workspace, down, right, grid.batch, height, width, root, tree.first,
                                  status_ptr);
    Status found{};
    if (device.read(status_ptr, found.size(), found.data()))
        GridTreeEdges::check_tree(function, found[0] == 0, height, width, found[1]);
    return tree.tensors();
}

std::tuple<Tensor, Tensor> breadth_first_order_from_edges(const Tensor& edges, const Tensor& tree_edges,
                                                          int64_t num_vertices, int64_t root, bool wait) {
    const char* function = "breadth_first_order_from_edges";
    GraphTreeEdges sizes(function, edges, tree_edges, num_vertices, root);
    check_batch(function, sizes.batch, num_vertices);
    Device device(function, tree_edges);
    Tensor pairs = as_contiguous(edges), chosen = as_contiguous(tree_edges);
    EmptyTree tree(chosen, sizes.batch, num_vertices);
    if (sizes.batch == 0) return tree.tensors();
    if (num_vertices == 1) {
        for (Tensor* zeros : {&tree.order, &tree.parent}) torch::stable::fill_(*zeros, 0);
        return tree.tensors();
    }
    Workspace workspace(chosen);
    const int64_t count = sizes.batch * 2 * (num_vertices - 1);
    auto [ends, arc, place] = workspace.take<uint64_t, int32_t, int32_t>(count, count, count);
    Tensor first = make_empty(chosen, {sizes.batch * num_vertices}, ScalarType::Int);
    torch::stable::fill_(first, -1);
    torch::stable::fill_(tree.order, -1);
    Tensor status = make_zeros(chosen, {static_cast<int64_t>(Status{}.size())}, ScalarType::Int);
    auto* status_ptr = status.mutable_data_ptr<int32_t>();
    device.launch(arc_ends_kernel, blocks_for(count), ELEMENT_THREADS, 0, pairs.const_data_ptr<int32_t>(),
                  sizes.graphs == 1 ? 0 : 2 * sizes.count, sizes.count, chosen.const_data_ptr<int32_t>(), sizes.batch,
                  num_vertices, ends, arc, status_ptr);
    SortedPairs sorted = sort_pairs(device, workspace, ends, arc, count, 32 + bits_of(sizes.batch * num_vertices));
    device.launch(arc_places_kernel, blocks_for(count), ELEMENT_THREADS, 0, sorted, count, place,
                  first.mutable_data_ptr<int32_t>());
    SortedArcs arcs{sorted.keys,
                    sorted.values,
                    place,
                    first.const_data_ptr<int32_t>(),
                    static_cast<int32_t>(sizes.batch),
                    static_cast<int32_t>(num_vertices)};
    order_by_tour(device, workspace, arcs, num_vertices, 2 * (num_vertices - 1), root, tree.first, status_ptr);
    Status found{};
    if (wait && device.read(status_ptr, found.size(), found.data()))
        GraphTreeEdges::check_tree(function, found[0] == 0, found[1]);
    return tree.tensors();
}

std::tuple<Tensor, Tensor> build_tree(const Tensor& features, const std::string& metric_name, int64_t root) {
    const char* function = "build_tree";
    FeatureMap map(function, features, metric_name);
    check_root(function, root, map.vertices);
    check_batch(function, map.batch, map.vertices);
    Device device(function, features);
    Tensor vectors = as_contiguous(features);
    EmptyTree tree(vectors, map.batch, map.vertices);
    if (map.batch == 0) return tree.tensors();
    Workspace workspace(vectors);
    const int64_t size = map.batch * map.vertices;
    auto [weight, down, right, status] = workspace.take<float, uint8_t, uint8_t, int32_t>(
        map.batch * map.edges, size, size, Status{}.size());  // nothing can be wrong with these trees
    grid_edge_weight_cuda(device, vectors, map, weight);
    grid_spanning_tree_cuda(device, workspace, weight, map.batch, map.height, map.width, down, right);
    grid_breadth_first_order_cuda(device, workspace, down, right, map.batch, map.height, map.width, root, tree.first,
                                  status);
    return tree.tensors();
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, breadth_first_order);
    GROOTV_IMPL(m, breadth_first_order_from_edges);
    GROOTV_IMPL(m, build_tree);
}
