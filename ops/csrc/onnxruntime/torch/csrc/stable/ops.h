// What the CPU kernels call of torch::stable, by ONNX Runtime's memory and threads.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <optional>
#include <thread>

#include "call.h"
#include "torch/csrc/stable/tensor.h"

namespace torch::stable {

// Operators allocate their results before anything else by this function, and in their order.
inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> sizes,
                        std::optional<ScalarType> dtype = std::nullopt) {
    return grootv::onnxruntime::Call::current().next_output(sizes, dtype.value_or(like.scalar_type()));
}

inline Tensor new_zeros(const Tensor& like, std::initializer_list<int64_t> sizes) {
    int64_t count = 1;
    for (int64_t size : sizes) count *= size;
    std::shared_ptr<float[]> zeros(new float[count]{});
    return Tensor(zeros.get(), like.scalar_type(), sizes, zeros);
}

// Never called: every tensor is contiguous and has the type that its operator declares.
inline Tensor contiguous(const Tensor& tensor) {
    return tensor;
}
inline Tensor to(const Tensor& tensor, ScalarType) {
    return tensor;
}

// ONNX Runtime does not tell how many threads a session has.
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
