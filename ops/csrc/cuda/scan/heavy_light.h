// The heavy-light decomposition of a tree, which is the order in which the scan takes its vertices.
//
// The heavy child of a vertex is the one with the largest subtree, its other children are light. A heavy path starts at
// the root or at a light child and follows the heavy children down to a leaf. The light depth of a path is the number
// of light edges between it and the root, at most log2(V). On the way up a path needs the paths of greater light depth,
// on the way down those of smaller light depth; paths of equal light depth are independent. They are taken in chunks of
// a few entries: several short paths at a time, long paths in pieces.
#pragma once

#include "cuda/common/thread_group.h"

namespace grootv {

// An entry of a heavy path, from its top down: a vertex or, after it, the light edge to one of its light children but
// the first. What the first light child adds to a vertex is written into the vertex's row at the end of the child's
// path; what the others add is read from theirs. Vertices are counted through the whole batch.
class alignas(8) PathEntry {
public:
    PathEntry() = default;

    __device__ static PathEntry of_vertex(int32_t vertex, bool is_leaf, bool has_light_child) {
        return {static_cast<uint32_t>(vertex) | (is_leaf ? LEAF : 0) | (has_light_child ? HAS_LIGHT_CHILD : 0), 0};
    }
    __device__ static PathEntry of_light_edge(int32_t child) { return {static_cast<uint32_t>(child), LIGHT_EDGE}; }
    __device__ PathEntry as_root() const { return {vertex_ | TOP, ROOT}; }
    __device__ PathEntry as_top(int32_t parent, bool is_first_light_child) const {
        return {vertex_ | TOP, static_cast<uint32_t>(parent) | (is_first_light_child ? FIRST_LIGHT_CHILD : 0)};
    }

    __device__ int32_t vertex() const { return static_cast<int32_t>(vertex_ & NUMBER); }  // or the light child
    __device__ bool is_light_edge() const { return parent_ & LIGHT_EDGE; }
    __device__ bool is_leaf() const { return vertex_ & LEAF; }  // no entry of its path follows
    __device__ bool has_light_child() const { return vertex_ & HAS_LIGHT_CHILD; }
    __device__ bool is_top() const { return vertex_ & TOP; }  // no entry of its path comes before
    __device__ bool is_root() const { return parent_ & ROOT; }
    // Of a top:
    __device__ bool is_first_light_child() const { return parent_ & FIRST_LIGHT_CHILD; }
    __device__ int32_t parent() const { return static_cast<int32_t>(parent_ & NUMBER); }

private:
    static constexpr uint32_t BIT = 1u << 29, NUMBER = BIT - 1;
    static constexpr uint32_t LEAF = BIT, HAS_LIGHT_CHILD = BIT << 1, TOP = BIT << 2;           // in the first word
    static constexpr uint32_t ROOT = BIT, FIRST_LIGHT_CHILD = BIT << 1, LIGHT_EDGE = BIT << 2;  // in the second

    __device__ PathEntry(uint32_t vertex, uint32_t parent) : vertex_(vertex), parent_(parent) {}

    uint32_t vertex_, parent_;
};

// Entries first ... end - 1: short paths that start within WINDOW entries, or a piece of a long path, one of more than
// LONGEST entries. Pieces have LENGTH entries or, so that no path has more than MOST_PIECES, a multiple of that. So
// short paths make chunks of at most LENGTH entries, as pieces do, whose inputs are loaded together.
struct alignas(16) Chunk {
    static constexpr int LENGTH = 8, WINDOW = 4, LONGEST = 5, MOST_PIECES = 256;
    static_assert(WINDOW - 1 + LONGEST <= LENGTH);

    int32_t first, end;
    int32_t carry;  // index of a piece's carry, -1 for short paths
};

struct alignas(8) LongPath {
    int32_t carry, count;  // of its pieces, from the top down
};

// The decompositions of a batch, as lists of one item each, whose scans and decomposition a block takes, or as one list
// of all items.
struct HeavyLight {
    static constexpr int LIGHT_DEPTHS = WARP;

    // Where each light depth begins.
    struct Begins {
        int32_t chunks[LIGHT_DEPTHS + 1];   // first the pieces of long paths
        int32_t short_paths[LIGHT_DEPTHS];  // the chunks after these
        int32_t long_paths[LIGHT_DEPTHS + 1];
    };

    struct Lists {
        PathEntry* entries;
        Chunk* chunks;
        LongPath* long_paths;
        Begins* begins;
        int32_t first_item, items;
    };

    // In memory of words_of_one(vertices) int32 for each item.
    HeavyLight(int32_t* memory, int64_t items, int64_t vertices, bool all_in_one)
        : all_in_one(all_in_one),
          items(static_cast<int32_t>(items)),
          vertices(static_cast<int32_t>(vertices)),
          chunks(reinterpret_cast<Chunk*>(memory)),
          entries(reinterpret_cast<PathEntry*>(chunks + items * chunks_of_one(vertices))),
          long_paths(reinterpret_cast<LongPath*>(entries + items * entries_of_one(vertices))),
          begins(reinterpret_cast<Begins*>(long_paths + items * long_paths_of_one(vertices))),
          valid(reinterpret_cast<int32_t*>(begins + items)),
          tag(valid + items) {}

    // Whether a block takes an item: if it is small and shared memory has room for the sums of two signals in both
    // passes and for its decomposition.
    static bool takes_blocks(const Device& device, int64_t vertices);
    static constexpr int64_t SUM_BYTES = 2 * 16;

    // Whether heavy_light made this, of as many items and for the same group. Only then scans read the lists.
    __device__ bool made() const { return *tag == own_tag(); }
    __device__ void mark_made() const { *tag = own_tag(); }

    // Those of one item, or of all.
    __device__ Lists lists(int32_t item) const {
        const int64_t list = all_in_one ? 0 : item;
        return {entries + list * entries_of_one(vertices),
                chunks + list * chunks_of_one(vertices),
                long_paths + list * long_paths_of_one(vertices),
                begins + list,
                static_cast<int32_t>(list),
                all_in_one ? items : 1};
    }

    // Of one item, at most. Pieces have more than LENGTH / 2 entries on average; each light depth may end in a shorter
    // chunk.
    static __host__ __device__ int64_t entries_of_one(int64_t vertices) { return 2 * vertices; }
    static __host__ __device__ int64_t carries_of_one(int64_t vertices) {
        return entries_of_one(vertices) * 2 / (Chunk::LENGTH + 1);
    }
    static __host__ __device__ int64_t chunks_of_one(int64_t vertices) {
        return entries_of_one(vertices) / Chunk::WINDOW + LIGHT_DEPTHS;
    }
    static __host__ __device__ int64_t long_paths_of_one(int64_t vertices) {
        return entries_of_one(vertices) / (Chunk::LONGEST + 1);
    }
    // As ops/scan.py has it.
    static int64_t words_of_one(int64_t vertices) { return 7 * vertices + 256; }
    static_assert(sizeof(Chunk) * (2.0 / Chunk::WINDOW) + sizeof(PathEntry) * 2 +
                          sizeof(LongPath) * (2.0 / (Chunk::LONGEST + 1)) <=
                      7 * sizeof(int32_t) &&
                  sizeof(Chunk) * LIGHT_DEPTHS + sizeof(Begins) + 2 * sizeof(int32_t) <= 256 * sizeof(int32_t));
    static_assert(2 * Chunk::LONGEST > Chunk::LENGTH && 2 * Chunk::WINDOW <= Chunk::LENGTH + 1);

    bool all_in_one;
    int32_t items, vertices;
    Chunk* chunks;
    PathEntry* entries;
    LongPath* long_paths;
    Begins* begins;
    int32_t* valid;  // by item: whether order and parent are a tree in breadth-first order
    int32_t* tag;

private:
    // As an entry it would be a leaf with light children.
    __device__ int32_t own_tag() const { return 0x67726f6f + (all_in_one ? -items : items); }
};

// The decompositions of trees (B, L), as in Tree, in a tensor (B, words).
Tensor decompose_heavy_light(const Device& device, const Tensor& order, const Tensor& parent);

}  // namespace grootv
