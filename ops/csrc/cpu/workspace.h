// Memory for kernels: a thread keeps its scratch memory between calls, because fresh pages would cost a small tree more
// than its work; huge pages make large results cheap.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "checks.h"

namespace grootv {

// Hands out uninitialised arrays that live as long as the Workspace. Workspaces nest like the scopes they are in.
class Workspace {
public:
    Workspace() : pool_(thread_pool()), block_(pool_.block), used_(pool_.used) {}

    ~Workspace() {
        pool_.block = block_;
        pool_.used = used_;
        bool outermost = block_ == 0 && used_ == 0;
        if (outermost && pool_.size() > KEPT) pool_.blocks.clear();
    }

    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    template <class T>
    T* take(int64_t count) {
        return static_cast<T*>(pool_.take(count * sizeof(T)));
    }

private:
    static constexpr size_t ALIGNMENT = 64, SMALLEST = size_t{1} << 18, KEPT = size_t{16} << 20;

    struct Block {
        explicit Block(size_t size)
            : memory(std::make_unique_for_overwrite<std::byte[]>(size + ALIGNMENT)), size(size) {}

        std::byte* first() const {
            auto address = reinterpret_cast<uintptr_t>(memory.get());
            return memory.get() + (ALIGNMENT - address % ALIGNMENT) % ALIGNMENT;
        }

        std::unique_ptr<std::byte[]> memory;
        size_t size;
    };

    // Blocks before the current one are full, those after it are free.
    struct Pool {
        void* take(size_t bytes) {
            bytes = std::max(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
            while (block < blocks.size() && used + bytes > blocks[block].size) {
                ++block;
                used = 0;
            }
            if (block == blocks.size()) blocks.emplace_back(std::max(bytes, SMALLEST));
            used += bytes;
            return blocks[block].first() + used - bytes;
        }

        size_t size() const {
            size_t sum = 0;
            for (const Block& each : blocks) sum += each.size;
            return sum;
        }

        std::vector<Block> blocks;
        size_t block = 0, used = 0;
    };

    static Pool& thread_pool() {
        thread_local Pool pool;
        return pool;
    }

    Pool& pool_;
    size_t block_, used_;
};

// Fresh large arrays are mapped page by page as they are written, which can cost more than the scan itself.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
    constexpr uintptr_t PAGE = uintptr_t{1} << 21;
    uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) & ~(PAGE - 1);
    uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(PAGE - 1);
    if (end > begin + 4 * PAGE) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// A result of the shape (B, L, C) and dtype of `like`.
inline Tensor empty_map(const Tensor& like) {
    Tensor map = make_empty(like, {like.size(0), like.size(1), like.size(2)});
    advise_huge_pages(map.mutable_data_ptr(), map.numel() * map.element_size());
    return map;
}

}  // namespace grootv
