// Fresh large results are mapped page by page as they are written, which can cost more than the scan itself;
// huge pages make that cheap.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace grootv {

inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
    constexpr uintptr_t PAGE = uintptr_t{1} << 21;
    uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) & ~(PAGE - 1);
    uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(PAGE - 1);
    if (end > begin + 4 * PAGE) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace grootv
