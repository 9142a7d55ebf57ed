#include "cuda/tokens/token_walk.h"

#include "cuda/tree/subtrees.h"

namespace grootv {
namespace {

// A block for each item. Backwards the walk is a preorder in which the largest child comes last: a place is known from
// the parent's by the sizes of the subtrees between, and from the root's by pointer jumping.
__global__ void __launch_bounds__(TEAM_THREADS, 1) token_walk_kernel(Subtrees trees, Visit* visits, int32_t* valid) {
    const int32_t length = trees.vertices, item = static_cast<int32_t>(blockIdx.x);
    const int64_t begin = int64_t{item} * length;
    const Link* tour = trees.measure<BlockTeam>(item, 1);
    const bool fine = trees.valid[item] && trees.order[begin] == length - 1;
    if (threadIdx.x == 0) valid[item] = fine;
    if (!fine) {
        for_each<BlockTeam>(length, [=](int64_t i) { visits[begin + i] = {static_cast<int32_t>(i), 0, false, true}; });
        return;
    }

    auto size = [=](int64_t i) { return (tour[2 * i].distance - tour[2 * i + 1].distance + 1) / 2; };
    // Places between a child and its parent.
    auto way = [=](int32_t p) {
        const int32_t above = trees.above[p], preferred = trees.preferred_child(above);
        const int64_t i = p - begin, parent = above - begin;
        if (p == preferred) return size(parent) - size(i);
        const int32_t before = (tour[2 * parent].distance - tour[2 * i].distance - 1) / 2;
        return 1 + before - (preferred < p ? size(preferred - begin) : 0);
    };
    Link* links = tour == trees.links + 2 * begin ? trees.spare + 2 * begin : trees.links + 2 * begin;
    for_each<BlockTeam>(length, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i);
        links[i] = {trees.above[p], i == 0 ? 0 : way(p)};
    });
    __syncthreads();
    const Link* place = rank_lists<BlockTeam>(links, links + length, begin, length, length);
    for_each<BlockTeam>(length, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), above = trees.above[p];
        int16_t row = 0;
        for (int32_t rest = size(above - begin); rest >= 4; rest /= 2) ++row;
        const bool root = i == 0, first = root || p == trees.preferred_child(above), last = root || way(p) == 1;
        visits[begin + length - 1 - place[i].distance] = {trees.order[p], row, !first, last};
    });
}

}  // namespace

TokenWalks walk_tokens(const Device& device, Workspace& workspace, const int32_t* order, const int32_t* parent,
                       int64_t batch, int64_t length) {
    const Subtrees trees(workspace, order, parent, batch, length);
    auto* visits = workspace.take<Visit>(batch * length);
    auto* valid = workspace.take<int32_t>(batch);
    device.launch(token_walk_kernel, dim3(static_cast<unsigned>(batch)), TEAM_THREADS, 0, trees, visits, valid);
    return {visits, valid};
}

}  // namespace grootv
