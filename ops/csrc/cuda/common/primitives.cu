#include "cuda/common/primitives.h"

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

namespace grootv {
namespace {

// CUB's functions are called twice: for the size of their scratch memory, and with it.
template <class Call>
void with_scratch(const Device& device, Workspace& workspace, Call call) {
    size_t bytes = 0;
    device.check_call(call(nullptr, bytes));
    device.check_call(call(workspace.take<std::byte>(static_cast<int64_t>(bytes)), bytes));
}

}  // namespace

template <class Value, class Sum>
void exclusive_sum(const Device& device, Workspace& workspace, const Value* values, Sum* sums, int64_t count) {
    with_scratch(device, workspace, [&](void* scratch, size_t& bytes) {
        return cub::DeviceScan::ExclusiveScan(scratch, bytes, values, sums, cuda::std::plus<Sum>{}, Sum{0}, count,
                                              device.stream());
    });
}

template void exclusive_sum(const Device&, Workspace&, const uint8_t*, int32_t*, int64_t);
template void exclusive_sum(const Device&, Workspace&, const int64_t*, int64_t*, int64_t);

SortedPairs sort_pairs(const Device& device, Workspace& workspace, uint64_t* keys, int32_t* values, int64_t count,
                       int key_bits) {
    auto [other_keys, other_values] = workspace.take<uint64_t, int32_t>(count, count);
    cub::DoubleBuffer<uint64_t> key(keys, other_keys);
    cub::DoubleBuffer<int32_t> value(values, other_values);
    with_scratch(device, workspace, [&](void* scratch, size_t& bytes) {
        return cub::DeviceRadixSort::SortPairs(scratch, bytes, key, value, count, 0, key_bits, device.stream());
    });
    return {key.Current(), value.Current()};
}

}  // namespace grootv
