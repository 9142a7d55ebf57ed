// Scratch memory of one call, from PyTorch's caching allocator; sums of what blocks left in it.
#pragma once

#include <optional>
#include <vector>

#include "checks.h"

namespace grootv {

class Workspace {
public:
    explicit Workspace(const Tensor& like) : like_(like) {}

    template <class Element>
    Element* take(int64_t count) {
        const int64_t bytes = count * static_cast<int64_t>(sizeof(Element));
        taken_.push_back(make_empty(like_, {bytes}, ScalarType::Byte));
        return static_cast<Element*>(taken_.back().mutable_data_ptr());
    }

private:
    Tensor like_;
    std::vector<Tensor> taken_;
};

// The sum over the first dimension, in another dtype if one is given.
inline Tensor sum_parts(const Tensor& parts, std::optional<ScalarType> dtype = {}) {
    const int64_t dim = 0;
    Tensor sum = torch::stable::sum(parts, {{&dim, 1}});
    return sum.scalar_type() == dtype.value_or(sum.scalar_type()) ? sum : torch::stable::to(sum, *dtype);
}

}  // namespace grootv
