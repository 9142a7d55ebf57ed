// The part of torch's stable C++ interface that the CPU kernels use, on ONNX Runtime's memory and threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <torch/headeronly/core/ScalarType.h>

#include "onnxruntime/interface.h"

namespace torch::stable {

using headeronly::ScalarType;

// A contiguous array in main memory. Copies share it; it belongs to ONNX Runtime, or to `owner`.
class Tensor {
public:
    Tensor() = default;
    Tensor(void* data, ScalarType dtype, std::vector<int64_t> sizes, std::shared_ptr<void> owner = nullptr)
        : data_(data), dtype_(dtype), sizes_(std::move(sizes)), owner_(std::move(owner)) {}

    ScalarType scalar_type() const { return dtype_; }
    int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
    const std::vector<int64_t>& sizes() const { return sizes_; }
    int64_t size(int64_t dim) const { return sizes_[dim]; }
    int64_t numel() const {
        int64_t count = 1;
        for (int64_t size : sizes_) count *= size;
        return count;
    }
    int64_t element_size() const { return 4; }  // float32 and int32 are all there is

    bool is_contiguous() const { return true; }
    bool is_cpu() const { return true; }
    bool is_cuda() const { return false; }
    int32_t get_device_index() const { return -1; }

    template <class T>
    const T* const_data_ptr() const {
        return static_cast<const T*>(data_);
    }
    template <class T>
    T* mutable_data_ptr() const {
        return static_cast<T*>(data_);
    }
    void* mutable_data_ptr() const { return data_; }

private:
    void* data_ = nullptr;
    ScalarType dtype_ = ScalarType::Undefined;
    std::vector<int64_t> sizes_;
    std::shared_ptr<void> owner_;
};

}  // namespace torch::stable

namespace grootv::onnxruntime {

using torch::stable::ScalarType;
using torch::stable::Tensor;

// A failure that ONNX Runtime itself reported, on its way back to it.
struct Failure {
    OrtStatus* status;
};

inline void require(OrtStatus* status) {
    if (status) throw Failure{status};
}

// One call of an operator: ONNX Runtime's inputs as tensors, its memory for results, its threads.
class Call {
public:
    Call(const OrtApi& api, OrtKernelContext* context, size_t outputs) : api_(api), context_(context), count_(outputs) {
        current_ = this;
    }
    ~Call() { current_ = nullptr; }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // The call that this thread is in.
    static Call& current() { return *current_; }

    // Input `index`; none where an optional one is left out.
    std::optional<Tensor> input(size_t index, ElementType type) const;

    // Memory for the next result.
    Tensor next_output(std::vector<int64_t> sizes, ScalarType dtype);

    // Throws unless `result` is the memory of output `index`.
    void check_output(size_t index, const Tensor& result) const;

    void parallel_for(int64_t count, void (*step)(void* data, size_t index), void* data) const {
        require(api_.KernelContext_ParallelFor(context_, step, static_cast<size_t>(count), 0, data));
    }

private:
    static thread_local Call* current_;

    const OrtApi& api_;
    OrtKernelContext* context_;
    size_t count_;
    std::vector<void*> outputs_;
};

}  // namespace grootv::onnxruntime

namespace torch::stable {

// Operators allocate their results before anything else by this function, and in their order.
inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> sizes,
                        std::optional<ScalarType> dtype = std::nullopt) {
    return grootv::onnxruntime::Call::current().next_output(sizes, dtype.value_or(like.scalar_type()));
}

inline Tensor new_zeros(const Tensor& like, std::initializer_list<int64_t> sizes,
                        std::optional<ScalarType> dtype = std::nullopt) {
    int64_t count = 1;
    for (int64_t size : sizes) count *= size;
    std::shared_ptr<float[]> zeros(new float[count]{});
    return Tensor(zeros.get(), dtype.value_or(like.scalar_type()), sizes, zeros);
}

// Never called: every tensor is contiguous and has the type that its operator declares.
inline Tensor contiguous(const Tensor& tensor) {
    return tensor;
}
inline Tensor to(const Tensor& tensor, ScalarType) {
    return tensor;
}

// ONNX Runtime does not report how many threads a session has.
inline int64_t get_num_threads() {
    static const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
    return threads;
}

template <class Task>
void parallel_for(int64_t begin, int64_t end, int64_t, const Task& task) {
    struct Loop {
        const Task& task;
        int64_t begin;
    } loop{task, begin};
    auto step = [](void* data, size_t index) {
        const Loop& loop = *static_cast<const Loop*>(data);
        const int64_t i = loop.begin + static_cast<int64_t>(index);
        loop.task(i, i + 1);
    };
    if (end > begin) grootv::onnxruntime::Call::current().parallel_for(end - begin, step, &loop);
}

}  // namespace torch::stable
