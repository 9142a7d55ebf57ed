#include "cuda/tokens/token_walk.h"

#include "cuda/tree/subtrees.h"

namespace grootv {
namespace {

// A block for each item. Backwards the walk is a preorder in which the heavy child comes last: the place of a token
// follows from its parent's by the sizes of the subtrees between them, and from the root's by pointer jumping.
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    token_walk_kernel(Subtrees trees, TokenVisit* visits, int32_t* valid) {
    const int32_t length = trees.vertices, item = static_cast<int32_t>(blockIdx.x);
    const int64_t begin = int64_t{item} * length;
    const Link* tour = trees.measure<BlockGroup>(item, 1);
    const bool fine = trees.valid[item] && trees.order[begin] == length - 1;
    if (threadIdx.x == 0) valid[item] = fine;
    if (!fine) {
        for_each<BlockGroup>(length, [=](int64_t i) { visits[begin + i] = {static_cast<int32_t>(i), 0, false, true}; });
        return;
    }

    auto size = [=](int64_t i) { return (tour[2 * i].distance - tour[2 * i + 1].distance + 1) / 2; };
    // How many places a token comes after its parent.
    auto distance_to_parent = [=](int32_t p) {
        const int32_t parent = trees.parent_position[p], heavy = trees.heavy_child(parent);
        const int64_t i = p - begin, above = parent - begin;
        if (p == heavy) return size(above) - size(i);
        const int32_t before = (tour[2 * above].distance - tour[2 * i].distance - 1) / 2;
        return 1 + before - (heavy < p ? size(heavy - begin) : 0);
    };
    Link* links = tour == trees.links + 2 * begin ? trees.spare + 2 * begin : trees.links + 2 * begin;
    for_each<BlockGroup>(length, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i);
        links[i] = {trees.parent_position[p], i == 0 ? 0 : distance_to_parent(p)};
    });
    __syncthreads();
    const Link* place = rank_lists<BlockGroup>(links, links + length, begin, length, length);
    for_each<BlockGroup>(length, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), parent = trees.parent_position[p];
        int16_t row = 0;
        for (int32_t rest = size(parent - begin); rest >= 4; rest /= 2) ++row;
        const bool root = i == 0, first = root || p == trees.heavy_child(parent),
                   last = root || distance_to_parent(p) == 1;
        visits[begin + length - 1 - place[i].distance] = {trees.order[p], row, !first, last};
    });
}

}  // namespace

TokenWalks walk_tokens(const Device& device, Workspace& workspace, const int32_t* order, const int32_t* parent,
                       int64_t batch, int64_t length) {
    const Subtrees trees(workspace, order, parent, batch, length);
    auto* visits = workspace.take<TokenVisit>(batch * length);
    auto* valid = workspace.take<int32_t>(batch);
    device.launch(token_walk_kernel, batch, GROUP_THREADS, 0, trees, visits, valid);
    return {visits, valid};
}

}  // namespace grootv
