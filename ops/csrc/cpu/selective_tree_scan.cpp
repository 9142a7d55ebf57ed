// The tree scan of decay exp(d A) and signal d B x, which are computed on the way and never stored as a whole.
#include <algorithm>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "cpu/elementary.h"
#include "cpu/lanes.h"
#include "cpu/scan_passes.h"

namespace grootv {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t GROUP = 64;  // channels whose share of grad_B is one partial sum, whatever the blocks
constexpr int64_t FLUSH = 64;  // vertices whose shares of grad_A and grad_delta_bias are one partial sum

// What a task reads, for a block of channels of one item.
template <class Element, bool SOFTPLUS>
struct Selection {
    using T = Element;
    using A = acc_type<T>;

    Rows<const T> x, delta;
    const T* write;  // B: one value per vertex
    const A* rate;   // A and delta_bias: one value per channel
    const A* bias;
    int64_t channels;

    GROOTV_INLINE void prefetch(int64_t vertex) const {
        grootv::prefetch(x, vertex, channels);
        grootv::prefetch(delta, vertex, channels);
    }

    GROOTV_INLINE static A step(A shifted) {
        if constexpr (SOFTPLUS) return softplus(shifted);
        return shifted;
    }

    GROOTV_INLINE static A step_slope(A shifted) {
        if constexpr (SOFTPLUS) return softplus_slope(shifted);
        return 1;
    }
};

// The signal of the up pass. Its rows stand where the pass puts its sums.
template <class Selection, class A = typename Selection::A>
struct SelectedSignal {
    const Selection& in;
    Rows<A> signal, decay;

    GROOTV_INLINE void prefetch(int64_t vertex) const { in.prefetch(vertex); }

    GROOTV_INLINE const A* row(int64_t vertex) const {
        const auto *x = in.x[vertex], *delta = in.delta[vertex];
        const A *rate = in.rate, *bias = in.bias;
        const A write = static_cast<A>(in.write[vertex]);
        A *to_signal = signal[vertex], *to_decay = decay[vertex];
        const int64_t channels = in.channels;
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const A d = in.step(static_cast<A>(delta[c]) + bias[c]);
            to_decay[c] = vector_exp(d * rate[c]);
            to_signal[c] = d * (write * static_cast<A>(x[c]));
        }
        return to_signal;
    }
};

// One sum per channel over the vertices of an item, in chunks: float32 alone would lose digits over a large map.
template <class A>
struct ChannelSums {
    A* chunk;
    double* total;

    GROOTV_INLINE void flush(int64_t channels) const {
        for (int64_t c = 0; c < channels; ++c) {
            total[c] += static_cast<double>(chunk[c]);
            chunk[c] = 0;
        }
    }
};

// Passes the gradients of signal and decay on to what these were computed from.
template <class Selection, class T = typename Selection::T, class A = typename Selection::A>
struct SelectedGradients {
    const Selection& in;
    Rows<A> decay, grad_signal, grad_decay;
    Rows<T> grad_x, grad_delta;  // grad_delta may be grad_decay
    Rows<A> wide;                // grad_x and grad_delta of one vertex before rounding, if T is not A
    ChannelSums<A> grad_rate, grad_bias;
    A* grad_write;  // a row of vertices for each group of channels
    int64_t vertices;
    A* term;  // shares of grad_B of one vertex, with zeros up to a multiple of SIMD_WIDTH
    int64_t chunk = 0;

    GROOTV_INLINE void prefetch(int64_t vertex) const { in.prefetch(vertex); }

    GROOTV_INLINE void finish(int64_t vertex) {
        const T *x = in.x[vertex], *delta = in.delta[vertex];
        const A *rate = in.rate, *bias = in.bias;
        const A *a = decay[vertex], *from_signal = grad_signal[vertex], *from_decay = grad_decay[vertex];
        const A write = static_cast<A>(in.write[vertex]);
        A *to_x = wide[0], *to_delta = wide[1];
        if constexpr (std::is_same_v<T, A>) to_x = grad_x[vertex], to_delta = grad_delta[vertex];
        A *to_rate = grad_rate.chunk, *to_bias = grad_bias.chunk, *to_write = term;
        const int64_t channels = in.channels;
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const A shifted = static_cast<A>(delta[c]) + bias[c];
            const A d = in.step(shifted);
            const A from_exponent = from_decay[c] * a[c];
            const A through_x = from_signal[c] * static_cast<A>(x[c]);
            const A grad_shifted = (through_x * write + from_exponent * rate[c]) * in.step_slope(shifted);
            to_x[c] = from_signal[c] * (d * write);
            to_delta[c] = grad_shifted;
            to_rate[c] += from_exponent * d;
            to_bias[c] += grad_shifted;
            to_write[c] = through_x * d;
        }
        if constexpr (!std::is_same_v<T, A>) {  // in loops of their own: rounding may not vectorise
            for (int64_t c = 0; c < channels; ++c) grad_x[vertex][c] = static_cast<T>(to_x[c]);
            for (int64_t c = 0; c < channels; ++c) grad_delta[vertex][c] = static_cast<T>(to_delta[c]);
        }
        sum_groups(vertex);
        if (++chunk == FLUSH) flush();
    }

    GROOTV_INLINE void flush() {
        chunk = 0;
        grad_rate.flush(in.channels);
        grad_bias.flush(in.channels);
    }

    GROOTV_INLINE void sum_groups(int64_t vertex) const {
        A* to = grad_write + vertex;
        for (int64_t begin = 0; begin < in.channels; begin += GROUP, to += vertices) {
            Lanes<A> lanes{};
            for (int64_t c = begin; c < std::min(begin + GROUP, in.channels); c += SIMD_WIDTH) lanes += load(term + c);
            *to = sum<A>(lanes);
        }
    }
};

template <class A>
GROOTV_INLINE Rows<const A> as_const(Rows<A> rows) {
    return {rows.first, rows.stride};
}

#define GROOTV_INSTANTIATE(T, SOFTPLUS)                                                                                \
    GROOTV_VECTORIZE void scan_block(TreeSchedule tree, const Selection<T, SOFTPLUS>& in, Rows<acc_type<T>> decay,     \
                                     Sums<T, acc_type<T>>& sum) {                                                      \
        up_pass(tree, in.channels, SelectedSignal<Selection<T, SOFTPLUS>>{in, sum.rows, decay}, as_const(decay),       \
                sum.rows);                                                                                             \
        down_pass(tree, in.channels, as_const(decay), sum.rows);                                                       \
        sum.store();                                                                                                   \
    }                                                                                                                  \
    GROOTV_VECTORIZE void scan_block_backward(TreeSchedule tree, const Selection<T, SOFTPLUS>& in, Rows<const T> grad, \
                                              Rows<acc_type<T>> window, int64_t window_size,                           \
                                              SelectedGradients<Selection<T, SOFTPLUS>> gradients) {                   \
        auto decay = gradients.decay, sum = gradients.grad_decay, grad_sum = gradients.grad_signal;                    \
        up_pass(tree, in.channels, SelectedSignal<Selection<T, SOFTPLUS>>{in, sum, decay}, as_const(decay), sum);      \
        up_pass(tree, in.channels, GivenSignal<T>{grad, in.channels}, as_const(decay), grad_sum);                      \
        down_pass_backward(tree, in.channels, as_const(decay), sum, grad_sum, window, window_size, sum, gradients);    \
        gradients.flush();                                                                                             \
    }
GROOTV_INSTANTIATE(float, true)
GROOTV_INSTANTIATE(double, true)
GROOTV_INSTANTIATE(Half, true)
GROOTV_INSTANTIATE(BFloat16, true)
GROOTV_INSTANTIATE(float, false)
GROOTV_INSTANTIATE(double, false)
GROOTV_INSTANTIATE(Half, false)
GROOTV_INSTANTIATE(BFloat16, false)
#undef GROOTV_INSTANTIATE

// Contiguous arguments, and how to cut a task's part out of them.
struct Arguments {
    Arguments(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
              const std::optional<Tensor>& delta_bias)
        : x(as_contiguous(x)),
          delta(as_contiguous(delta)),
          rate(as_contiguous(A)),
          write(as_contiguous(B)),
          bias(delta_bias ? as_contiguous(*delta_bias) : torch::stable::new_zeros(A, {A.size(0)})) {}

    template <class T, bool SOFTPLUS>
    Selection<T, SOFTPLUS> select(int64_t item, int64_t channel, int64_t channels) const {
        using Accumulated = acc_type<T>;
        const int64_t vertices = x.size(1), stride = x.size(2), offset = item * vertices * stride + channel;
        return {{x.const_data_ptr<T>() + offset, stride},     {delta.const_data_ptr<T>() + offset, stride},
                write.const_data_ptr<T>() + item * vertices,  rate.const_data_ptr<Accumulated>() + channel,
                bias.const_data_ptr<Accumulated>() + channel, channels};
    }

    Tensor x, delta, rate, write, bias;
};

// Calls function(T{}, std::bool_constant<delta_softplus>{}).
template <class Function>
void dispatch(const Tensor& x, bool delta_softplus, Function function) {
    dispatch_floating(x, [&](auto zero) {
        if (delta_softplus)
            function(zero, std::true_type{});
        else
            function(zero, std::false_type{});
    });
}

Tensor selective_tree_scan(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                           const std::optional<Tensor>& delta_bias, const Tensor& order, const Tensor& parent,
                           bool delta_softplus) {
    SelectiveScanArguments scan("selective_tree_scan", x, delta, A, B, delta_bias, order, parent);
    ScanTasks tasks(scan, order, parent);
    Arguments arguments(x, delta, A, B, delta_bias);
    Tensor output = tasks.new_signal(arguments.x);
    dispatch(x, delta_softplus, [&](auto zero, auto softplus) {
        using T = decltype(zero);
        using Accumulated = acc_type<T>;
        T* output_ptr = output.mutable_data_ptr<T>();
        tasks.for_each_block(ScanTasks::LINE, [&](TreeSchedule tree, int64_t item, int64_t channel, int64_t channels) {
            Workspace workspace;
            auto in = arguments.select<T, softplus.value>(item, channel, channels);
            T* to = output_ptr + item * scan.vertices * scan.channels + channel;
            Sums<T, Accumulated> sum(workspace, {to, scan.channels}, scan.vertices, channels);
            Rows<Accumulated> decay{workspace.take<Accumulated>(scan.vertices * channels), channels};
            scan_block(tree, in, decay, sum);
        });
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> selective_tree_scan_backward(
    const Tensor& grad, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
    const std::optional<Tensor>& delta_bias, const Tensor& order, const Tensor& parent, bool delta_softplus) {
    SelectiveScanArguments scan("selective_tree_scan_backward", x, delta, A, B, delta_bias, order, parent);
    scan.check_grad(grad, x);
    ScanTasks tasks(scan, order, parent);
    Arguments arguments(x, delta, A, B, delta_bias);
    const int64_t batch = scan.batch, vertices = scan.vertices, channels = scan.channels;
    Tensor g = as_contiguous(grad);
    Tensor grad_x = tasks.new_signal(arguments.x), grad_delta = tasks.new_signal(arguments.x);
    Tensor grad_A = torch::stable::new_empty(A, {channels}), grad_delta_bias = torch::stable::new_empty(A, {channels});
    Tensor grad_B = torch::stable::new_empty(B, {batch, vertices});
    dispatch(x, delta_softplus, [&](auto zero, auto softplus) {
        using T = decltype(zero);
        using Accumulated = acc_type<T>;
        T *grad_x_ptr = grad_x.mutable_data_ptr<T>(), *grad_delta_ptr = grad_delta.mutable_data_ptr<T>();
        const T* grad_ptr = g.const_data_ptr<T>();
        // Partial sums, which are the same for any number of threads.
        const int64_t groups = (channels + GROUP - 1) / GROUP;
        std::vector<double> rate_sums(batch * channels), bias_sums(batch * channels);
        std::vector<Accumulated> write_sums(batch * groups * vertices);
        tasks.for_each_block(GROUP, [&](TreeSchedule tree, int64_t item, int64_t channel, int64_t size) {
            Workspace workspace;
            auto take = [&](int64_t count) { return workspace.take<Accumulated>(count); };
            auto take_zeros = [&](int64_t count) {
                Accumulated* zeros = take(count);
                std::fill_n(zeros, count, Accumulated{0});
                return zeros;
            };
            auto in = arguments.select<T, softplus.value>(item, channel, size);
            const int64_t offset = item * vertices * channels + channel, window_size = tree.window_size();
            Rows<T> to_x{grad_x_ptr + offset, channels}, to_delta{grad_delta_ptr + offset, channels};
            Rows<Accumulated> decay{take(vertices * size), size}, grad_sum{take(vertices * size), size};
            Rows<Accumulated> window{take(window_size * size), size};
            Sums<T, Accumulated> sum(workspace, to_delta, vertices, size);
            SelectedGradients<Selection<T, softplus.value>> gradients{
                in,
                decay,
                grad_sum,
                sum.rows,
                to_x,
                to_delta,
                {take(2 * size), size},
                {take_zeros(size), rate_sums.data() + item * channels + channel},
                {take_zeros(size), bias_sums.data() + item * channels + channel},
                write_sums.data() + (item * groups + channel / GROUP) * vertices,
                vertices,
                take_zeros((size + SIMD_WIDTH - 1) / SIMD_WIDTH * SIMD_WIDTH)};
            scan_block_backward(tree, in, Rows<const T>{grad_ptr + offset, channels}, window, window_size, gradients);
        });
        auto add_items = [&](const std::vector<double>& sums, Tensor& to) {
            Accumulated* sum = to.mutable_data_ptr<Accumulated>();
            for (int64_t c = 0; c < channels; ++c) {
                double total = 0;
                for (int64_t item = 0; item < batch; ++item) total += sums[item * channels + c];
                sum[c] = static_cast<Accumulated>(total);
            }
        };
        add_items(rate_sums, grad_A);
        add_items(bias_sums, grad_delta_bias);
        T* to_write = grad_B.mutable_data_ptr<T>();
        for (int64_t item = 0; item < batch; ++item) {
            for (int64_t v = 0; v < vertices; ++v) {
                Accumulated total = 0;
                for (int64_t i = 0; i < groups; ++i) total += write_sums[(item * groups + i) * vertices + v];
                to_write[item * vertices + v] = static_cast<T>(total);
            }
        }
    });
    return {grad_x, grad_delta, grad_A, grad_B, grad_delta_bias};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    m.impl("selective_tree_scan", TORCH_BOX(&grootv::selective_tree_scan));
    m.impl("selective_tree_scan_backward", TORCH_BOX(&grootv::selective_tree_scan_backward));
}
