// The part of CUDA that the kernels use, as host code, so that they run, and can be debugged, without a GPU.
//
// The sources in ops/csrc/cuda are compiled as they are; device.h includes this file in place of CUDA's headers, and
// the operators take CPU tensors. Every CUDA thread is a fiber: a function call with a stack of its own that runs until
// it waits at a barrier or in a shuffle, then the next one runs (emulation.cpp). A launch runs a few blocks at a time,
// or all together if they may wait for each other. All of it is one thread of the host, so order and results are the
// same in every run. A barrier that only some of its threads reach ends the launch with an error.
#pragma once

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "checks.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define GROOTV_BACKEND CPU

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct float4 {
    float x, y, z, w;
};

namespace grootv {

constexpr int WARP = 32;
#ifdef GROOTV_FULL_SIZE
constexpr int64_t BLOCK_VERTICES = 4096, SHARED_BYTES = 227 << 10;
constexpr int GROUP_THREADS = 1024, SCAN_THREADS = 512, ELEMENT_THREADS = 256;
#else  // so small that small inputs run every variant
constexpr int64_t BLOCK_VERTICES = 64, SHARED_BYTES = 99 << 10;
constexpr int GROUP_THREADS = 64, SCAN_THREADS = 64, ELEMENT_THREADS = 64;
#endif

namespace emulation {

struct Thread {
    dim3 thread_index, block_index, block_size, grid_size;
    std::byte* shared_memory;
    std::byte* warp_buffer;  // eight bytes a lane
};

enum class Barrier { warp, block, grid };

const Thread& thread();
void wait(Barrier barrier);
void run(const char* function, dim3 blocks, int threads, int64_t shared_bytes, bool cooperative,
         const std::function<void()>& kernel);

template <class T>
T shuffle(T value, int lane, int source) {
    static_assert(sizeof(T) <= 8);
    std::byte* buffer = thread().warp_buffer;
    std::memcpy(buffer + 8 * lane, &value, sizeof value);
    wait(Barrier::warp);
    std::memcpy(&value, buffer + 8 * (source >= 0 && source < WARP ? source : lane), sizeof value);
    wait(Barrier::warp);
    return value;
}

// The environment variable sets the shared memory of a smaller device.
inline int64_t shared_bytes() {
    const char* bytes = std::getenv("GROOTV_SHARED_BYTES");
    return bytes ? std::atoll(bytes) : SHARED_BYTES;
}

inline int lane() {
    return static_cast<int>(thread().thread_index.x) % WARP;
}

inline unsigned ballot(bool value) {
    std::byte* buffer = thread().warp_buffer;
    buffer[8 * lane()] = static_cast<std::byte>(value);
    wait(Barrier::warp);
    unsigned found = 0;
    for (int i = 0; i < WARP; ++i) found |= static_cast<unsigned>(buffer[8 * i]) << i;
    wait(Barrier::warp);
    return found;
}

}  // namespace emulation
}  // namespace grootv

#define threadIdx (::grootv::emulation::thread().thread_index)
#define blockIdx (::grootv::emulation::thread().block_index)
#define blockDim (::grootv::emulation::thread().block_size)
#define gridDim (::grootv::emulation::thread().grid_size)

inline void __syncthreads() {
    grootv::emulation::wait(grootv::emulation::Barrier::block);
}
inline void __syncwarp() {
    grootv::emulation::wait(grootv::emulation::Barrier::warp);
}
template <class T>
T __shfl_sync(unsigned, T value, int source) {
    return grootv::emulation::shuffle(value, grootv::emulation::lane(), source);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    int lane = grootv::emulation::lane();
    return grootv::emulation::shuffle(value, lane, lane ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
    int lane = grootv::emulation::lane();
    return grootv::emulation::shuffle(value, lane, lane - delta);
}
inline unsigned __ballot_sync(unsigned, bool value) {
    return grootv::emulation::ballot(value);
}
inline bool __any_sync(unsigned, bool value) {
    return grootv::emulation::ballot(value) != 0;
}
inline int __ffs(int bits) {
    return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1;
}
inline float __fdividef(float dividend, float divisor) {
    return dividend / divisor;
}
inline int __popc(unsigned bits) {
    return std::popcount(bits);
}

template <class T>
T atomicMin(T* address, T value) {
    T found = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value < found &&
           !__atomic_compare_exchange_n(address, &found, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return found;
}
template <class T>
T atomicMax(T* address, T value) {
    T found = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value > found &&
           !__atomic_compare_exchange_n(address, &found, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return found;
}
template <class T>
T atomicAdd(T* address, T value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicExch(T* address, T value) {
    return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}

namespace grootv {

inline std::byte* shared_memory() {
    return emulation::thread().shared_memory;
}

inline void sync_grid() {
    emulation::wait(emulation::Barrier::grid);
}

inline void store_relaxed(int32_t* address, int32_t value) {
    __atomic_store_n(address, value, __ATOMIC_RELAXED);
}

template <class Element>
Element load_once(const Element* address) {
    return *address;
}
template <class Element>
void store_once(Element* address, const Element& value) {
    *address = value;
}

class Device {
public:
    Device(const char* function, const Tensor&) : function_(function) {}

    int processors() const { return 5; }
    int64_t shared_bytes() const { return emulation::shared_bytes(); }

    template <class... Parameters, class... Args>
    void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int64_t shared_bytes, Args... args) const {
        emulation::run(function_, blocks, threads, shared_bytes, false, [=] { kernel(args...); });
    }

    template <class... Parameters>
    int64_t resident_blocks(void (*)(Parameters...), int64_t work, int threads, int64_t) const {
        return std::clamp<int64_t>((work + threads - 1) / threads, 1, processors());
    }

    template <class... Parameters, class... Args>
    void launch_cooperative(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
                            Args... args) const {
        check(blocks <= processors(), function_, ": ", blocks, " blocks that wait for each other cannot all run");
        emulation::run(function_, static_cast<unsigned>(blocks), threads, shared_bytes, true, [=] { kernel(args...); });
    }

    // The environment variables act as the capture of a CUDA graph, and as a caller who must not wait.
    bool read(const int32_t* from, int count, int32_t* to) const {
        check(!std::getenv("GROOTV_NO_WAIT"), function_, ": the device is waited for");
        if (std::getenv("GROOTV_CAPTURE")) return false;
        std::copy_n(from, count, to);
        return true;
    }

private:
    const char* function_;
};

}  // namespace grootv
