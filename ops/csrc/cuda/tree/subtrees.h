// The subtrees of trees in breadth-first order, and their sizes.
#pragma once

#include "cuda/common/list_ranking.h"
#include "cuda/common/thread_group.h"
#include "cuda/common/workspace.h"

namespace grootv {

// Trees by position in breadth-first order, which counts through the whole batch.
struct Subtrees {
    // Size of a subtree and its top, of equal sizes the first the greatest; 0 for none.
    using SizeAndTop = unsigned long long;

    // order and parent: (B, L), as in Tree.
    Subtrees(Workspace& workspace, const int32_t* order, const int32_t* parent, int64_t batch, int64_t vertices)
        : order(order),
          parent(parent),
          vertices(static_cast<int32_t>(vertices)),
          valid(workspace.take<int32_t>(batch)),
          position(workspace.take<int32_t>(batch * vertices)),
          parent_position(workspace.take<int32_t>(batch * vertices)),
          first_child(workspace.take<int32_t>(batch * vertices)),
          end_child(workspace.take<int32_t>(batch * vertices)),
          heaviest(workspace.take<SizeAndTop>(batch * vertices)),
          links(workspace.take<Link>(2 * batch * vertices)),
          spare(workspace.take<Link>(2 * batch * vertices)) {}

    // What a block of one item knows without a division, and its links in shared memory, two times two for each vertex.
    __device__ void restrict_to(int32_t item, Link* memory) {
        only_item = item;
        if (!memory) return;
        links = memory - int64_t{2} * item * vertices;
        spare = links + int64_t{2} * vertices;
    }
    static __host__ __device__ int64_t link_bytes(int64_t vertices) {
        return 4 * vertices * static_cast<int64_t>(sizeof(Link));
    }

    __device__ int32_t item_of(int32_t p) const { return only_item >= 0 ? only_item : p / vertices; }
    __device__ int32_t root_of(int32_t p) const { return item_of(p) * vertices; }
    __device__ bool is_valid(int32_t p) const { return valid[item_of(p)]; }

    // The parent's position, for the root its own. An invalid tree counts as a star, which is harmless.
    __device__ int32_t parent_of(int32_t p) const { return is_valid(p) ? parent_position[p] : root_of(p); }

    __device__ int32_t child_count(int32_t p) const { return end_child[p] - first_child[p]; }

    // Position of the child with the largest subtree, -1 for a leaf.
    __device__ int32_t heavy_child(int32_t p) const {
        return heaviest[p] == 0 ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(heaviest[p]));
    }

    // Finds all of this for some items. Returns the tour that enters and leaves every subtree: the distances from its
    // end, from entering position first_item * vertices + i at 2 i and from leaving it at 2 i + 1.
    template <class Group>
    __device__ const Link* measure(int64_t first_item, int64_t items) const;

    const int32_t *order, *parent;
    int32_t vertices;
    int32_t* valid;     // by item: whether order and parent are a tree in breadth-first order
    int32_t* position;  // by vertex
    int32_t *parent_position, *first_child, *end_child;
    SizeAndTop* heaviest;
    Link *links, *spare;     // two for each position
    int32_t only_item = -1;  // of a block
};

template <class Group>
__device__ const Link* Subtrees::measure(int64_t first_item, int64_t items) const {
    const Subtrees self = *this;
    const int64_t begin = first_item * vertices, count = items * vertices;

    // Positions, and whether every vertex has one.
    for_each<Group>(items, [=](int64_t i) { self.valid[first_item + i] = 1; });
    for_each<Group>(count, [=](int64_t i) { self.position[begin + i] = -1; });
    Group::sync();
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = self.root_of(p), vertex = self.order[p];
        const bool fine = vertex >= 0 && vertex < self.vertices;
        if (!fine || atomicExch(self.position + root + vertex, p) != -1) atomicExch(self.valid + self.item_of(p), 0);
    });
    Group::sync();

    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = self.root_of(p), vertex = self.order[p];
        const bool known = vertex >= 0 && vertex < self.vertices;
        const int32_t parent = known ? self.parent[root + vertex] : -1;
        const int32_t found = parent >= 0 && parent < self.vertices ? self.position[root + parent] : -1;
        const bool fine = p == root ? found == root : found >= root && found < p;
        if (!fine) atomicExch(self.valid + self.item_of(p), 0);
        self.parent_position[p] = fine ? found : root;
        self.first_child[p] = self.end_child[p] = 0;
    });
    Group::sync();
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i);
        if (p > self.root_of(p) + 1 && self.parent_position[p - 1] > self.parent_position[p])
            atomicExch(self.valid + self.item_of(p), 0);
    });
    Group::sync();

    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = self.root_of(p);
        if (p == root) return;
        const int32_t parent = self.parent_of(p);
        if (p == root + 1 || self.parent_of(p - 1) != parent) self.first_child[parent] = p;
        if (p + 1 == root + self.vertices || self.parent_of(p + 1) != parent) self.end_child[parent] = p + 1;
    });
    Group::sync();
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = self.root_of(p), parent = self.parent_of(p);
        const bool leaf = self.end_child[p] == 0, last = p == root || p + 1 == self.end_child[parent];
        self.links[2 * p] = {leaf ? 2 * p + 1 : 2 * self.first_child[p], 1};
        self.links[2 * p + 1] = {last ? 2 * parent + 1 : 2 * p + 2, p == root ? 0 : 1};
        self.heaviest[p] = 0;
    });
    Group::sync();
    const Link* tour =
        rank_lists<Group>(links + 2 * begin, spare + 2 * begin, 2 * begin, 2 * count, 2 * int64_t{vertices});

    // The distance from entering to leaving a subtree grows with its size.
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), parent = self.parent_of(p);
        const int32_t distance = tour[2 * i].distance - tour[2 * i + 1].distance;
        if (p != parent && self.is_valid(p))
            atomicMax(self.heaviest + parent, static_cast<SizeAndTop>(distance) << 32 | ~static_cast<uint32_t>(p));
    });
    Group::sync();
    return tour;
}

}  // namespace grootv
