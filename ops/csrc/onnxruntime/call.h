// One call of an operator: ONNX Runtime's inputs as tensors, its memory for results, its threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "interface.h"
#include "torch/csrc/stable/tensor.h"

namespace grootv::onnxruntime {

// A failure that ONNX Runtime itself reported, on its way back to it.
struct Failure {
    OrtStatus* status;
};

inline void require(OrtStatus* status) {
    if (status) throw Failure{status};
}

class Call {
public:
    using Tensor = torch::stable::Tensor;
    using ScalarType = torch::headeronly::ScalarType;

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

    // Memory for the next result, or for a tensor between once there are all.
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
