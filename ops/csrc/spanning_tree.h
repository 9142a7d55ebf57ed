// Minimum spanning trees under the total order (float32 weight, edge index).
#pragma once

#include <bit>
#include <cstdint>

namespace grootv {

// Keys compare as unsigned integers the way the weights compare: -0 equals 0 and NaN follows infinity. No
// weight has the largest key, which stands for "no edge here".
constexpr uint32_t NO_EDGE = 0xFFFFFFFFu;

constexpr uint32_t ordered_key(float weight) {
    uint32_t bits = std::bit_cast<uint32_t>(weight + 0.0f);
    uint32_t key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return weight != weight ? NO_EDGE - 1 : key;
}

// Entries that arrays over the vertices of a grid carry before and after the grid, so that every vertex may look at
// its four neighbours.
constexpr int64_t grid_padding(int32_t width) {
    return int64_t{width} + 1;
}

// The tree of a grid as flags: down[v] joins v to v + width, right[v] joins v to v + 1. Their padding is not touched.
void grid_spanning_tree_cpu(const float* weight, int32_t height, int32_t width, uint8_t* down, uint8_t* right);

}  // namespace grootv
