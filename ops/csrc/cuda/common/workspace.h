// Scratch memory of one call, from PyTorch's caching allocator; sums of what blocks left in it.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"

namespace grootv {

class Workspace {
public:
    explicit Workspace(const Tensor& like) : like_(like) {}

    // An array of so many elements; of several types a tuple of arrays, in one allocation.
    template <class... Elements, class... Counts>
    auto take(Counts... counts) {
        static_assert(sizeof...(Elements) == sizeof...(Counts));
        auto bytes = [](int64_t size, int64_t count) { return (size * count + 15) / 16 * 16; };
        taken_.push_back(make_empty(like_, {(... + bytes(sizeof(Elements), counts))}, ScalarType::Byte));
        auto* next = static_cast<std::byte*>(taken_.back().mutable_data_ptr());
        auto place = [&](int64_t size, int64_t count) {
            std::byte* placed = next;
            next += bytes(size, count);
            return placed;
        };
        std::tuple<Elements*...> arrays{reinterpret_cast<Elements*>(place(sizeof(Elements), counts))...};
        if constexpr (sizeof...(Elements) == 1)
            return std::get<0>(arrays);
        else
            return arrays;
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
