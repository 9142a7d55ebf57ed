// What CUB does for the kernels, on the host.
#include "cuda/common/primitives.h"

#include <numeric>
#include <vector>

namespace grootv {

template <class Value, class Sum>
void exclusive_sum(const Device&, Workspace&, const Value* values, Sum* sums, int64_t count) {
    std::exclusive_scan(values, values + count, sums, Sum{0});
}
template void exclusive_sum(const Device&, Workspace&, const uint8_t*, int32_t*, int64_t);
template void exclusive_sum(const Device&, Workspace&, const int64_t*, int64_t*, int64_t);

SortedPairs sort_pairs(const Device&, Workspace& workspace, uint64_t* keys, int32_t* values, int64_t count,
                       int key_bits) {
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    auto key = [=](int64_t i) { return keys[i] & (~uint64_t{0} >> (64 - key_bits)); };
    std::stable_sort(order.begin(), order.end(), [=](int64_t a, int64_t b) { return key(a) < key(b); });
    auto* sorted_keys = workspace.take<uint64_t>(count);
    auto* sorted_values = workspace.take<int32_t>(count);
    for (int64_t i = 0; i < count; ++i) {
        sorted_keys[i] = keys[order[i]];
        sorted_values[i] = values[order[i]];
    }
    return {sorted_keys, sorted_values};
}

}  // namespace grootv
