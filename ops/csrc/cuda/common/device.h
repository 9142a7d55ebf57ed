// What kernels and their launches are written in: CUDA or, in the tests, its emulation on the host.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "checks.h"

namespace grootv {

// Kernels count the vertices and arcs of a whole batch in int32.
inline void check_batch(const char* function, int64_t batch, int64_t vertices) {
    check(batch <= (int64_t{1} << 29) / vertices, function,
          ": a batch on a CUDA device must have at most 2^29 vertices, got ", batch, " x ", vertices);
}

}  // namespace grootv

#ifdef GROOTV_EMULATED

#include "emulation.h"

#else

#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#define GROOTV_BACKEND CUDA

namespace grootv {

constexpr int WARP = 32;
constexpr int64_t BLOCK_VERTICES = 4096;
// Threads of a block: in thread groups, in scans, and in launches with a thread per element.
constexpr int GROUP_THREADS = 1024, SCAN_THREADS = 512, ELEMENT_THREADS = 256;

// Dynamic shared memory of the block, 16-byte aligned.
__device__ inline std::byte* shared_memory() {
    extern __shared__ __align__(16) std::byte memory[];
    return memory;
}

// A store that other threads may repeat, and read after the next barrier.
__device__ inline void store_relaxed(int32_t* address, int32_t value) {
    *static_cast<volatile int32_t*>(address) = value;
}

// What is read or written a single time leaves the caches to the rest. 8 or 16 bytes.
template <class Element>
__device__ Element load_once(const Element* address) {
    using Bits = std::conditional_t<sizeof(Element) == sizeof(uint4), uint4, uint2>;
    static_assert(sizeof(Element) == sizeof(Bits));
    const Bits bits = __ldcs(reinterpret_cast<const Bits*>(address));
    return *reinterpret_cast<const Element*>(&bits);
}
template <class Element>
__device__ void store_once(Element* address, const Element& value) {
    using Bits = std::conditional_t<sizeof(Element) == sizeof(uint4), uint4, uint2>;
    static_assert(sizeof(Element) == sizeof(Bits));
    __stcs(reinterpret_cast<Bits*>(address), *reinterpret_cast<const Bits*>(&value));
}

__device__ inline void sync_grid() {
    cooperative_groups::this_grid().sync();
}

// The device and stream that the operators of one call run on.
class Device {
public:
    Device(const char* function, const Tensor& tensor)
        : function_(function), index_(tensor.get_device_index()), guard_(index_) {
        void* stream = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
        stream_ = static_cast<cudaStream_t>(stream);
    }

    cudaStream_t stream() const { return stream_; }
    void check_call(cudaError_t status) const {
        if (status != cudaSuccess) cudaGetLastError();  // so that later calls do not see it again
        check(status == cudaSuccess, function_, ": CUDA reports ", cudaGetErrorString(status));
    }
    int processors() const { return attribute(cudaDevAttrMultiProcessorCount); }
    int64_t shared_bytes() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

    template <class... Parameters, class... Args>
    void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int64_t shared_bytes, Args... args) const {
        start(false, kernel, blocks, threads, shared_bytes, static_cast<Parameters>(args)...);
    }

    // How many blocks to start where all have to be resident, for `work` threads if possible.
    template <class... Parameters>
    int64_t resident_blocks(void (*kernel)(Parameters...), int64_t work, int threads, int64_t shared_bytes) const {
        prepare(kernel, shared_bytes);
        int resident = 0;
        check_call(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared_bytes));
        const int64_t most = std::max<int64_t>(1, int64_t{resident} * processors());
        return std::clamp<int64_t>((work + threads - 1) / threads, 1, most);
    }

    // For kernels that call sync_grid.
    template <class... Parameters, class... Args>
    void launch_cooperative(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes,
                            Args... args) const {
        start(true, kernel, blocks, threads, shared_bytes, static_cast<Parameters>(args)...);
    }

    // Copies a few values to the host and waits for them. False while a CUDA graph is captured, which cannot wait.
    bool read(const int32_t* from, int count, int32_t* to) const {
        cudaStreamCaptureStatus capture;
        check_call(cudaStreamIsCapturing(stream_, &capture));
        if (capture != cudaStreamCaptureStatusNone) return false;
        check_call(cudaMemcpyAsync(to, from, count * sizeof(int32_t), cudaMemcpyDeviceToHost, stream_));
        check_call(cudaStreamSynchronize(stream_));
        return true;
    }

private:
    int attribute(cudaDeviceAttr name) const {
        int value = 0;
        check_call(cudaDeviceGetAttribute(&value, name, index_));
        return value;
    }

    template <class Kernel>
    void prepare(Kernel* kernel, int64_t shared_bytes) const {
        constexpr int64_t ALWAYS_ALLOWED = 48 << 10;
        if (shared_bytes <= ALWAYS_ALLOWED) return;
        // The same in every call, because the threads of the host share it.
        const auto most = static_cast<int>(this->shared_bytes());
        check_call(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    }

    template <class... Parameters>
    void start(bool cooperative, void (*kernel)(Parameters...), dim3 blocks, int threads, int64_t shared_bytes,
               Parameters... parameters) const {
        prepare(kernel, shared_bytes);
        const void* address = reinterpret_cast<const void*>(kernel);
        void* addresses[] = {&parameters...};
        check_call(cooperative ? cudaLaunchCooperativeKernel(address, blocks, threads, addresses, shared_bytes, stream_)
                               : cudaLaunchKernel(address, blocks, threads, addresses, shared_bytes, stream_));
    }

    const char* function_;
    int index_;
    torch::stable::accelerator::DeviceGuard guard_;
    cudaStream_t stream_;
};

}  // namespace grootv

#endif
