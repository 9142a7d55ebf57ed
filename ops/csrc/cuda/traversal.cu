// The breadth-first order, in one of two ways.
//
// Small grids are walked level by level, each by one warp. Larger grids and other graphs take a number of steps that
// grows with the logarithm of their size: the Euler tour of the tree runs along every edge down and up again; its
// ranking tells parents, depths and the preorder, and a stable sort of the preorder by depth is the breadth-first
// order.
#include "traversal.h"

#include <array>

#include <torch/csrc/stable/library.h>

#include "cuda/list_ranking.h"
#include "cuda/primitives.h"
#include "edge_weight.h"
#include "spanning_tree.h"

namespace grootv {
namespace {

// What is wrong with tree edges: a flag, and the item they belong to.
using Status = std::array<int32_t, 2>;

__device__ void report(int32_t* status, int64_t item) {
    atomicExch(status + 1, static_cast<int32_t>(item));
    atomicExch(status, 1);
}

// Sides of a vertex, by the index of the neighbour: above, left, right, below. The opposite of side s is 3 - s.
__device__ unsigned joined_sides(const uint8_t* down, const uint8_t* right, int32_t v, int32_t row, int32_t column,
                                 int32_t width) {
    unsigned sides = row > 0 && down[v - width];
    sides |= (column > 0 && right[v - 1] ? 1u : 0u) << 1;
    sides |= (right[v] ? 1u : 0u) << 2;
    return sides | (down[v] ? 1u : 0u) << 3;
}

__device__ int32_t side_step(int side, int32_t width) {
    const int32_t distance = side == 0 || side == 3 ? width : 1;
    return side < 2 ? -distance : distance;
}

// ---- level by level

struct WalkMemory {
    __device__ WalkMemory(std::byte* memory, int32_t vertices)
        : queue(reinterpret_cast<int16_t*>(memory)),
          parent(queue + vertices),
          level_ptr(parent + vertices),
          sides(reinterpret_cast<uint8_t*>(level_ptr + vertices)) {}

    static __host__ __device__ int64_t bytes(int64_t vertices) {
        return vertices * (3 * sizeof(int16_t) + sizeof(uint8_t));
    }

    int16_t *queue, *parent, *level_ptr;
    uint8_t* sides;
};

// Threads stage the grid in shared memory, the first warp walks it, and all write the result.
__global__ void level_walk_kernel(const uint8_t* down, const uint8_t* right, int32_t height, int32_t width,
                                  int32_t root, TreePointers trees, int32_t* status) {
    const int32_t vertices = height * width, thread = static_cast<int32_t>(threadIdx.x);
    const int64_t first = int64_t{blockIdx.x} * vertices;
    WalkMemory memory(shared_memory(), vertices);
    for_each<BlockTeam>(vertices, [=](int64_t v) {
        const int32_t row = static_cast<int32_t>(v) / width, column = static_cast<int32_t>(v) - row * width;
        memory.sides[v] = static_cast<uint8_t>(
            joined_sides(down + first, right + first, static_cast<int32_t>(v), row, column, width));
    });
    __syncthreads();

    auto* counts = reinterpret_cast<int32_t*>(shared_memory() + WalkMemory::bytes(vertices) / 4 * 4 + 4);
    if (thread < WARP) {
        int32_t begin = 0, end = 1, level = 0;
        if (thread == 0) memory.queue[0] = memory.parent[0] = static_cast<int16_t>(root);
        __syncwarp();
        while (begin < end && end <= vertices) {
            if (thread == 0) memory.level_ptr[level] = static_cast<int16_t>(begin);
            ++level;
            int32_t tail = end;
            for (int32_t base = begin; base < end; base += WARP) {
                const int32_t place = base + thread;
                unsigned children = 0;
                int32_t v = 0;
                if (place < end) {
                    v = memory.queue[place];
                    for (int side = 0; side < 4; ++side) {
                        const bool child = (memory.sides[v] >> side & 1) &&
                                           (place == 0 || v + side_step(side, width) != memory.parent[place]);
                        children |= (child ? 1u : 0u) << side;
                    }
                }
                const int32_t own = __popc(children);
                int32_t sum = own;
                for (int distance = 1; distance < WARP; distance *= 2) {
                    const int32_t before = __shfl_up_sync(~0u, sum, distance);
                    if (thread >= distance) sum += before;
                }
                int32_t to = tail + sum - own;
                for (int side = 0; side < 4; ++side) {
                    if (!(children >> side & 1)) continue;
                    if (to < vertices) {
                        memory.queue[to] = static_cast<int16_t>(v + side_step(side, width));
                        memory.parent[to] = static_cast<int16_t>(v);
                    }
                    ++to;
                }
                tail += __shfl_sync(~0u, sum, WARP - 1);
            }
            __syncwarp();
            begin = end;
            end = tail;
        }
        if (thread == 0) {
            counts[0] = level;
            counts[1] = end;
        }
    }
    __syncthreads();

    const int32_t levels = counts[0];
    const bool fine = counts[1] == vertices;
    if (!fine && thread == 0) report(status, blockIdx.x);
    for_each<BlockTeam>(vertices, [=](int64_t p) {
        trees.order[first + p] = fine ? memory.queue[p] : -1;
        if (fine)
            trees.parent[first + memory.queue[p]] = memory.parent[p];
        else
            trees.parent[first + p] = -1;
    });
    for_each<BlockTeam>(vertices + 1, [=](int64_t level) {
        trees.level_ptr[first + blockIdx.x + level] = level < levels ? memory.level_ptr[level] : vertices;
    });
}

// ---- Euler tour

// An arc is an edge of a tree in one of its two directions; the arcs that leave a vertex are ordered by the vertex they
// lead to. The tour goes from an arc to the one that follows its twin in the circle around the vertex it leads to.

// Arcs of a batch of grids: 4 v + side. Sides without an edge are numbers without an arc.
struct GridArcs {
    const uint8_t *down, *right;
    int32_t items, height, width;

    __device__ int32_t vertices() const { return height * width; }
    __device__ int64_t slots() const { return int64_t{4} * height * width; }  // of one item

    __device__ unsigned sides(int32_t v) const {
        const int32_t row = v / width;
        return joined_sides(down, right, v, row % height, v - row * width, width);
    }
    __device__ bool exists(int64_t arc) const { return sides(static_cast<int32_t>(arc / 4)) >> arc % 4 & 1; }
    __device__ int32_t source(int64_t arc) const { return static_cast<int32_t>(arc / 4); }
    __device__ int32_t target(int64_t arc) const { return source(arc) + side_step(arc % 4, width); }
    __device__ int64_t twin(int64_t arc) const { return 4 * int64_t{target(arc)} + 3 - arc % 4; }
    __device__ int64_t first_from(int32_t v) const { return after(v, -1); }
    __device__ int64_t successor(int64_t arc) const { return after(target(arc), 3 - static_cast<int>(arc % 4)); }
    __device__ bool isolated(int32_t v) const { return sides(v) == 0; }

private:
    __device__ int64_t after(int32_t v, int side) const {
        const unsigned joined = sides(v);
        for (int next = side + 1; next < 4; ++next)
            if (joined >> next & 1) return 4 * int64_t{v} + next;
        int next = 0;
        while (next < 3 && !(joined >> next & 1)) ++next;
        return 4 * int64_t{v} + next;
    }
};

// Arcs of a batch of graphs, sorted by (source, target): arc 2 k + d is edge k forwards or backwards.
struct SortedArcs {
    const uint64_t* ends;  // by place: source and target, as vertices of the whole batch; NO_ARC comes last
    const int32_t* arc;    // by place
    const int32_t* place;  // by arc
    const int32_t* first;  // by vertex: its first place, -1 if it has none
    int32_t items, size;

    static constexpr uint64_t NO_ARC = ~uint64_t{0};

    __device__ int32_t vertices() const { return size; }
    __device__ int64_t slots() const { return 2 * (int64_t{size} - 1); }

    __device__ bool exists(int64_t i) const { return ends[i] != NO_ARC; }
    __device__ int32_t source(int64_t i) const { return static_cast<int32_t>(ends[i] >> 32); }
    __device__ int32_t target(int64_t i) const { return static_cast<int32_t>(ends[i]); }
    __device__ int64_t twin(int64_t i) const { return place[arc[i] ^ 1]; }
    __device__ int64_t first_from(int32_t v) const { return first[v]; }
    __device__ int64_t successor(int64_t i) const {
        const int64_t back = twin(i), next = back + 1;
        return next < slots() * items && exists(next) && source(next) == source(back) ? next : first[source(back)];
    }
    __device__ bool isolated(int32_t v) const { return first[v] < 0; }
};

// The tour enters the subtrees of a vertex v in circular order from its parent on: those of the children with greater
// indices than the parent, then the others. The preorder has the others first. So the first set moves back by the size
// of the second and the second forward by the size of the first, with all that is below; the preorder of a vertex is
// its place among the arcs that go down, plus the moves on its way from the root.
struct Tour {
    Link *links, *spare;
    int32_t* parent_arc;  // by vertex: the arc to its parent
    int64_t* step;        // by place in the tour, 2 (V - 1) of each item: see Sums
    int64_t* sum;         // of all steps before, over the whole batch
    uint64_t* depth_key;  // by preorder: item and depth
    int32_t* preorder;    // vertices
};

// Two sums in one: the preorder in the upper half, the number of arcs that go down in the lower.
__device__ int64_t sums(int64_t preorder, int64_t down) {
    return preorder * (int64_t{1} << 32) + down;
}

// The ranked arcs of a batch.
template <class Arcs>
struct Ranking {
    Arcs arcs;
    const Link* links;
    const int32_t* parent_arc;
    int32_t root;

    __device__ int64_t length() const { return 2 * (int64_t{arcs.vertices()} - 1); }
    __device__ int32_t item(int64_t arc) const { return arcs.source(arc) / arcs.vertices(); }
    __device__ int64_t place(int64_t arc) const { return length() - 1 - links[arc].distance; }
    __device__ bool goes_down(int64_t arc) const { return links[arc].distance > links[arcs.twin(arc)].distance; }

    // How far the subtree below an arc that goes down moves in the preorder.
    __device__ int64_t move(int64_t arc) const {
        const int32_t v = arcs.source(arc);
        if (v == item(arc) * arcs.vertices() + root) return 0;
        const int64_t up = parent_arc[v], first = arcs.first_from(v), entry = place(arcs.twin(up));
        const int64_t below = (place(up) - entry - 1) / 2;
        const int64_t greater = first == up ? below : (place(first) - entry - 1) / 2;
        return arc < up ? -greater : below - greater;
    }
};

template <class Arcs>
__global__ void __launch_bounds__(TEAM_THREADS, 1)
    euler_tour_kernel(Arcs arcs, int32_t root, Tour tour, Link** ranked, TreePointers trees, int32_t* status) {
    const int64_t slots = arcs.slots(), length = 2 * (int64_t{arcs.vertices()} - 1), count = slots * arcs.items;
    for_each<GridTeam>(length * arcs.items, [=](int64_t i) { tour.step[i] = 0; });
    for_each<GridTeam>(int64_t{arcs.vertices()} * arcs.items, [=](int64_t v) {
        // What a graph that is no tree leaves as it is.
        tour.parent_arc[v] = 0;
        tour.preorder[v] = trees.parent[v] = -1;
        tour.depth_key[v] = v / arcs.vertices() * arcs.vertices();
        if (arcs.isolated(static_cast<int32_t>(v))) report(status, v / arcs.vertices());
    });
    for_each<GridTeam>(count, [=](int64_t i) {
        Link link{static_cast<int32_t>(i), 0};
        if (arcs.exists(i)) {
            const int32_t item = arcs.source(i) / arcs.vertices();
            const int64_t next = arcs.successor(i);
            if (next != arcs.first_from(item * arcs.vertices() + root)) link = {static_cast<int32_t>(next), 1};
        }
        tour.links[i] = link;
    });
    GridTeam::sync();
    Link* links = rank_lists<GridTeam>(tour.links, tour.spare, 0, count, length);
    if (GridTeam::rank() == 0) *ranked = links;
    const Ranking<Arcs> ranking{arcs, links, tour.parent_arc, root};
    for_each<GridTeam>(count, [=](int64_t i) {
        if (arcs.exists(i) && ranking.goes_down(i))
            tour.parent_arc[arcs.target(i)] = static_cast<int32_t>(arcs.twin(i));
    });
    GridTeam::sync();
    for_each<GridTeam>(count, [=](int64_t i) {
        if (!arcs.exists(i)) return;
        const int64_t place = ranking.place(i);
        const bool ends = links[links[i].next].next == links[i].next;
        if (!ends || place < 0 || place >= length) return report(status, ranking.item(i));
        tour.step[ranking.item(i) * length + place] =
            ranking.goes_down(i) ? sums(1 + ranking.move(i), 1) : sums(-ranking.move(arcs.twin(i)), 0);
    });
}

template <class Arcs>
__global__ void preorder_kernel(Arcs arcs, int32_t root, Tour tour, Link* const* ranked, TreePointers trees) {
    const int32_t vertices = arcs.vertices();
    const Ranking<Arcs> ranking{arcs, *ranked, tour.parent_arc, root};
    const int64_t length = ranking.length();
    for_each<GridTeam>(int64_t{arcs.items} * vertices, [=](int64_t i) {
        const int64_t item = i / vertices, v = i - item * vertices;
        trees.level_ptr[item * (vertices + 1) + v] = vertices;
        if (v == 0) trees.level_ptr[item * (vertices + 1) + vertices] = vertices;
        if (v != root) return;
        trees.parent[i] = root;
        tour.preorder[item * vertices] = root;
        tour.depth_key[item * vertices] = item * vertices;
    });
    for_each<GridTeam>(arcs.slots() * arcs.items, [=](int64_t i) {
        if (!arcs.exists(i) || !ranking.goes_down(i)) return;
        const int64_t item = ranking.item(i), place = ranking.place(i);
        if (place < 0 || place >= length) return;
        const int64_t sum =
            tour.sum[item * length + place] + tour.step[item * length + place] - tour.sum[item * length];
        // Of the place + 1 arcs up to this one, `down` go down; each of the others takes one of them back.
        const int64_t index = sum >> 32, down = sum & 0xFFFFFFFF, depth = 2 * down - place - 1;
        if (index < 1 || index >= vertices || depth < 1 || depth >= vertices) return;
        trees.parent[arcs.target(i)] = static_cast<int32_t>(arcs.source(i) - item * vertices);
        tour.preorder[item * vertices + index] = static_cast<int32_t>(arcs.target(i) - item * vertices);
        tour.depth_key[item * vertices + index] = item * vertices + depth;
    });
}

__global__ void level_kernel(SortedPairs sorted, int64_t items, int32_t vertices, TreePointers trees) {
    for_each<GridTeam>(items * vertices, [=](int64_t i) {
        const int64_t item = i / vertices, depth = static_cast<int64_t>(sorted.keys[i]) - item * vertices;
        trees.order[i] = sorted.values[i];
        const bool starts = i == item * vertices || sorted.keys[i] != sorted.keys[i - 1];
        if (starts && depth >= 0 && depth < vertices)
            trees.level_ptr[item * (vertices + 1) + depth] = static_cast<int32_t>(i - item * vertices);
    });
}

int bits_of(int64_t largest) {
    int bits = 1;
    while (largest >> bits) ++bits;
    return bits;
}

template <class Arcs>
void order_by_tour(const Device& device, Workspace& workspace, Arcs arcs, int64_t vertices, int64_t slots, int32_t root,
                   TreePointers trees, int32_t* status) {
    const int64_t items = arcs.items, count = slots * items, length = 2 * (vertices - 1) * items;
    Tour tour{workspace.take<Link>(count),
              workspace.take<Link>(count),
              workspace.take<int32_t>(items * vertices),
              workspace.take<int64_t>(length),
              workspace.take<int64_t>(length),
              workspace.take<uint64_t>(items * vertices),
              workspace.take<int32_t>(items * vertices)};
    auto** ranked = workspace.take<Link*>(1);
    device.launch_cooperative(euler_tour_kernel<Arcs>, count, TEAM_THREADS, 0, arcs, root, tour, ranked, trees, status);
    exclusive_sum(device, workspace, tour.step, tour.sum, length);
    device.launch(preorder_kernel<Arcs>, blocks_for(count), ITEM_THREADS, 0, arcs, root, tour, ranked, trees);
    SortedPairs sorted =
        sort_pairs(device, workspace, tour.depth_key, tour.preorder, items * vertices, bits_of(items * vertices - 1));
    device.launch(level_kernel, blocks_for(items * vertices), ITEM_THREADS, 0, sorted, items, vertices, trees);
}

// ---- launches

void grid_breadth_first_order_cuda(const Device& device, Workspace& workspace, const uint8_t* down,
                                   const uint8_t* right, int64_t batch, int64_t height, int64_t width, int64_t root,
                                   TreePointers trees, int32_t* status) {
    const int64_t vertices = height * width;
    if (vertices <= BLOCK_VERTICES) {
        const int64_t bytes = WalkMemory::bytes(vertices) / 4 * 4 + 4 + 2 * sizeof(int32_t);
        device.launch(level_walk_kernel, dim3(static_cast<unsigned>(batch)), ITEM_THREADS, bytes, down, right, height,
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
    for_each<GridTeam>(items * (vertices - 1), [=](int64_t i) {
        const int64_t item = i / (vertices - 1), edge = tree_edges[i], beside = edge - vertical;
        if (edge < 0 || beside >= vertices - height) return report(status, item);
        if (atomicExch(seen + item * (vertical + vertices - height) + edge, 1)) return report(status, item);
        uint8_t* flag =
            beside < 0 ? down + item * vertices + edge : right + item * vertices + beside + beside / (width - 1);
        *flag = 1;
    });
}

// Source and target of both arcs of every tree edge.
__global__ void arc_ends_kernel(const int32_t* pairs, int64_t pair_stride, int64_t count, const int32_t* tree_edges,
                                int64_t items, int32_t vertices, uint64_t* ends, int32_t* arc, int32_t* status) {
    for_each<GridTeam>(items * (vertices - 1), [=](int64_t i) {
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
    for_each<GridTeam>(count, [=](int64_t i) {
        place[sorted.values[i]] = static_cast<int32_t>(i);
        if (sorted.keys[i] == SortedArcs::NO_ARC) return;
        const uint64_t source = sorted.keys[i] >> 32;
        if (i == 0 || sorted.keys[i - 1] >> 32 != source) first[source] = static_cast<int32_t>(i);
    });
}

std::tuple<Tensor, Tensor, Tensor> breadth_first_order(const Tensor& tree_edges, int64_t height, int64_t width,
                                                       int64_t root) {
    const char* function = "breadth_first_order";
    GridTreeEdges grid(function, tree_edges, height, width, root);
    check_batch(function, grid.batch, grid.vertices);
    Device device(function, tree_edges);
    Tensor chosen = as_contiguous(tree_edges);
    EmptyTree tree(chosen, grid.batch, grid.vertices);
    if (grid.batch == 0) return tree.tensors();
    Workspace workspace(chosen);
    const int64_t size = grid.batch * grid.vertices;
    Tensor flags = torch::stable::new_zeros(chosen, {2 * size}, ScalarType::Byte);
    Tensor seen = torch::stable::new_zeros(chosen, {grid.batch * grid.edges}, ScalarType::Int);
    Tensor status = torch::stable::new_zeros(chosen, {static_cast<int64_t>(Status{}.size())}, ScalarType::Int);
    auto *down = flags.mutable_data_ptr<uint8_t>(), *right = down + size;
    auto* status_ptr = status.mutable_data_ptr<int32_t>();
    device.launch(grid_flags_kernel, blocks_for(size), ITEM_THREADS, 0, chosen.const_data_ptr<int32_t>(), grid.batch,
                  height, width, down, right, seen.mutable_data_ptr<int32_t>(), status_ptr);
    grid_breadth_first_order_cuda(device, workspace, down, right, grid.batch, height, width, root, tree.first,
                                  status_ptr);
    Status found{};
    if (device.read(status_ptr, found.size(), found.data()))
        GridTreeEdges::check_tree(function, found[0] == 0, height, width, found[1]);
    return tree.tensors();
}

std::tuple<Tensor, Tensor, Tensor> breadth_first_order_from_edges(const Tensor& edges, const Tensor& tree_edges,
                                                                  int64_t num_vertices, int64_t root) {
    const char* function = "breadth_first_order_from_edges";
    GraphTreeEdges sizes(function, edges, tree_edges, num_vertices, root);
    check_batch(function, sizes.batch, num_vertices);
    Device device(function, tree_edges);
    Tensor pairs = as_contiguous(edges), chosen = as_contiguous(tree_edges);
    EmptyTree tree(chosen, sizes.batch, num_vertices);
    if (sizes.batch == 0) return tree.tensors();
    if (num_vertices == 1) {
        for (Tensor* zeros : {&tree.order, &tree.parent, &tree.level_ptr}) torch::stable::fill_(*zeros, 0);
        Tensor end = torch::stable::narrow(tree.level_ptr, 1, 1, 1);
        torch::stable::fill_(end, 1);
        return tree.tensors();
    }
    Workspace workspace(chosen);
    const int64_t count = sizes.batch * 2 * (num_vertices - 1);
    auto* ends = workspace.take<uint64_t>(count);
    auto *arc = workspace.take<int32_t>(count), *place = workspace.take<int32_t>(count);
    Tensor first = torch::stable::new_empty(chosen, {sizes.batch * num_vertices}, ScalarType::Int);
    torch::stable::fill_(first, -1);
    torch::stable::fill_(tree.order, -1);
    Tensor status = torch::stable::new_zeros(chosen, {static_cast<int64_t>(Status{}.size())}, ScalarType::Int);
    auto* status_ptr = status.mutable_data_ptr<int32_t>();
    device.launch(arc_ends_kernel, blocks_for(count), ITEM_THREADS, 0, pairs.const_data_ptr<int32_t>(),
                  sizes.graphs == 1 ? 0 : 2 * sizes.count, sizes.count, chosen.const_data_ptr<int32_t>(), sizes.batch,
                  num_vertices, ends, arc, status_ptr);
    SortedPairs sorted = sort_pairs(device, workspace, ends, arc, count, 32 + bits_of(sizes.batch * num_vertices));
    device.launch(arc_places_kernel, blocks_for(count), ITEM_THREADS, 0, sorted, count, place,
                  first.mutable_data_ptr<int32_t>());
    SortedArcs arcs{sorted.keys,
                    sorted.values,
                    place,
                    first.const_data_ptr<int32_t>(),
                    static_cast<int32_t>(sizes.batch),
                    static_cast<int32_t>(num_vertices)};
    order_by_tour(device, workspace, arcs, num_vertices, 2 * (num_vertices - 1), root, tree.first, status_ptr);
    Status found{};
    if (device.read(status_ptr, found.size(), found.data()))
        GraphTreeEdges::check_tree(function, found[0] == 0, found[1]);
    return tree.tensors();
}

std::tuple<Tensor, Tensor, Tensor> build_tree(const Tensor& features, const std::string& metric_name, int64_t root) {
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
    auto* weight = workspace.take<float>(map.batch * map.edges);
    auto *down = workspace.take<uint8_t>(size), *right = workspace.take<uint8_t>(size);
    auto* status = workspace.take<int32_t>(Status{}.size());  // nothing can be wrong with these trees
    grid_edge_weight_cuda(device, vectors, map, weight);
    grid_spanning_tree_cuda(device, workspace, weight, map.batch, map.height, map.width, down, right);
    grid_breadth_first_order_cuda(device, workspace, down, right, map.batch, map.height, map.width, root, tree.first,
                                  status);
    return tree.tensors();
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    m.impl("breadth_first_order", TORCH_BOX(&grootv::breadth_first_order));
    m.impl("breadth_first_order_from_edges", TORCH_BOX(&grootv::breadth_first_order_from_edges));
    m.impl("build_tree", TORCH_BOX(&grootv::build_tree));
}
