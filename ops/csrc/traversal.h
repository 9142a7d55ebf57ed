// Breadth-first order of a rooted tree.
#pragma once

#include <cstdint>

namespace grootv {

// order, parent: (vertices); level_ptr: (vertices + 1), padded with the number of vertices.
struct TreePointers {
    int32_t* order;
    int32_t* parent;
    int32_t* level_ptr;
};

// Flags as in spanning_tree.h, with zeros in their padding. False if they are not a spanning tree of the grid.
bool grid_breadth_first_order_cpu(const uint8_t* down, const uint8_t* right, int32_t height, int32_t width,
                                  int32_t root, TreePointers tree);

}  // namespace grootv
