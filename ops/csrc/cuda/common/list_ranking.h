// Ranking of linked lists by pointer jumping.
#pragma once

#include "cuda/common/thread_group.h"

namespace grootv {

// The last element of a list points at itself with distance 0, every other at its successor with distance 1.
template <class Index = int32_t>
struct alignas(2 * sizeof(Index)) Link {
    Index next, distance;
};

// Lengthens every link by four in each round until it spans a list of `longest` elements: then next is the last element
// and distance the number of links to it. Returns the array that holds the result, links or spare, and leaves the group
// synchronised.
template <class Group, class Index>
__device__ Link<Index>* rank_lists(Link<Index>* links, Link<Index>* spare, int64_t count, int64_t longest) {
    constexpr int STEPS = 4;
    for (int64_t span = 1; span < longest; span *= STEPS) {
        for_each<Group>(count, [=](int64_t i) {
            Link<Index> reached = links[i];
            for (int step = 1; step < STEPS; ++step) {
                const Link<Index> further = links[reached.next];
                reached = {further.next, static_cast<Index>(reached.distance + further.distance)};
            }
            spare[i] = reached;
        });
        Group::sync();
        Link<Index>* swapped = links;
        links = spare;
        spare = swapped;
    }
    return links;
}

}  // namespace grootv
