// What both ways to order a tree share: the sides on which the vertices of a grid are joined, and reports of invalid
// trees.
#pragma once

#include <array>

#include "cuda/common/device.h"

namespace grootv {

// What is wrong with tree edges: a flag, and the item they belong to.
using Status = std::array<int32_t, 2>;

__device__ inline void report(int32_t* status, int64_t item) {
    atomicExch(status + 1, static_cast<int32_t>(item));
    atomicExch(status, 1);
}

// Sides of a vertex, by the index of the neighbour: above, left, right, below. The opposite of side s is 3 - s.
__device__ inline unsigned joined_sides(const uint8_t* down, const uint8_t* right, int32_t v, int32_t row,
                                        int32_t column, int32_t width) {
    unsigned sides = row > 0 && down[v - width];
    sides |= (column > 0 && right[v - 1] ? 1u : 0u) << 1;
    sides |= (right[v] ? 1u : 0u) << 2;
    return sides | (down[v] ? 1u : 0u) << 3;
}

__device__ inline int32_t neighbour_offset(int side, int32_t width) {
    const int32_t distance = side == 0 || side == 3 ? width : 1;
    return side < 2 ? -distance : distance;
}

}  // namespace grootv
