// The subtrees of trees in breadth-first order, and their sizes.
#pragma once

#include <cstddef>
#include <type_traits>

#include "cuda/common/list_ranking.h"
#include "cuda/common/thread_group.h"

namespace grootv {

// The trees of a group, one of a block, by position in breadth-first order, which counts through all of them. Sums over
// a tree of `Index` vertices have to fit twice.
template <class Group, class Index>
struct Subtrees {
    // Size of a subtree and its top, of equal sizes the first the greatest; 0 for none.
    using SizeAndTop = std::conditional_t<sizeof(Index) == 2, unsigned, unsigned long long>;
    using Top = std::make_unsigned_t<Index>;
    static constexpr int SIZE_SHIFT = 8 * sizeof(Index);

    static __host__ __device__ int64_t bytes(int64_t items, int64_t vertices) {
        constexpr int64_t LINKS = 4 * sizeof(Link<Index>), REST = sizeof(SizeAndTop) + 3 * sizeof(Index);
        return (items * (vertices * (LINKS + REST) + static_cast<int64_t>(sizeof(int32_t))) + 15) / 16 * 16;
    }

    // order and parent: (items, L), as in Tree.
    __device__ Subtrees(std::byte* memory, const int32_t* order, const int32_t* parent, int32_t items, int32_t vertices)
        : order(order),
          parent(parent),
          items(Group::IS_BLOCK ? 1 : items),
          vertices(vertices),
          count(this->items * int64_t{vertices}),
          links(reinterpret_cast<Link<Index>*>(memory)),
          spare(links + 2 * count),
          heaviest(reinterpret_cast<SizeAndTop*>(spare + 2 * count)),
          valid(reinterpret_cast<int32_t*>(heaviest + count)),
          parent_position(reinterpret_cast<Index*>(valid + this->items)),
          first_child(parent_position + count),
          end_child(first_child + count) {}

    __device__ int32_t item_of(int32_t p) const { return Group::IS_BLOCK ? 0 : p / vertices; }
    __device__ int32_t root_of(int32_t p) const { return item_of(p) * vertices; }
    __device__ bool is_valid(int32_t p) const { return valid[item_of(p)]; }

    // The parent's position, for the root its own. An invalid tree counts as a star, which is harmless.
    __device__ int32_t parent_of(int32_t p) const { return is_valid(p) ? parent_position[p] : root_of(p); }

    __device__ int32_t child_count(int32_t p) const { return end_child[p] - first_child[p]; }

    // Position of the child with the largest subtree, -1 for a leaf.
    __device__ int32_t heavy_child(int32_t p) const {
        return heaviest[p] == 0 ? -1 : static_cast<int32_t>(static_cast<Top>(~heaviest[p]));
    }

    // Finds validity, parents and children, with the links as scratch memory.
    __device__ void find_children() const;

    // Finds all of this. Returns the tour that enters and leaves every subtree, in `links` or `spare`: the distances
    // from its end, from entering position p at 2 p and from leaving it at 2 p + 1.
    __device__ const Link<Index>* measure() const;

    const int32_t *order, *parent;
    int32_t items, vertices;
    int64_t count;              // of positions
    Link<Index>*links, *spare;  // two for each position
    SizeAndTop* heaviest;
    int32_t* valid;  // by item: whether order and parent are a tree in breadth-first order
    Index *parent_position, *first_child, *end_child;
};

template <class Group, class Index>
__device__ void Subtrees<Group, Index>::find_children() const {
    const Subtrees self = *this;
    auto* position = reinterpret_cast<int32_t*>(spare);  // by vertex

    // Positions, and whether every vertex has one.
    for_each<Group>(items, [=](int64_t i) { self.valid[i] = 1; });
    for_each<Group>(count, [=](int64_t v) { position[v] = -1; });
    Group::sync();
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i), root = self.root_of(p), vertex = self.order[p];
        const bool fine = vertex >= 0 && vertex < self.vertices;
        if (!fine || atomicExch(position + root + vertex, p) != -1) atomicExch(self.valid + self.item_of(p), 0);
    });
    Group::sync();

    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i), root = self.root_of(p), vertex = self.order[p];
        const bool known = vertex >= 0 && vertex < self.vertices;
        const int32_t parent = known ? self.parent[root + vertex] : -1;
        const int32_t found = parent >= 0 && parent < self.vertices ? position[root + parent] : -1;
        const bool fine = p == root ? found == root : found >= root && found < p;
        if (!fine) atomicExch(self.valid + self.item_of(p), 0);
        self.parent_position[p] = static_cast<Index>(fine ? found : root);
        self.first_child[p] = self.end_child[p] = 0;
    });
    Group::sync();
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i);
        if (p > self.root_of(p) + 1 && self.parent_position[p - 1] > self.parent_position[p])
            atomicExch(self.valid + self.item_of(p), 0);
    });
    Group::sync();

    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i), root = self.root_of(p);
        if (p == root) return;
        const int32_t parent = self.parent_of(p);
        if (p == root + 1 || self.parent_of(p - 1) != parent) self.first_child[parent] = static_cast<Index>(p);
        if (p + 1 == root + self.vertices || self.parent_of(p + 1) != parent)
            self.end_child[parent] = static_cast<Index>(p + 1);
    });
    Group::sync();
}

template <class Group, class Index>
__device__ const Link<Index>* Subtrees<Group, Index>::measure() const {
    const Subtrees self = *this;
    find_children();
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i), root = self.root_of(p), parent = self.parent_of(p);
        const bool leaf = self.end_child[p] == 0, last = p == root || p + 1 == self.end_child[parent];
        auto link = [](int32_t next, int distance) {
            return Link<Index>{static_cast<Index>(next), static_cast<Index>(distance)};
        };
        self.links[2 * p] = link(leaf ? 2 * p + 1 : 2 * self.first_child[p], 1);
        self.links[2 * p + 1] = link(last ? 2 * parent + 1 : 2 * p + 2, p == root ? 0 : 1);
        self.heaviest[p] = 0;
    });
    Group::sync();
    const Link<Index>* tour = rank_lists<Group>(links, spare, 2 * count, 2 * int64_t{vertices});

    // The distance from entering to leaving a subtree grows with its size.
    for_each<Group>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i), parent = self.parent_of(p);
        const int32_t distance = tour[2 * i].distance - tour[2 * i + 1].distance;
        if (p != parent && self.is_valid(p))
            atomicMax(self.heaviest + parent,
                      static_cast<SizeAndTop>(distance) << SIZE_SHIFT | static_cast<Top>(~static_cast<Top>(p)));
    });
    Group::sync();
    return tour;
}

}  // namespace grootv
