// The scheduler behind emulation.h: run() starts the fibers of a launch, wait() switches to the next one at a barrier.
// Sanitizers do not instrument it; it reports every fiber and barrier to them instead. The thread sanitizer sees the
// fibers as threads that only their barriers order.
#include "emulation.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <vector>

#ifdef GROOTV_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef GROOTV_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

namespace grootv::emulation {
namespace {

// Without a sanitizer there is nothing to report.
#ifndef GROOTV_ADDRESS_SANITIZER
void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif
#ifndef GROOTV_THREAD_SANITIZER
constexpr unsigned __tsan_switch_to_fiber_no_sync = 1;
void __tsan_acquire(void*) {}
void __tsan_release(void*) {}
void __tsan_switch_to_fiber(void*, unsigned) {}
constexpr std::nullptr_t __tsan_create_fiber(unsigned) {
    return {};
}
constexpr std::nullptr_t __tsan_get_current_fiber() {
    return {};
}
#endif

constexpr size_t STACK_BYTES = size_t{256} << 10;
constexpr int64_t BLOCKS_AT_ONCE = 4;

enum class State { ready, waiting, done };

struct Fiber {
    Thread thread;
    std::byte* stack;
    ucontext_t context;  // where it starts
    void* place[5];      // where it continues
    bool started = false;
    State state = State::done;
    Barrier barrier{};
    void* sanitizer_fiber = nullptr;
    void* fake_stack = nullptr;
};

struct Launch {
    const char* function;
    const std::function<void()>* kernel;
    void* host[5];
    Fiber* current = nullptr;
    void* host_sanitizer_fiber = nullptr;
    void* host_fake_stack = nullptr;
    const void* host_stack = nullptr;
    size_t host_stack_bytes = 0;
    char begin, end, grid;  // their addresses name the order of events to the thread sanitizer
};

Launch* launch = nullptr;

// A jump, apart from the place it returns to as the compiler wants it. Unlike swapcontext it makes no system call.
[[noreturn]] __attribute__((noinline)) void jump(void** place) {
    __builtin_longjmp(place, 1);
}

void to_fiber(Fiber& fiber) {
    launch->current = &fiber;
    __sanitizer_start_switch_fiber(&launch->host_fake_stack, fiber.stack, STACK_BYTES);
    __tsan_switch_to_fiber(fiber.sanitizer_fiber, __tsan_switch_to_fiber_no_sync);
    if (__builtin_setjmp(launch->host) == 0) {
        if (fiber.started) jump(fiber.place);
        fiber.started = true;
        setcontext(&fiber.context);
    }
    __sanitizer_finish_switch_fiber(launch->host_fake_stack, nullptr, nullptr);
    launch->current = nullptr;
}

void to_host(Fiber& fiber) {
    __sanitizer_start_switch_fiber(fiber.state == State::done ? nullptr : &fiber.fake_stack, launch->host_stack,
                                   launch->host_stack_bytes);
    __tsan_switch_to_fiber(launch->host_sanitizer_fiber, __tsan_switch_to_fiber_no_sync);
    if (__builtin_setjmp(fiber.place) == 0) jump(launch->host);
    __sanitizer_finish_switch_fiber(launch->current->fake_stack, &launch->host_stack, &launch->host_stack_bytes);
}

void* order_of(const Fiber& fiber, Barrier barrier) {
    switch (barrier) {
        case Barrier::warp: return fiber.thread.warp_buffer;
        case Barrier::block: return fiber.thread.shared_memory;
        default: return &launch->grid;
    }
}

void enter() {
    Fiber& fiber = *launch->current;
    __sanitizer_finish_switch_fiber(nullptr, &launch->host_stack, &launch->host_stack_bytes);
    __tsan_acquire(&launch->begin);
    (*launch->kernel)();
    __tsan_release(&launch->end);
    fiber.state = State::done;
    to_host(fiber);
}

// What is kept from launch to launch, for making it costs more than the kernels.
struct Kept {
    std::unique_ptr<std::byte[]> stack = std::make_unique_for_overwrite<std::byte[]>(STACK_BYTES);
    void* sanitizer_fiber = __tsan_create_fiber(0);
};

void prepare(Fiber& fiber, size_t number) {
    static std::vector<Kept> kept;
    while (kept.size() <= number) kept.emplace_back();
    fiber.stack = kept[number].stack.get();
    fiber.sanitizer_fiber = kept[number].sanitizer_fiber;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    fiber.state = State::ready;
}

// Lets the threads of [begin, end) continue if all of them wait at this barrier; those of a warp do not wait for
// threads that have returned.
bool pass(Fiber* begin, Fiber* end, Barrier barrier) {
    bool any = false;
    for (Fiber* fiber = begin; fiber < end; ++fiber) {
        if (fiber->state == State::done && barrier == Barrier::warp) continue;
        if (fiber->state != State::waiting || fiber->barrier != barrier) return false;
        any = true;
    }
    for (Fiber* fiber = begin; fiber < end; ++fiber)
        if (fiber->state == State::waiting) fiber->state = State::ready;
    return any;
}

// Runs the fibers of some blocks to their end, in their order or, if GROOTV_REVERSED is set, in reverse.
void run_fibers(std::vector<Fiber>& fibers, int threads, bool cooperative) {
    const bool reversed = std::getenv("GROOTV_REVERSED") != nullptr;
    for (;;) {
        bool done = true, passed = false;
        for (size_t i = 0; i < fibers.size(); ++i) {
            Fiber& fiber = fibers[reversed ? fibers.size() - 1 - i : i];
            if (fiber.state == State::ready) to_fiber(fiber);
            done = done && fiber.state == State::done;
        }
        if (done) return;
        Fiber *first = fibers.data(), *last = first + fibers.size();
        for (Fiber* block = first; block < last; block += threads) {
            Fiber* end = block + threads;
            for (Fiber* warp = block; warp < end; warp += WARP)
                passed |= pass(warp, std::min(end, warp + WARP), Barrier::warp);
            passed |= pass(block, end, Barrier::block);
        }
        passed |= cooperative && pass(first, last, Barrier::grid);
        check(passed, launch->function, ": a barrier was reached by only part of its threads");
    }
}

// Memory of one block, of exactly the size asked for, so that sanitizers see what lies beyond.
struct BlockMemory {
    BlockMemory(int threads, int64_t shared_bytes)
        : shared(std::make_unique_for_overwrite<std::byte[]>(shared_bytes)),
          warps(std::make_unique_for_overwrite<std::byte[]>((threads + WARP) * 8)) {}

    std::unique_ptr<std::byte[]> shared, warps;
};

}  // namespace

const Thread& thread() {
    return launch->current->thread;
}

void wait(Barrier barrier) {
    Fiber& fiber = *launch->current;
    fiber.state = State::waiting;
    fiber.barrier = barrier;
    __tsan_release(order_of(fiber, barrier));
    to_host(fiber);
    __tsan_acquire(order_of(fiber, barrier));
}

void run(const char* function, dim3 grid, int threads, int64_t shared_bytes, bool cooperative,
         const std::function<void()>& kernel) {
    check(grid.x >= 1 && grid.y >= 1 && grid.y < 65536 && threads >= 1 && threads <= 1024, function,
          ": no device launches ", grid.x, " x ", grid.y, " blocks of ", threads, " threads");
    check(shared_bytes <= emulation::shared_bytes(), function, ": no block has ", shared_bytes,
          " bytes of shared memory");
    Launch state{};
    state.function = function;
    state.kernel = &kernel;
    launch = &state;
    state.host_sanitizer_fiber = __tsan_get_current_fiber();
    const int64_t blocks = int64_t{grid.x} * grid.y;
    for (int64_t first = 0; first < blocks;) {
        const int64_t count = cooperative ? blocks : std::min(blocks - first, BLOCKS_AT_ONCE);
        std::vector<Fiber> fibers(count * threads);
        std::vector<BlockMemory> memory;
        for (int64_t i = 0; i < count; ++i, ++first) {
            const BlockMemory& block = memory.emplace_back(threads, shared_bytes);
            for (int j = 0; j < threads; ++j) {
                Fiber& fiber = fibers[i * threads + j];
                fiber.thread = {dim3(j),
                                dim3(first % grid.x, first / grid.x),
                                dim3(threads),
                                grid,
                                block.shared.get(),
                                block.warps.get() + j / WARP * WARP * 8};
                prepare(fiber, i * threads + j);
            }
        }
        __tsan_release(&state.begin);
        run_fibers(fibers, threads, cooperative);
        __tsan_acquire(&state.end);
    }
    launch = nullptr;
}

}  // namespace grootv::emulation
