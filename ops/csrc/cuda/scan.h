// The kernels of a scan and of its gradient, made of the two passes, and their launches.
#pragma once

#include <cmath>
#include <type_traits>
#include <utility>

#include "cuda/scan_passes.h"

namespace grootv {

template <class Signal>
struct OneSignal {
    using A = typename Signal::A;
    Signal signal;

    __device__ Values<A, 1> values(int64_t row, int64_t c, A& decay) const {
        const SignalDecay<A> both = signal.both(row, c);
        decay = both.decay;
        return {{both.signal}};
    }
    __device__ A decay(int64_t row, int64_t c) const { return signal.decay(row, c); }
};

// What a vertex adds to what comes from above. Its own sum already flowed into the parent's: that share is taken out
// before the parent's total flows back.
template <class A>
__device__ A without_own_share(A sum, A decay) {
    return sum - decay * (decay * sum);
}

template <class Signal, int SIGNALS>
struct OwnSums {
    using A = typename Signal::A;
    Signal signal;
    Totals<A, SIGNALS> sums;

    __device__ Values<A, SIGNALS> values(int64_t row, int64_t c, bool root, A& decay) const {
        decay = root ? A{0} : signal.decay(row, c);
        Values<A, SIGNALS> own;
        for (int k = 0; k < SIGNALS; ++k) own.value[k] = without_own_share(sums.at(k, row, c), decay);
        return own;
    }
    __device__ A decay(int64_t row, int64_t c) const { return signal.decay(row, c); }
};

// The totals are the output itself if `output` is null.
template <class Team, class Signal, class T, class A>
__global__ void __launch_bounds__(scan_threads<Team>(1), 1)
    scan_kernel(Signal signal, PathSchedule schedule, bool both, Totals<A, 1> totals, T* output) {
    const PathSchedule::Lists lists = schedule.lists(blockIdx.x);
    const int64_t channels = totals.channels;
    totals.take_shared_memory(schedule.vertices);
    auto store = [&](int64_t row, int64_t c, A total) {
        if (output) output[row * channels + c] = static_cast<T>(total);
    };
    up_pass<Team>(schedule, lists, OneSignal<Signal>{signal}, totals);
    if (both) {
        down_pass<Team>(schedule, lists, OwnSums<Signal, 1>{signal, totals}, totals,
                        [&](int64_t row, int64_t c, bool, A, const Values<A, 1>&, const Values<A, 1>& x) {
                            store(row, c, x.value[0]);
                        });
    } else if (output) {
        const int64_t begin = int64_t{lists.first_item} * schedule.vertices;
        const int64_t end = begin + int64_t{lists.items} * schedule.vertices;
        Groups<Team>(channels, totals.slice).for_each(begin, end, channels, [&](int64_t row, int64_t c) {
            store(row, c, totals.at(0, row, c));
        });
        Team::sync();
    }
    for_each_invalid<Team>(schedule, lists, channels, totals.slice, [&](int64_t row, int64_t c) {
        if (output)
            store(row, c, A(NAN));
        else
            totals.at(0, row, c) = A(NAN);
    });
}

// ---- its gradient

template <class Signal>
struct SignalAndGrad {
    using A = typename Signal::A;
    using T = typename Signal::Element;
    Signal signal;
    const T* grad;
    int64_t channels;

    __device__ Values<A, 2> values(int64_t row, int64_t c, A& decay) const {
        const SignalDecay<A> both = signal.both(row, c);
        decay = both.decay;
        return {{both.signal, static_cast<A>(grad[row * channels + c])}};
    }
    __device__ A decay(int64_t row, int64_t c) const { return signal.decay(row, c); }
};

template <class Signal>
struct GradFromAbove {
    using A = typename Signal::A;
    using T = typename Signal::Element;
    Signal signal;
    const T* grad;
    int64_t channels;

    __device__ Values<A, 1> values(int64_t row, int64_t c, bool root, A& decay) const {
        decay = root ? A{0} : signal.decay(row, c);
        return {{static_cast<A>(grad[row * channels + c])}};
    }
    __device__ A decay(int64_t row, int64_t c) const { return signal.decay(row, c); }
};

// Where the gradients of signal and decay go.
template <class Out>
struct ScanGradients {
    Out *signal, *decay;
    int64_t channels;

    template <class A>
    __device__ void put(int64_t row, int64_t c, A grad_signal, A grad_decay) const {
        signal[row * channels + c] = static_cast<Out>(grad_signal);
        decay[row * channels + c] = static_cast<Out>(grad_decay);
    }
};

// The gradient of the signal is the scan of the gradient, for P(i, j) is symmetric. That of a decay pairs what comes
// down its edge with what goes up, for signal and gradient in turn.
template <class Team, class Signal, class Out>
__global__ void __launch_bounds__(scan_threads<Team>(2), 1)
    scan_backward_kernel(Signal signal, const typename Signal::Element* grad, PathSchedule schedule,
                         Totals<typename Signal::A, 2> sums, Totals<typename Signal::A, 2> totals,
                         ScanGradients<Out> gradients) {
    using A = typename Signal::A;
    const PathSchedule::Lists lists = schedule.lists(blockIdx.x);
    sums.take_shared_memory(schedule.vertices);
    up_pass<Team>(schedule, lists, SignalAndGrad<Signal>{signal, grad, sums.channels}, sums);
    down_pass<Team>(schedule, lists, OwnSums<Signal, 2>{signal, sums}, totals,
                    [&](int64_t row, int64_t c, bool root, A decay, const Values<A, 2>& above, const Values<A, 2>& x) {
                        const A sum = sums.at(0, row, c), grad_sum = sums.at(1, row, c);
                        const A elsewhere = above.value[0] - decay * sum;
                        const A grad_elsewhere = above.value[1] - decay * grad_sum;
                        gradients.put(row, c, x.value[1], root ? A{0} : grad_sum * elsewhere + sum * grad_elsewhere);
                    });
    for_each_invalid<Team>(schedule, lists, sums.channels, sums.slice,
                           [&](int64_t row, int64_t c) { gradients.put(row, c, A(NAN), A(NAN)); });
}

// For direction `up`, where a vertex hears its own subtree only: its gradient comes from above only.
template <class Team, class Signal, class Out>
__global__ void __launch_bounds__(scan_threads<Team>(2), 1)
    scan_up_backward_kernel(Signal signal, const typename Signal::Element* grad, PathSchedule schedule,
                            Totals<typename Signal::A, 1> sums, Totals<typename Signal::A, 1> totals,
                            ScanGradients<Out> gradients) {
    using A = typename Signal::A;
    const PathSchedule::Lists lists = schedule.lists(blockIdx.x);
    sums.take_shared_memory(schedule.vertices);
    up_pass<Team>(schedule, lists, OneSignal<Signal>{signal}, sums);
    down_pass<Team>(schedule, lists, GradFromAbove<Signal>{signal, grad, sums.channels}, totals,
                    [&](int64_t row, int64_t c, bool root, A, const Values<A, 1>& above, const Values<A, 1>& x) {
                        gradients.put(row, c, x.value[0], root ? A{0} : sums.at(0, row, c) * above.value[0]);
                    });
    for_each_invalid<Team>(schedule, lists, sums.channels, sums.slice,
                           [&](int64_t row, int64_t c) { gradients.put(row, c, A(NAN), A(NAN)); });
}

// ---- launches

// The schedule, the scratch memory and the launches of one call.
class Scan {
public:
    Scan(const ScanSizes& sizes, const Tensor& signal, const Tensor& order, const Tensor& parent)
        : sizes(sizes), device_(sizes.function, signal), workspace_(signal) {
        order_ = as_contiguous(order), parent_ = as_contiguous(parent);
        check_batch(sizes.function, sizes.batch, sizes.vertices);
        constexpr int64_t MOST = 65535 * 4;  // blocks of the smallest slices
        check(sizes.channels <= MOST, sizes.function, ": a CUDA device takes at most ", MOST, " channels, got ",
              sizes.channels);
    }

    bool empty() const { return sizes.batch * sizes.channels == 0; }

    const Device& device() const { return device_; }
    Workspace& workspace() { return workspace_; }

    template <class Signal, class T>
    void forward(Signal signal, bool both, T* output) {
        using A = typename Signal::A;
        const PathSchedule schedule = make_schedule();
        auto totals = make_totals<A, 1>(!schedule.shared_by_all);
        if constexpr (std::is_same_v<T, A>) {
            if (!totals.in_shared_memory) std::swap(totals.rows[0], output);
        } else {
            if (!totals.in_shared_memory) totals.rows[0] = take<A>();
        }
        if (schedule.shared_by_all)
            launch<GridTeam, 1>(scan_kernel<GridTeam, Signal, T, A>, totals, signal, schedule, both, totals, output);
        else
            launch<BlockTeam, 1>(scan_kernel<BlockTeam, Signal, T, A>, totals, signal, schedule, both, totals, output);
    }

    template <class Signal, class Out>
    void backward(Signal signal, bool both, const typename Signal::Element* grad, ScanGradients<Out> gradients) {
        using A = typename Signal::A;
        const PathSchedule schedule = make_schedule();
        A* grad_rows = own_or<A>(gradients.signal);
        if (both) {
            auto sums = make_totals<A, 2>(!schedule.shared_by_all);
            if (!sums.in_shared_memory) sums.rows[0] = take<A>(), sums.rows[1] = take<A>();
            auto totals = sums;
            totals.rows[0] = take<A>(), totals.rows[1] = grad_rows;
            if (schedule.shared_by_all)
                launch<GridTeam, 2>(scan_backward_kernel<GridTeam, Signal, Out>, sums, signal, grad, schedule, sums,
                                    totals, gradients);
            else
                launch<BlockTeam, 2>(scan_backward_kernel<BlockTeam, Signal, Out>, sums, signal, grad, schedule, sums,
                                     totals, gradients);
        } else {
            auto sums = make_totals<A, 1>(!schedule.shared_by_all);
            if (!sums.in_shared_memory) sums.rows[0] = take<A>();
            auto totals = sums;
            totals.rows[0] = grad_rows;
            if (schedule.shared_by_all)
                launch<GridTeam, 2>(scan_up_backward_kernel<GridTeam, Signal, Out>, sums, signal, grad, schedule, sums,
                                    totals, gradients);
            else
                launch<BlockTeam, 2>(scan_up_backward_kernel<BlockTeam, Signal, Out>, sums, signal, grad, schedule,
                                     sums, totals, gradients);
        }
    }

    // A value for every vertex and channel.
    template <class A>
    A* take() {
        return workspace_.take<A>(sizes.batch * sizes.vertices * sizes.channels);
    }

    const ScanSizes sizes;

private:
    PathSchedule make_schedule() {
        return schedule_paths(device_, workspace_, order_.const_data_ptr<int32_t>(), parent_.const_data_ptr<int32_t>(),
                              sizes.batch, sizes.vertices);
    }

    // The result itself if it has the type of the sums.
    template <class A, class T>
    A* own_or(T* result) {
        if constexpr (std::is_same_v<T, A>)
            return result;
        else
            return take<A>();
    }

    // Without rows unless a block may keep them in shared memory: of the greatest slice that fits and gives every
    // multiprocessor a block.
    template <class A, int SIGNALS>
    Totals<A, SIGNALS> make_totals(bool one_block_each) {
        constexpr int32_t SMALLEST = 32 / sizeof(A);  // what memory is read in
        const int64_t carries = sizes.batch * PathSchedule::carries_of_one(sizes.vertices) * sizes.channels;
        Totals<A, SIGNALS> totals{};
        for (int k = 0; k < SIGNALS; ++k) totals.carry[k] = workspace_.take<A>(carries);
        totals.product = workspace_.take<A>(carries);
        totals.channels = totals.stride = sizes.channels;
        totals.slice = WARP;
        if (!one_block_each) return totals;
        auto fits = [&](int64_t slice) { return shared_bytes<A, SIGNALS>(slice) <= device_.shared_bytes(); };
        auto blocks = [&](int64_t slice) { return sizes.batch * ((sizes.channels + slice - 1) / slice); };
        int32_t slice = WARP;
        while (slice > SMALLEST && (!fits(slice) || blocks(slice) < device_.processors())) slice /= 2;
        totals.in_shared_memory = fits(slice);
        if (totals.in_shared_memory) totals.slice = slice;
        return totals;
    }

    template <class A, int SIGNALS>
    int64_t shared_bytes(int64_t slice) const {
        return sizes.vertices * slice * SIGNALS * static_cast<int64_t>(sizeof(A));
    }

    template <class Team, int KERNEL_SIGNALS, class A, int SIGNALS, class... Parameters, class... Arguments>
    void launch(void (*kernel)(Parameters...), const Totals<A, SIGNALS>& sums, Arguments... arguments) {
        const int64_t slices = (sizes.channels + sums.slice - 1) / sums.slice;
        const int64_t bytes = sums.in_shared_memory ? shared_bytes<A, SIGNALS>(sums.slice) : 0;
        const int threads = sums.in_shared_memory ? scan_threads<Team>(KERNEL_SIGNALS) : SCAN_THREADS;
        if constexpr (std::is_same_v<Team, GridTeam>)
            device_.launch_cooperative(kernel, sizes.batch * sizes.vertices * slices * WARP, threads, bytes,
                                       arguments...);
        else
            device_.launch(kernel, dim3(static_cast<unsigned>(sizes.batch), static_cast<unsigned>(slices)), threads,
                           bytes, arguments...);
    }

    Device device_;
    Workspace workspace_;
    Tensor order_, parent_;
};

}  // namespace grootv
