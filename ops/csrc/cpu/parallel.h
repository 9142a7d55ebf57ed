// Loops over tasks, and sums of the parts that they leave.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>

#include "checks.h"
#include "cpu/workspace.h"

namespace grootv {

// Calls task(i) for i = 0 ... count - 1, in parallel. An exception must not cross torch's C interface; running out
// of memory is the only one that a task throws, and is reported at the end.
template <class Task>
void parallel_for_each(const char* function, int64_t count, const Task& task) {
    std::atomic<bool> exhausted{false};
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        try {
            for (int64_t i = begin; i < end; ++i) task(i);
        } catch (const std::bad_alloc&) {
            exhausted = true;
        }
    });
    check(!exhausted, function, ": out of memory");
}

// to[k] = parts[k] + parts[stride + k] + ..., of `count` parts: the same for any number of threads.
template <class total_t, class acc_t, class scalar_t>
void add_parts(const acc_t* parts, int64_t count, int64_t stride, int64_t size, scalar_t* to) {
    Workspace workspace;
    auto* total = workspace.take<total_t>(size);
    std::fill_n(total, size, total_t{0});
    for (int64_t i = 0; i < count; ++i, parts += stride)
        for (int64_t k = 0; k < size; ++k) total[k] += parts[k];
    for (int64_t k = 0; k < size; ++k) to[k] = static_cast<scalar_t>(total[k]);
}

}  // namespace grootv
