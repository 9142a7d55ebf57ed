// Device-wide prefix sum and sort: CUB's, with scratch memory from the workspace.
#pragma once

#include "cuda/common/device.h"
#include "cuda/common/workspace.h"

namespace grootv {

// sums[i] = values[0] + ... + values[i - 1]. Values of uint8_t have sums of int32_t, values of int64_t of int64_t.
template <class Value, class Sum>
void exclusive_sum(const Device& device, Workspace& workspace, const Value* values, Sum* sums, int64_t count);

// Sorts values by keys below 2^key_bits, equal keys in the given order. Keys and values are used up.
struct SortedPairs {
    const uint64_t* keys;
    const int32_t* values;
};
SortedPairs sort_pairs(const Device& device, Workspace& workspace, uint64_t* keys, int32_t* values, int64_t count,
                       int key_bits);

}  // namespace grootv
