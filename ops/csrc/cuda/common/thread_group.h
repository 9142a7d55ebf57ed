// Thread groups that work through arrays together: the block of one item of a batch, or the whole grid.
#pragma once

#include "cuda/common/device.h"

namespace grootv {

struct BlockGroup {
    static constexpr bool IS_BLOCK = true;
    static __device__ int32_t rank() { return static_cast<int32_t>(threadIdx.x); }
    static __device__ int32_t size() { return static_cast<int32_t>(blockDim.x); }
    static __device__ void sync() { __syncthreads(); }
};

struct GridGroup {
    static constexpr bool IS_BLOCK = false;
    static __device__ int64_t rank() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
    static __device__ int64_t size() { return int64_t{gridDim.x} * blockDim.x; }
    static __device__ void sync() { sync_grid(); }
};

// Calls task(i) for i = 0 ... count - 1; the group has to be synchronised before another thread may use the results.
template <class Group, class Task>
__device__ void for_each(int64_t count, Task task) {
    for (int64_t i = Group::rank(); i < count; i += Group::size()) task(i);
}

// Whether each item of a batch gets a block of its own instead of one grid for all: if it is small enough to be done
// before a grid would have synchronised a few times, or if there are enough items to keep the device busy.
inline bool one_block_each(const Device& device, int64_t items, int64_t vertices) {
    return vertices <= BLOCK_VERTICES || items >= device.processors();
}

// The sum of the values of a warp's lanes up to this one.
__device__ inline int32_t sum_to_lane(int32_t value) {
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int32_t before = __shfl_up_sync(~0u, value, distance);
        if (static_cast<int>(threadIdx.x) % WARP >= distance) value += before;
    }
    return value;
}

// Launches one grid as the group of all items, which have `count` elements together.
template <class Kernel, class... Args>
void launch_grid_group(const Device& device, Kernel kernel, int64_t count, Args... args) {
    const int64_t blocks = device.resident_blocks(kernel, count, GROUP_THREADS, 0);
    device.launch_cooperative(kernel, blocks, GROUP_THREADS, 0, args...);
}

inline dim3 blocks_for(int64_t count) {
    constexpr int64_t MOST = int64_t{1} << 30;
    return dim3(static_cast<unsigned>(std::clamp<int64_t>((count + ELEMENT_THREADS - 1) / ELEMENT_THREADS, 1, MOST)));
}

// Flags that any thread of the group raises and all read after the next sync. Each is used once.
class Flags {
public:
    static constexpr int COUNT = 1024;

    __device__ explicit Flags(int32_t* flags) : next_(flags) {}

    template <class Group>
    __device__ void clear() const {
        for_each<Group>(COUNT, [this](int64_t i) { next_[i] = 0; });
    }

    __device__ void raise() const { store_relaxed(next_, 1); }
    __device__ bool take() { return *next_++ != 0; }

private:
    int32_t* next_;
};

}  // namespace grootv
