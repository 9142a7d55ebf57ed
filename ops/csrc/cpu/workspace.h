// Scratch memory that a thread keeps between calls: fresh pages would cost a small tree more than its work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace grootv {

// Hands out uninitialised arrays that live until the outermost Workspace of the thread ends.
class Workspace {
public:
    Workspace() : pool_(thread_pool()) { ++pool_.users; }

    ~Workspace() {
        if (--pool_.users == 0) pool_.recycle();
    }

    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    template <class T>
    T* take(int64_t count) {
        return static_cast<T*>(pool_.take(count * sizeof(T)));
    }

private:
    struct Pool {
        static constexpr size_t ALIGNMENT = 64, KEPT = size_t{8} << 20;

        void* take(size_t bytes) {
            bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            if (blocks.empty() || used + bytes > size) {
                size = bytes;
                used = 0;
                blocks.push_back(std::make_unique_for_overwrite<std::byte[]>(size + ALIGNMENT));
            }
            auto address = reinterpret_cast<uintptr_t>(blocks.back().get());
            void* array = reinterpret_cast<void*>((address + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + used);
            used += bytes;
            total += bytes;
            return array;
        }

        // One block as large as everything taken, unless that is too much to keep.
        void recycle() {
            if (blocks.size() > 1 || total > KEPT) {
                blocks.clear();
                size = 0;
                if (total <= KEPT) {
                    size = total;
                    blocks.push_back(std::make_unique_for_overwrite<std::byte[]>(size + ALIGNMENT));
                }
            }
            used = total = 0;
        }

        std::vector<std::unique_ptr<std::byte[]>> blocks;
        size_t size = 0, used = 0, total = 0;
        int users = 0;
    };

    static Pool& thread_pool() {
        thread_local Pool pool;
        return pool;
    }

    Pool& pool_;
};

}  // namespace grootv
