// The tree scan: h = sum over j of P(i, j) u_j by one pass to the root and one back.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace grootv {

struct TreeSchedule {
    const int32_t* order;            // vertex at each position
    const int32_t* parent_position;  // position of the parent; the root, at position 0, is its own
    int64_t vertices;

    // How many successive totals must be kept so that children find their parent's: a power of two above the
    // greatest distance of a vertex from its parent.
    int64_t window_size() const {
        int64_t distance = 0;
        for (int64_t p = 0; p < vertices; ++p) distance = std::max(distance, p - parent_position[p]);
        return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(distance + 1)));
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
