// In which order the scan takes the vertices of a tree.
//
// Every vertex prefers the child with the largest subtree, and paths run along these preferences; its other children
// are light and start paths of their own. From any vertex to the root at most log2(V) edges leave a path, so the paths
// fall into that many rounds, by the number of such edges above them: a path needs the rounds below it on the way up
// and the rounds above it on the way down. Within a round all paths are independent. They are taken in chunks of a few
// steps: short paths several at a time, long paths in pieces.
#pragma once

#include "cuda/common/thread_group.h"
#include "cuda/common/workspace.h"

namespace grootv {

// A step on a path, from its top down: a vertex or, after it, one of its light children but the first. What the first
// light child adds to a vertex is written into the vertex's row at the end of the child's path; what the others add is
// read from theirs. Vertices are counted through the whole batch.
class alignas(8) Step {
public:
    Step() = default;

    __device__ static Step vertex(int32_t vertex, bool is_bottom, bool is_fed) {
        return {static_cast<uint32_t>(vertex) | (is_bottom ? BOTTOM : 0) | (is_fed ? FED : 0), 0};
    }
    __device__ static Step light_child(int32_t vertex) { return {static_cast<uint32_t>(vertex), LIGHT_CHILD}; }
    __device__ Step as_root() const { return {vertex_ | TOP, ROOT}; }
    __device__ Step as_top(int32_t above, bool feeds) const {
        return {vertex_ | TOP, static_cast<uint32_t>(above) | (feeds ? FEEDS : 0)};
    }

    __device__ int32_t vertex() const { return static_cast<int32_t>(vertex_ & NUMBER); }
    __device__ bool is_light_child() const { return above_ & LIGHT_CHILD; }
    __device__ bool is_bottom() const { return vertex_ & BOTTOM; }  // a leaf: no step of its path follows
    __device__ bool is_fed() const { return vertex_ & FED; }        // by its first light child
    __device__ bool is_top() const { return vertex_ & TOP; }        // no step of its path comes before
    __device__ bool is_root() const { return above_ & ROOT; }
    __device__ bool feeds() const { return above_ & FEEDS; }  // a top: whether it is the first light child
    __device__ int32_t above() const { return static_cast<int32_t>(above_ & NUMBER); }  // of a top: its parent

private:
    static constexpr uint32_t BIT = 1u << 29, NUMBER = BIT - 1;
    static constexpr uint32_t BOTTOM = BIT, FED = BIT << 1, TOP = BIT << 2;          // in the first word
    static constexpr uint32_t ROOT = BIT, FEEDS = BIT << 1, LIGHT_CHILD = BIT << 2;  // in the second

    __device__ Step(uint32_t vertex, uint32_t above) : vertex_(vertex), above_(above) {}

    uint32_t vertex_, above_;
};

// Steps first ... end - 1: whole paths that start within LENGTH steps, or a piece of a path longer than LONGEST. Pieces
// have LENGTH steps or, so that no path has more than MOST_PIECES, a multiple of that.
struct alignas(16) PathChunk {
    static constexpr int LENGTH = 16, LONGEST = 3 * LENGTH, MOST_PIECES = 256;

    int32_t first, end;
    int32_t carry;  // index of a piece's carry, -1 for whole paths
};

struct alignas(8) LongPath {
    int32_t carry, count;  // of its pieces, from the top down
};

// The schedule of a batch, as lists that blocks share (one for each item) or the grid (one for all).
struct PathSchedule {
    static constexpr int ROUNDS = WARP;

    // Where rounds start.
    struct Rounds {
        int32_t chunks[ROUNDS + 1];   // first the pieces of long paths
        int32_t whole_paths[ROUNDS];  // the chunks after these
        int32_t long_paths[ROUNDS + 1];
    };

    // Lists of the items of one block, or of all.
    struct Lists {
        Step* steps;
        PathChunk* chunks;
        LongPath* long_paths;
        Rounds* rounds;
        int32_t first_item, items;
    };

    // item: that of the block; of no use if the list is shared by all.
    __device__ Lists lists(int32_t item) const {
        const int64_t list = shared_by_all ? 0 : item;
        return {steps + list * steps_of_one(vertices),
                chunks + list * chunks_of_one(vertices),
                long_paths + list * long_paths_of_one(vertices),
                rounds + list,
                static_cast<int32_t>(list),
                shared_by_all ? items : 1};
    }

    // Of one item, at most. Paths cut in pieces have at least LONGEST steps; each round may have a chunk of a few
    // steps.
    static __host__ __device__ int64_t steps_of_one(int64_t vertices) { return 2 * vertices; }
    static __host__ __device__ int64_t carries_of_one(int64_t vertices) {
        return steps_of_one(vertices) / PathChunk::LENGTH + long_paths_of_one(vertices);
    }
    static __host__ __device__ int64_t chunks_of_one(int64_t vertices) {
        return carries_of_one(vertices) + (vertices < ROUNDS ? vertices : ROUNDS);
    }
    static __host__ __device__ int64_t long_paths_of_one(int64_t vertices) {
        return steps_of_one(vertices) / PathChunk::LONGEST;
    }

    bool shared_by_all;
    int32_t items, vertices;
    Step* steps;
    PathChunk* chunks;
    LongPath* long_paths;
    Rounds* rounds;
    int32_t* valid;  // by item: whether order and parent are a tree in breadth-first order
};

// order and parent: (B, L), as in Tree.
PathSchedule schedule_paths(const Device& device, Workspace& workspace, const int32_t* order, const int32_t* parent,
                            int64_t batch, int64_t vertices, bool shared_by_all);

}  // namespace grootv
