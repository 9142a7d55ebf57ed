// The breadth-first order in O(log V) synchronised phases: the Euler tour of the tree, ranked by pointer jumping.
#pragma once

#include "cuda/common/list_ranking.h"
#include "cuda/common/primitives.h"
#include "cuda/tree/tree_edges.h"
#include "traversal.h"

namespace grootv {

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
    __device__ int32_t target(int64_t arc) const { return source(arc) + neighbour_offset(arc % 4, width); }
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
    Link<>*links, *spare;
    int32_t* parent_arc;  // by vertex: the arc to its parent
    int64_t* increment;   // by place in the tour, 2 (V - 1) of each item: see sums
    int64_t* sum;         // of all increments before, over the whole batch
    uint64_t* depth_key;  // by preorder: item and depth
    int32_t* preorder;    // vertices
};

// Stores into an entry that several threads share where the edges are not a tree: the same one then wins each time.
__device__ inline void store_greatest(int32_t* entry, int32_t value) {
    atomicMax(entry, value);
}
__device__ inline void store_greatest(uint64_t* entry, uint64_t value) {
    using Key = unsigned long long;  // the 64 bits of CUDA's atomics
    atomicMax(reinterpret_cast<Key*>(entry), static_cast<Key>(value));
}

// Two sums in one: the preorder in the upper half, the number of arcs that go down in the lower.
__device__ inline int64_t sums(int64_t preorder, int64_t down) {
    return preorder * (int64_t{1} << 32) + down;
}

// The ranked arcs of a batch.
template <class Arcs>
struct Ranking {
    Arcs arcs;
    const Link<>* links;
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
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    euler_tour_kernel(Arcs arcs, int32_t root, Tour tour, Link<>** ranked, TreePointers trees, int32_t* status) {
    const int64_t slots = arcs.slots(), length = 2 * (int64_t{arcs.vertices()} - 1), count = slots * arcs.items;
    for_each<GridGroup>(length * arcs.items, [=](int64_t i) { tour.increment[i] = 0; });
    for_each<GridGroup>(int64_t{arcs.vertices()} * arcs.items, [=](int64_t v) {
        // The values that remain where the edges are not a tree.
        tour.parent_arc[v] = 0;
        tour.preorder[v] = trees.parent[v] = -1;
        tour.depth_key[v] = v / arcs.vertices() * arcs.vertices();
        if (arcs.isolated(static_cast<int32_t>(v))) report(status, v / arcs.vertices());
    });
    for_each<GridGroup>(count, [=](int64_t i) {
        Link<> link{static_cast<int32_t>(i), 0};
        if (arcs.exists(i)) {
            const int32_t item = arcs.source(i) / arcs.vertices();
            const int64_t next = arcs.successor(i);
            if (next != arcs.first_from(item * arcs.vertices() + root)) link = {static_cast<int32_t>(next), 1};
        }
        tour.links[i] = link;
    });
    GridGroup::sync();
    Link<>* links = rank_lists<GridGroup>(tour.links, tour.spare, count, length);
    if (GridGroup::rank() == 0) *ranked = links;
    const Ranking<Arcs> ranking{arcs, links, tour.parent_arc, root};
    for_each<GridGroup>(count, [=](int64_t i) {
        if (arcs.exists(i) && ranking.goes_down(i))
            store_greatest(tour.parent_arc + arcs.target(i), static_cast<int32_t>(arcs.twin(i)));
    });
    GridGroup::sync();
    for_each<GridGroup>(count, [=](int64_t i) {
        if (!arcs.exists(i)) return;
        const int64_t place = ranking.place(i);
        const bool ends = links[links[i].next].next == links[i].next;
        if (!ends || place < 0 || place >= length) return report(status, ranking.item(i));
        tour.increment[ranking.item(i) * length + place] =
            ranking.goes_down(i) ? sums(1 + ranking.move(i), 1) : sums(-ranking.move(arcs.twin(i)), 0);
    });
}

template <class Arcs>
__global__ void preorder_kernel(Arcs arcs, int32_t root, Tour tour, Link<>* const* ranked, TreePointers trees) {
    const int32_t vertices = arcs.vertices();
    const Ranking<Arcs> ranking{arcs, *ranked, tour.parent_arc, root};
    const int64_t length = ranking.length();
    for_each<GridGroup>(int64_t{arcs.items} * vertices, [=](int64_t i) {
        const int64_t item = i / vertices, v = i - item * vertices;
        if (v != root) return;
        trees.parent[i] = root;
        tour.preorder[item * vertices] = root;
        tour.depth_key[item * vertices] = item * vertices;
    });
    for_each<GridGroup>(arcs.slots() * arcs.items, [=](int64_t i) {
        if (!arcs.exists(i) || !ranking.goes_down(i)) return;
        const int64_t item = ranking.item(i), place = ranking.place(i);
        if (place < 0 || place >= length) return;
        const int64_t sum =
            tour.sum[item * length + place] + tour.increment[item * length + place] - tour.sum[item * length];
        // Of the place + 1 arcs up to this one, `down` go down; each of the others takes one of them back.
        const int64_t index = sum >> 32, down = sum & 0xFFFFFFFF, depth = 2 * down - place - 1;
        const int32_t target = static_cast<int32_t>(arcs.target(i) - item * vertices);
        if (index < 1 || index >= vertices || depth < 1 || depth >= vertices || target == root) return;
        store_greatest(trees.parent + arcs.target(i), static_cast<int32_t>(arcs.source(i) - item * vertices));
        store_greatest(tour.preorder + item * vertices + index, target);
        store_greatest(tour.depth_key + item * vertices + index, static_cast<uint64_t>(item * vertices + depth));
    });
}

static __global__ void order_kernel(SortedPairs sorted, int64_t count, TreePointers trees) {
    for_each<GridGroup>(count, [=](int64_t i) { trees.order[i] = sorted.values[i]; });
}

inline int bits_of(int64_t largest) {
    int bits = 1;
    while (largest >> bits) ++bits;
    return bits;
}

template <class Arcs>
void order_by_tour(const Device& device, Workspace& workspace, Arcs arcs, int64_t vertices, int64_t slots, int32_t root,
                   TreePointers trees, int32_t* status) {
    const int64_t items = arcs.items, count = slots * items, length = 2 * (vertices - 1) * items;
    const int64_t size = items * vertices;
    auto [links, spare, parent_arc, increment, sum, depth_key, preorder, ranked] =
        workspace.take<Link<>, Link<>, int32_t, int64_t, int64_t, uint64_t, int32_t, Link<>*>(
            count, count, size, length, length, size, size, 1);
    const Tour tour{links, spare, parent_arc, increment, sum, depth_key, preorder};
    launch_grid_group(device, euler_tour_kernel<Arcs>, count, arcs, root, tour, ranked, trees, status);
    exclusive_sum(device, workspace, tour.increment, tour.sum, length);
    device.launch(preorder_kernel<Arcs>, blocks_for(count), ELEMENT_THREADS, 0, arcs, root, tour, ranked, trees);
    SortedPairs sorted = sort_pairs(device, workspace, tour.depth_key, tour.preorder, size, bits_of(size - 1));
    device.launch(order_kernel, blocks_for(size), ELEMENT_THREADS, 0, sorted, size, trees);
}

}  // namespace grootv
