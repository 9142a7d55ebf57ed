// Scratch memory of one call, from PyTorch's caching allocator.
#pragma once

#include <vector>

#include <torch/csrc/stable/ops.h>

#include "checks.h"

namespace grootv {

class Workspace {
public:
    explicit Workspace(const Tensor& like) : like_(like) {}

    template <class T>
    T* take(int64_t count) {
        taken_.push_back(torch::stable::new_empty(like_, {count * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte));
        return static_cast<T*>(taken_.back().mutable_data_ptr());
    }

private:
    Tensor like_;
    std::vector<Tensor> taken_;
};

}  // namespace grootv
