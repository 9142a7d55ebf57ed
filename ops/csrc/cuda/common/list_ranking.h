// Ranking of linked lists by pointer jumping.
#pragma once

#include "cuda/common/thread_group.h"

namespace grootv {

// The last element of a list points at itself with distance 0, every other at its successor with distance 1.
struct alignas(8) Link {
    int32_t next, distance;
};

// Lengthens every link by four in each round until it spans a list of `longest` elements: then next is the last element
// and distance the number of links to it. The elements are named first ... first + count - 1. Returns the array that
// holds the result, links or spare, and leaves the group synchronised.
template <class Group>
__device__ Link* rank_lists(Link* links, Link* spare, int64_t first, int64_t count, int64_t longest) {
    constexpr int STEPS = 4;
    for (int64_t span = 1; span < longest; span *= STEPS) {
        for_each<Group>(count, [=](int64_t i) {
            Link reached = links[i];
            for (int step = 1; step < STEPS; ++step) {
                const Link further = links[reached.next - first];
                reached = {further.next, reached.distance + further.distance};
            }
            spare[i] = reached;
        });
        Group::sync();
        Link* swapped = links;
        links = spare;
        spare = swapped;
    }
    return links;
}

}  // namespace grootv
