// Loops over the items of a batch.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>

#include "checks.h"

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

}  // namespace grootv
