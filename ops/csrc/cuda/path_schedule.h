// In which order the scan takes the vertices of a tree.
//
// Every vertex prefers the child with the largest subtree, and paths run along these preferences. From any vertex to
// the root at most log2(V) edges leave a path, so the paths fall into that many rounds, by the number of such edges
// above them: a path needs the rounds below it on the way up and the rounds above it on the way down. Within a round
// all paths are independent, and long ones are cut into chunks.
#pragma once

#include "cuda/team.h"
#include "cuda/workspace.h"

namespace grootv {

// A place on a path. Paths lie one after the other, each from its top down.
struct alignas(16) PathVertex {
    int32_t vertex;                  // all numbers count the vertices of the whole batch
    int32_t first_child, end_child;  // positions in breadth-first order
    int32_t preferred_child;         // position, -1 for a leaf
};

struct alignas(8) PathChunk {
    static constexpr int LENGTH = 64;

    int32_t first, length;  // places
    int32_t above;          // vertex above the path, -1 if it starts at the root
    int32_t index, count;   // of the chunks of its path
    int32_t carry;          // index of the path's first carry
};

struct alignas(8) LongPath {
    int32_t carry, count;  // its chunks' carries
};

// The schedule of a batch, as lists that blocks share (one for each item) or the grid (one for all).
struct PathSchedule {
    static constexpr int ROUNDS = 32;

    // Lists of the items of one block, or of all.
    struct Lists {
        const PathChunk* chunks;
        const LongPath* long_paths;
        const int32_t *chunk_ptr, *long_ptr;  // (ROUNDS + 1): where the round starts
        int32_t first_item, items;
    };

    __device__ Lists lists(int32_t item) const {
        const int64_t list = shared_by_all ? 0 : item, first = list * vertices;
        const int32_t* counts = round_ptr + list * 2 * (ROUNDS + 1);
        return {chunks + first,      long_paths + first,         counts,
                counts + ROUNDS + 1, static_cast<int32_t>(list), shared_by_all ? items : 1};
    }

    // Carries of all long paths of the batch, at most.
    int64_t carries() const { return int64_t{items} * carries_of_one(vertices); }

    static __host__ __device__ int64_t carries_of_one(int64_t vertices) { return 2 * vertices / PathChunk::LENGTH; }

    bool shared_by_all;
    int32_t items, vertices;
    PathVertex* places;
    PathChunk* chunks;
    LongPath* long_paths;
    int32_t* round_ptr;    // chunk_ptr and long_ptr of each list
    const int32_t* order;  // vertex at each position, counted within its item
    int32_t* valid;        // by item: whether order and parent are a tree in breadth-first order
};

// order and parent: (B, L), as in Tree.
PathSchedule schedule_paths(const Device& device, Workspace& workspace, const int32_t* order, const int32_t* parent,
                            int64_t batch, int64_t vertices);

}  // namespace grootv
