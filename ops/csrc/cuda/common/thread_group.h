// Threads that work through arrays together: the block of one item of a batch, or the whole grid.
#pragma once

#include "cuda/common/device.h"

namespace grootv {

struct BlockTeam {
    static constexpr bool IS_BLOCK = true;
    static __device__ int32_t rank() { return static_cast<int32_t>(threadIdx.x); }
    static __device__ int32_t size() { return static_cast<int32_t>(blockDim.x); }
    static __device__ void sync() { __syncthreads(); }
};

struct GridTeam {
    static constexpr bool IS_BLOCK = false;
    static __device__ int64_t rank() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
    static __device__ int64_t size() { return int64_t{gridDim.x} * blockDim.x; }
    static __device__ void sync() { sync_grid(); }
};

// Calls task(i) for i = 0 ... count - 1; the team has to be synchronised before another thread may use the results.
template <class Team, class Task>
__device__ void for_each(int64_t count, Task task) {
    for (int64_t i = Team::rank(); i < count; i += Team::size()) task(i);
}

// Whether each item of a batch gets a block of its own, rather than the grid all of them together: if it is small
// enough to be done before a grid would have met a few times, or if the items alone keep the device busy.
inline bool one_block_each(const Device& device, int64_t items, int64_t vertices) {
    return vertices <= BLOCK_VERTICES || items >= device.processors();
}

// The sum of the values of a warp's lanes up to one's own.
__device__ inline int32_t sum_to_lane(int32_t value) {
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int32_t before = __shfl_up_sync(~0u, value, distance);
        if (static_cast<int>(threadIdx.x) % WARP >= distance) value += before;
    }
    return value;
}

// One grid as the team of all items, of which there are `count` elements in all.
template <class Kernel, class... Arguments>
void launch_grid_team(const Device& device, Kernel kernel, int64_t count, Arguments... arguments) {
    const int64_t blocks = device.resident_blocks(kernel, count, TEAM_THREADS, 0);
    device.launch_cooperative(kernel, blocks, TEAM_THREADS, 0, arguments...);
}

inline dim3 blocks_for(int64_t count) {
    constexpr int64_t MOST = int64_t{1} << 30;
    return dim3(static_cast<unsigned>(std::clamp<int64_t>((count + ITEM_THREADS - 1) / ITEM_THREADS, 1, MOST)));
}

// Flags that any thread of the team raises and all read after the next sync. Each is used once.
class Flags {
public:
    static constexpr int COUNT = 1024;

    __device__ explicit Flags(int32_t* flags) : next_(flags) {}

    template <class Team>
    __device__ void clear() const {
        for_each<Team>(COUNT, [this](int64_t i) { next_[i] = 0; });
    }

    __device__ void raise() const { store_relaxed(next_, 1); }
    __device__ bool take() { return *next_++ != 0; }

private:
    int32_t* next_;
};

}  // namespace grootv
