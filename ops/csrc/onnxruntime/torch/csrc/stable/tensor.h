// What the CPU kernels use of torch::stable::Tensor, for tensors of ONNX Runtime. This folder comes before torch's own
// headers in the search path, so that the kernels are compiled as they are, without torch.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <torch/headeronly/core/ScalarType.h>

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
