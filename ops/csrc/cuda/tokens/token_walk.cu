#include "cuda/tokens/token_walk.h"

#include "cuda/tree/subtrees.h"

namespace grootv {
namespace {

using Tree = Subtrees<BlockGroup, int32_t>;

// A block for each item. Backwards the walk is a preorder in which the heavy child comes last: the place of a token
// follows from its parent's by the sizes of the subtrees between them, and from the root's by pointer jumping.
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    token_walk_kernel(const int32_t* orders, const int32_t* parents, int32_t length, std::byte* memory,
                      TokenVisit* all_visits, int32_t* valid) {
    const int64_t item = blockIdx.x;
    const Tree tree(memory + item * Tree::bytes(1, length), orders + item * length, parents + item * length, 1, length);
    TokenVisit* visits = all_visits + item * length;
    const Link<>* tour = tree.measure();
    const bool fine = *tree.valid && *tree.order == length - 1;
    if (threadIdx.x == 0) valid[item] = fine;
    if (!fine) {
        for_each<BlockGroup>(length, [=](int64_t i) { visits[i] = {static_cast<int32_t>(i), 0, false, true}; });
        return;
    }

    auto size = [=](int64_t i) { return (tour[2 * i].distance - tour[2 * i + 1].distance + 1) / 2; };
    // How many places a token comes after its parent.
    auto distance_to_parent = [=](int32_t p) {
        const int32_t parent = tree.parent_position[p], heavy = tree.heavy_child(parent);
        if (p == heavy) return size(parent) - size(p);
        const int32_t before = (tour[2 * parent].distance - tour[2 * p].distance - 1) / 2;
        return 1 + before - (heavy < p ? size(heavy) : 0);
    };
    Link<>* links = tour == tree.links ? tree.spare : tree.links;
    for_each<BlockGroup>(length, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i);
        links[i] = {tree.parent_position[p], p == 0 ? 0 : distance_to_parent(p)};
    });
    __syncthreads();
    const Link<>* place = rank_lists<BlockGroup>(links, links + length, length, length);
    for_each<BlockGroup>(length, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(i), parent = tree.parent_position[p];
        int16_t row = 0;
        for (int32_t rest = size(parent); rest >= 4; rest /= 2) ++row;
        const bool root = p == 0, first = root || p == tree.heavy_child(parent),
                   last = root || distance_to_parent(p) == 1;
        visits[length - 1 - place[i].distance] = {tree.order[p], row, !first, last};
    });
}

}  // namespace

TokenWalks walk_tokens(const Device& device, Workspace& workspace, const int32_t* order, const int32_t* parent,
                       int64_t batch, int64_t length) {
    auto [memory, visits, valid] =
        workspace.take<std::byte, TokenVisit, int32_t>(batch * Tree::bytes(1, length), batch * length, batch);
    device.launch(token_walk_kernel, batch, GROUP_THREADS, 0, order, parent, length, memory, visits, valid);
    return {visits, valid};
}

}  // namespace grootv
