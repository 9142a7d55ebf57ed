// The kernels of a scan and of its gradient, made of the two passes, and their launches.
//
// A Signal gives the signal and the decay of the channels that select(channel) names: read(row, at) returns the Input
// that signal takes, read_decay(at) the DecayInput, also part of the Input, that decay takes; `at` counts elements.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "cuda/scan/scan_passes.h"

namespace grootv {

template <class Team, class Signal>
struct OneSignal {
    using A = typename Signal::A;
    using Input = typename Signal::Input;
    const Worker<Team, A>& worker;
    const Signal& signal;

    __device__ Input read(int32_t row) const { return signal.read(row, worker.at(row)); }
    __device__ Pack<A> decay(const Input& input) const { return signal.decay(input.decay); }
    __device__ Packs<A, 1> values(const Input& input) const { return {{signal.signal(input)}}; }
};

// What a vertex adds to what comes from above. Its own sum already flowed into the parent's: that share is taken out
// before the parent's total flows back.
template <class A>
__device__ Pack<A> without_own_share(const Pack<A>& sum, const Pack<A>& decay) {
    return map<A>([](A sum, A decay) { return std::fma(-decay, decay * sum, sum); }, sum, decay);
}

template <class Team, class Signal, int SIGNALS>
struct OwnSums {
    using A = typename Signal::A;
    struct Input {
        typename Signal::DecayInput decay;
        Packs<A, SIGNALS> sums;
    };
    const Worker<Team, A>& worker;
    const Signal& signal;
    const Totals<Team, A, SIGNALS>& sums;

    __device__ Input read(int32_t row, bool live) const {
        Input input{signal.read_decay(worker.at(row)), {}};
        if (live) input.sums = sums.load(row, worker);
        return input;
    }
    __device__ Pack<A> decay(const Input& input) const { return signal.decay(input.decay); }
    __device__ Packs<A, SIGNALS> values(const Input& input, const Pack<A>& decay) const {
        Packs<A, SIGNALS> own;
        for (int k = 0; k < SIGNALS; ++k) own.signal[k] = without_own_share(input.sums.signal[k], decay);
        return own;
    }
};

template <class Team, class Signal>
struct Output {
    using A = typename Signal::A;
    using T = typename Signal::Element;
    struct Input {};
    const Worker<Team, A>& worker;
    T* output;

    __device__ Input read(int32_t) const { return {}; }
    __device__ void put(int32_t row, const Pack<A>& value, bool live) const {
        if (live) as_pack(output + worker.at(row)) = cast<T>(value);
    }
    template <class Part>
    __device__ void operator()(Step step, const Part&, Input, const Pack<A>&, const Packs<A, 1>&, const Packs<A, 1>& x,
                               bool live) const {
        put(step.vertex(), x.signal[0], live);
    }
};

template <class Team, class Signal>
__global__ void __launch_bounds__(SCAN_THREADS, 1)
    scan_kernel(Slices slices, Signal signal, PathSchedule schedule, bool both,
                Totals<Team, typename Signal::A, 1> totals, typename Signal::Element* to) {
    using A = typename Signal::A;
    const Worker<Team, A> worker(slices);
    const PathSchedule::Lists lists = schedule.lists(worker.member);
    Output<Team, Signal> output{worker, to};
    signal.select(worker.channel);
    up_pass(lists, worker, OneSignal<Team, Signal>{worker, signal}, totals,
            [&](int32_t row, const Packs<A, 1>& sum, bool live) { output.put(row, sum.signal[0], live && !both); });
    if (both) down_pass(lists, worker, OwnSums<Team, Signal, 1>{worker, signal, totals}, totals, output);
    for_each_invalid(schedule, lists, worker, [&](int32_t row, bool live) { output.put(row, filled(A(NAN)), live); });
}

// ---- its gradient. Gradients take those of signal and decay: read(signal, row, at) returns an Input for put(worker,
// signal, row, input, decay input, decay, gradients of signal and decay, live); end(worker) comes last, with
// SHARED_PACKS packs of shared memory for each thread.

template <class Team, class Signal>
struct SignalAndGrad {
    using A = typename Signal::A;
    using T = typename Signal::Element;
    struct Input {
        typename Signal::Input signal;
        Pack<T> grad;
    };
    const Worker<Team, A>& worker;
    const Signal& signal;
    const T* grad;

    __device__ Input read(int32_t row) const {
        const int64_t at = worker.at(row);
        return {signal.read(row, at), as_pack(grad + at)};
    }
    __device__ Pack<A> decay(const Input& input) const { return signal.decay(input.signal.decay); }
    __device__ Packs<A, 2> values(const Input& input) const {
        return {{signal.signal(input.signal), cast<A>(input.grad)}};
    }
};

// For direction `up`, where a vertex hears its own subtree only: its gradient comes from above only.
template <class Team, class Signal>
struct GradFromAbove {
    using A = typename Signal::A;
    using T = typename Signal::Element;
    struct Input {
        typename Signal::DecayInput decay;
        Pack<T> grad;
        Packs<A, 1> sums;
    };
    const Worker<Team, A>& worker;
    const Signal& signal;
    const T* grad;
    const Totals<Team, A, 1>& sums;

    __device__ Input read(int32_t row, bool live) const {
        const int64_t at = worker.at(row);
        Input input{signal.read_decay(at), as_pack(grad + at), {}};
        if (live) input.sums = sums.load(row, worker);
        return input;
    }
    __device__ Pack<A> decay(const Input& input) const { return signal.decay(input.decay); }
    __device__ Packs<A, 1> values(const Input& input, const Pack<A>&) const { return {{cast<A>(input.grad)}}; }
};

// The gradient of a decay: what goes up its edge times what comes down.
template <class A>
__device__ Pack<A> grad_of_decay(const Packs<A, 1>& sums, const Pack<A>&, const Packs<A, 1>& above) {
    return sums.signal[0] * above.signal[0];
}

// For signal and gradient in turn, and of what comes down, without what went up before.
template <class A>
__device__ Pack<A> grad_of_decay(const Packs<A, 2>& sums, const Pack<A>& decay, const Packs<A, 2>& above) {
    return map<A>(
        [](A sum, A grad_sum, A decay, A above, A grad_above) {
            return std::fma(grad_sum, std::fma(-decay, sum, above), sum * std::fma(-decay, grad_sum, grad_above));
        },
        sums.signal[0], sums.signal[1], decay, above.signal[0], above.signal[1]);
}

template <class Team, class Signal, class Gradients>
struct PutGradients {
    using A = typename Signal::A;
    using Input = typename Gradients::Input;
    const Worker<Team, A>& worker;
    const Signal& signal;
    Gradients& gradients;

    __device__ Input read(int32_t row) const { return gradients.read(signal, row, worker.at(row)); }
    template <class Part, int SIGNALS>
    __device__ void operator()(Step step, const Part& part, const Input& input, const Pack<A>& decay,
                               const Packs<A, SIGNALS>& above, const Packs<A, SIGNALS>& x, bool live) {
        const Pack<A> grad_decay = step.is_root() ? Pack<A>{} : grad_of_decay(part.sums, decay, above);
        gradients.put(worker, signal, step.vertex(), input, part.decay, decay, x.signal[SIGNALS - 1], grad_decay, live);
    }
};

// Of direction `both` with two signals, for the gradient of the signal is then the scan of the gradient: P(i, j) is
// symmetric.
template <class Team, int SIGNALS, class Signal, class Gradients>
__global__ void __launch_bounds__(SCAN_THREADS, 1)
    scan_backward_kernel(Slices slices, Signal signal, const typename Signal::Element* grad, PathSchedule schedule,
                         Totals<Team, typename Signal::A, SIGNALS> totals, Gradients gradients) {
    using A = typename Signal::A;
    const Worker<Team, A> worker(slices);
    const PathSchedule::Lists lists = schedule.lists(worker.member);
    signal.select(worker.channel);
    PutGradients<Team, Signal, Gradients> finish{worker, signal, gradients};
    auto nothing = [](auto...) {};
    if constexpr (SIGNALS == 2) {
        up_pass(lists, worker, SignalAndGrad<Team, Signal>{worker, signal, grad}, totals, nothing);
        down_pass(lists, worker, OwnSums<Team, Signal, 2>{worker, signal, totals}, totals, finish);
    } else {
        up_pass(lists, worker, OneSignal<Team, Signal>{worker, signal}, totals, nothing);
        down_pass(lists, worker, GradFromAbove<Team, Signal>{worker, signal, grad, totals}, totals, finish);
    }
    for_each_invalid(schedule, lists, worker, [&](int32_t row, bool live) {
        const int64_t at = worker.at(row);
        const Pack<A> nan = filled(A(NAN));
        gradients.put(worker, signal, row, finish.read(row), signal.read_decay(at), nan, nan, nan, live);
    });
    gradients.end(worker);
}

// ---- launches

// The schedule, the scratch memory and the launches of one call. Its rows are packed: their channels are filled up with
// 0 to whole packs.
class Scan {
public:
    Scan(const ScanSizes& sizes, const Tensor& signal, const Tensor& order, const Tensor& parent)
        : sizes(sizes), device_(sizes.function, signal), workspace_(signal) {
        order_ = as_contiguous(order), parent_ = as_contiguous(parent);
        check_batch(sizes.function, sizes.batch, sizes.vertices);
        constexpr int64_t MOST = int64_t{1} << 20;
        check(sizes.channels <= MOST, sizes.function, ": a CUDA device takes at most ", MOST, " channels, got ",
              sizes.channels);
        const int64_t pack = signal.scalar_type() == ScalarType::Double ? PACK<double> : PACK<float>;
        channels_ = (sizes.channels + pack - 1) / pack * pack;
    }

    bool empty() const { return sizes.batch * sizes.channels == 0; }

    // Channels come last.
    Tensor packed(const Tensor& given) const {
        const int64_t fill[] = {0, channels_ - sizes.channels};
        if (fill[1] > 0) return torch::stable::pad(given, {fill, 2});
        Tensor rows = as_contiguous(given);
        constexpr uintptr_t ALIGNMENT = 16;
        return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % ALIGNMENT == 0 ? rows : torch::stable::clone(rows);
    }
    Tensor new_rows(const Tensor& like) const {
        return torch::stable::new_empty(like, {sizes.batch, sizes.vertices, channels_});
    }
    Tensor new_parts(const Tensor& like, int64_t count) const {
        return torch::stable::new_empty(like, {count, channels_});
    }
    Tensor unpacked(Tensor rows) const {
        return channels_ == sizes.channels
                   ? rows
                   : as_contiguous(torch::stable::narrow(rows, rows.dim() - 1, 0, sizes.channels));
    }

    template <class Signal, class T = typename Signal::Element>
    void forward(Signal signal, bool both, T* output) {
        using A = typename Signal::A;
        with_team<A, 1>([&](auto team, const PathSchedule& schedule) {
            using Team = decltype(team);
            auto totals = make_totals<Team, A, 1>([&] {
                if constexpr (std::is_same_v<T, A>)
                    return output;
                else
                    return take<A>();
            });
            auto* kernel = scan_kernel<Team, Signal>;
            launch<Team>(make_plan(kernel, totals, 0), kernel, signal, schedule, both, totals, output);
        });
    }

    // With two signals for direction `both`, with one for `up`. make_gradients(slices, members) with the numbers of
    // slices of the channels and of members of each slice.
    template <int SIGNALS, class Signal, class MakeGradients>
    void backward(Signal signal, const typename Signal::Element* grad, MakeGradients make_gradients) {
        using A = typename Signal::A;
        using Gradients = decltype(make_gradients(0, 0));
        with_team<A, SIGNALS>([&](auto team, const PathSchedule& schedule) {
            using Team = decltype(team);
            auto totals = make_totals<Team, A, SIGNALS>([&] { return take<A>(); });
            auto* kernel = scan_backward_kernel<Team, SIGNALS, Signal, Gradients>;
            const Plan plan = make_plan(kernel, totals, Gradients::SHARED_PACKS);
            launch<Team>(plan, kernel, signal, grad, schedule, totals, make_gradients(plan.slices, plan.members));
        });
    }

    const ScanSizes sizes;

private:
    // How the work is divided among blocks.
    struct Plan {
        int64_t group;  // threads that take a slice of the channels
        int64_t slices, slices_at_once, members, threads, shared_bytes;
    };

    // A block takes an item if it is small and its sums fit into shared memory, else the grid takes all.
    template <class A, int SIGNALS, class Run>
    void with_team(Run run) {
        const bool has_block = sizes.vertices <= BLOCK_VERTICES &&
                               Totals<BlockTeam, A, SIGNALS>::shared_bytes(sizes.vertices, 1) <= device_.shared_bytes();
        const PathSchedule schedule =
            schedule_paths(device_, workspace_, order_.const_data_ptr<int32_t>(), parent_.const_data_ptr<int32_t>(),
                           sizes.batch, sizes.vertices, !has_block);
        if (has_block)
            run(BlockTeam{}, schedule);
        else
            run(GridTeam{}, schedule);
    }

    // A value for every vertex and channel.
    template <class A>
    A* take() {
        return workspace_.take<A>(sizes.batch * sizes.vertices * channels_);
    }

    template <class Team, class A, int SIGNALS, class TakeRows>
    Totals<Team, A, SIGNALS> make_totals(TakeRows take_rows) {
        const int64_t carries = sizes.batch * PathSchedule::carries_of_one(sizes.vertices) * channels_;
        Totals<Team, A, SIGNALS> totals{};
        totals.vertices = static_cast<int32_t>(sizes.vertices);
        for (int k = 0; k < SIGNALS; ++k) {
            if (!Team::IS_BLOCK) totals.rows[k] = take_rows();
            totals.carry[k] = workspace_.take<A>(carries);
        }
        totals.product = workspace_.take<A>(carries);
        return totals;
    }

    // Every thread has some packs in shared memory besides the totals, but at another time.
    template <class Kernel, class Team, class A, int SIGNALS>
    Plan make_plan(Kernel kernel, const Totals<Team, A, SIGNALS>&, int packs) const {
        constexpr int64_t MOST_CHANNELS = 32, MEMORY_READ = 32;
        const int64_t packs_of_row = channels_ / PACK<A>;
        auto number = [&](int64_t group) { return (packs_of_row + group - 1) / group; };
        Plan plan{};
        plan.group = std::min<int64_t>(MOST_CHANNELS / PACK<A>, std::bit_ceil(static_cast<uint64_t>(packs_of_row)));
        plan.threads = SCAN_THREADS;
        if constexpr (Team::IS_BLOCK) {
            // The greatest slice whose sums fit into shared memory and which gives every multiprocessor a block, but no
            // less than 32 bytes of sums. Threads in proportion to the shared memory, so that the blocks of a
            // multiprocessor have about as many in all.
            auto bytes = [&] { return Totals<Team, A, SIGNALS>::shared_bytes(sizes.vertices, plan.group); };
            auto is_too_great = [&] {
                const bool more_blocks = sizes.batch * number(plan.group) < device_.processors();
                return bytes() > device_.shared_bytes() ||
                       (more_blocks && plan.group * static_cast<int64_t>(sizeof(Pack<A>)) > MEMORY_READ);
            };
            while (plan.group > 1 && is_too_great()) plan.group /= 2;
            const int64_t share = plan.threads * bytes() / device_.shared_bytes();
            plan.threads = std::clamp<int64_t>(std::bit_ceil(static_cast<uint64_t>(share)), 2 * WARP, plan.threads);
            plan.shared_bytes = bytes();
        }
        plan.shared_bytes = std::max<int64_t>(plan.shared_bytes, plan.threads * packs * sizeof(Pack<A>));
        plan.slices = number(plan.group);
        if constexpr (Team::IS_BLOCK) {
            plan.members = sizes.batch;
            plan.slices_at_once = std::clamp<int64_t>((int64_t{1} << 30) / plan.members, 1, plan.slices);
        } else {
            const int64_t threads = sizes.batch * sizes.vertices / AHEAD<SIGNALS> * plan.slices * plan.group;
            const int64_t blocks = device_.resident_blocks(kernel, threads, plan.threads, plan.shared_bytes);
            plan.slices_at_once = std::min(plan.slices, blocks);
            plan.members = blocks / plan.slices_at_once;
        }
        return plan;
    }

    template <class Team, class... Parameters, class... Arguments>
    void launch(const Plan& plan, void (*kernel)(Slices, Parameters...), Arguments... arguments) const {
        for (int64_t first = 0; first < plan.slices; first += plan.slices_at_once) {
            const int64_t count = std::min(plan.slices_at_once, plan.slices - first), blocks = plan.members * count;
            const Slices slices{static_cast<int32_t>(channels_), static_cast<int32_t>(plan.group),
                                static_cast<int32_t>(first), static_cast<int32_t>(count)};
            if constexpr (Team::IS_BLOCK)
                device_.launch(kernel, dim3(static_cast<unsigned>(blocks)), plan.threads, plan.shared_bytes, slices,
                               arguments...);
            else
                device_.launch_cooperative(kernel, blocks, plan.threads, plan.shared_bytes, slices, arguments...);
        }
    }

    Device device_;
    Workspace workspace_;
    Tensor order_, parent_;
    int64_t channels_;  // filled up to whole packs
};

}  // namespace grootv
