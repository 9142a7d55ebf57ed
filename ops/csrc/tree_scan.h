// The tree scan: h = sum over j of P(i, j) u_j by one pass to the root and one back.
#pragma once

#include <cstdint>

namespace grootv {

struct TreeSchedule {
    const int32_t* order;            // vertex at each position
    const int32_t* parent_position;  // position of the parent; the root, at position 0, is its own
    int64_t vertices;

    // Positions between a vertex and its parent, at most: how long a total must be kept for the children.
    int64_t window_size() const {
        int64_t size = 1;
        for (int64_t p = 0; p < vertices; ++p)
            size = p - parent_position[p] >= size ? p - parent_position[p] + 1 : size;
        return size;
    }
};

// Sums are kept wider than 16-bit signals.
template <class T>
struct Accumulator {
    using type = float;
};
template <>
struct Accumulator<double> {
    using type = double;
};

}  // namespace grootv
