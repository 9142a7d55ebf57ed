// The states of a block of channels are a few rows: that of a token is given up as soon as its parent has heard it.
// Only the backward pass keeps those of all tokens. Their number is padded with zeros to a multiple of SIMD_WIDTH.
#include "token_scan.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "cpu/elementary.h"
#include "cpu/huge_pages.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/token_walk.h"
#include "cpu/vectorize.h"
#include "cpu/workspace.h"

namespace grootv {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t BLOCK = 16;  // channels at once
constexpr int64_t GROUP = 64;  // channels whose share of grad_B and grad_C is one partial sum
constexpr int64_t FLUSH = 64;  // tokens whose share of grad_A is one partial sum

template <class A>
GROOTV_INLINE Lanes<A> exp(A step, const A* rate) {
    A decay[SIMD_WIDTH];
    for (int64_t n = 0; n < SIMD_WIDTH; ++n) decay[n] = vector_exp(step * rate[n]);
    return load(decay);
}

// What a task reads, for a block of channels of one sequence. x and step are rows of BLOCK channels, B and C of
// `states` states; rate is a row of states per channel.
template <class A>
struct Selection {
    const A *x, *step, *write, *read, *rate;
    int64_t states;
};

// h = what the children sent + step x B; y = sum of C h.
template <class A>
GROOTV_INLINE void scan(Walk walk, const Selection<A>& in, A* rows, A* y, A* last) {
    const int64_t states = in.states, row_size = BLOCK * states;
    for (int64_t i = 0; i < walk.length; ++i) {
        const Visit visit = walk.visits[i];
        const A *x = in.x + visit.token * BLOCK, *step = in.step + visit.token * BLOCK;
        const A *write = in.write + visit.token * states, *read = in.read + visit.token * states;
        A *row = rows + visit.row * row_size, *parent_row = rows + visit.parent_row * row_size;
        for (int64_t c = 0; c < BLOCK; ++c) {
            const A signal = step[c] * x[c];
            Lanes<A> output{};
            for (int64_t n = 0; n < states; n += SIMD_WIDTH) {
                const int64_t at = c * states + n;
                Lanes<A> state = signal * load(write + n);
                if (visit.heard) state += load(row + at);
                output += load(read + n) * state;
                if (visit.parent < 0) {
                    store(last + at, state);
                    continue;
                }
                Lanes<A> sent = exp(step[BLOCK + c], in.rate + at) * state;
                if (visit.parent_heard) sent += load(parent_row + at);
                store(parent_row + at, sent);
            }
            y[visit.token * BLOCK + c] = sum<A>(output);
        }
    }
}

template <class A>
struct Gradients {
    A *x, *step;       // rows of BLOCK channels
    A *write, *read;   // rows of states, shared by the blocks of a group
    A* rate;           // a row of states per channel
    double* rate_sum;  // the same, over all tokens so far
};

// states: rows of BLOCK * states for every token, filled and used up. grad: rows of BLOCK channels. grad_last: a row
// of states per channel.
template <class A>
GROOTV_INLINE void scan_backward(Walk walk, const Selection<A>& in, const A* grad, const A* grad_last, A* rows,
                                 const Gradients<A>& to) {
    const int64_t states = in.states, row_size = BLOCK * states;
    for (int64_t i = 0; i < walk.length; ++i) {
        const Visit visit = walk.visits[i];
        const A *x = in.x + visit.token * BLOCK, *step = in.step + visit.token * BLOCK;
        const A* write = in.write + visit.token * states;
        A *row = rows + visit.token * row_size, *parent_row = visit.parent < 0 ? row : rows + visit.parent * row_size;
        for (int64_t c = 0; c < BLOCK; ++c) {
            const A signal = step[c] * x[c];
            for (int64_t n = 0; n < states; n += SIMD_WIDTH) {
                const int64_t at = c * states + n;
                Lanes<A> state = signal * load(write + n);
                if (visit.heard) state += load(row + at);
                store(row + at, state);
                if (visit.parent < 0) continue;
                Lanes<A> sent = exp(step[BLOCK + c], in.rate + at) * state;
                if (visit.parent_heard) sent += load(parent_row + at);
                store(parent_row + at, sent);
            }
        }
    }
    // From the root: a row of states becomes the gradient of these states, for the children to read.
    int64_t chunk = 0;
    for (int64_t i = walk.length - 1; i >= 0; --i) {
        const Visit visit = walk.visits[i];
        const int64_t token = visit.token;
        const A *x = in.x + token * BLOCK, *step = in.step + token * BLOCK;
        const A *write = in.write + token * states, *read = in.read + token * states;
        const A* grad_y = grad + token * BLOCK;
        const A* parent_row = visit.parent < 0 ? rows : rows + visit.parent * row_size;
        A *row = rows + token * row_size, *grad_step = to.step + token * BLOCK;
        A *grad_write = to.write + token * states, *grad_read = to.read + token * states;
        for (int64_t c = 0; c < BLOCK; ++c) {
            const A signal = step[c] * x[c];
            Lanes<A> from_signal{}, from_decay{};
            for (int64_t n = 0; n < states; n += SIMD_WIDTH) {
                const int64_t at = c * states + n;
                const Lanes<A> state = load(row + at);
                Lanes<A> gradient = grad_y[c] * load(read + n);
                if (visit.parent < 0) {
                    gradient += load(grad_last + at);
                } else {
                    const A* rate = in.rate + at;
                    const Lanes<A> heard = exp(step[BLOCK + c], rate) * load(parent_row + at);
                    const Lanes<A> exponent = heard * state;
                    gradient += heard;
                    from_decay += exponent * load(rate);
                    store(to.rate + at, load(to.rate + at) + step[BLOCK + c] * exponent);
                }
                from_signal += gradient * load(write + n);
                store(grad_write + n, load(grad_write + n) + signal * gradient);
                store(grad_read + n, load(grad_read + n) + grad_y[c] * state);
                store(row + at, gradient);
            }
            const A grad_signal = sum<A>(from_signal);
            to.x[token * BLOCK + c] = grad_signal * step[c];
            grad_step[c] += grad_signal * x[c];
            if (visit.parent >= 0) grad_step[BLOCK + c] += sum<A>(from_decay);
        }
        if (++chunk % FLUSH == 0 || i == 0) {
            for (int64_t at = 0; at < row_size; ++at) {
                to.rate_sum[at] += static_cast<double>(to.rate[at]);
                to.rate[at] = 0;
            }
        }
    }
}

// step: rows of BLOCK channels of delta, to which the bias is added.
template <class A>
GROOTV_INLINE void to_steps(A* step, const A* bias, int64_t length, bool delta_softplus) {
    for (int64_t t = 0; t < length; ++t) {
        A* row = step + t * BLOCK;
        for (int64_t c = 0; c < BLOCK; ++c) row[c] += bias[c];
        if (delta_softplus)
            for (int64_t c = 0; c < BLOCK; ++c) row[c] = softplus(row[c]);
    }
}

// grad_step: rows of BLOCK channels, which become the gradient of delta. bias_sum: one value per channel.
template <class A>
GROOTV_INLINE void through_steps(const A* delta, const A* bias, int64_t length, bool delta_softplus, A* grad_step,
                                 double* bias_sum) {
    for (int64_t t = 0; t < length; ++t) {
        A* row = grad_step + t * BLOCK;
        if (delta_softplus)
            for (int64_t c = 0; c < BLOCK; ++c) row[c] *= softplus_slope(delta[t * BLOCK + c] + bias[c]);
        for (int64_t c = 0; c < BLOCK; ++c) bias_sum[c] += static_cast<double>(row[c]);
    }
}

#define GROOTV_INSTANTIATE(A)                                                                                       \
    GROOTV_VECTORIZE void scan_block(Walk walk, const Selection<A>& in, A* rows, A* y, A* last) {                   \
        scan(walk, in, rows, y, last);                                                                              \
    }                                                                                                               \
    GROOTV_VECTORIZE void scan_block_backward(Walk walk, const Selection<A>& in, const A* grad, const A* grad_last, \
                                              A* rows, const Gradients<A>& to) {                                    \
        scan_backward(walk, in, grad, grad_last, rows, to);                                                         \
    }                                                                                                               \
    GROOTV_VECTORIZE void block_steps(A* step, const A* bias, int64_t length, bool delta_softplus) {                \
        to_steps(step, bias, length, delta_softplus);                                                               \
    }                                                                                                               \
    GROOTV_VECTORIZE void block_steps_backward(const A* delta, const A* bias, int64_t length, bool softplus,        \
                                               A* grad_step, double* bias_sum) {                                    \
        through_steps(delta, bias, length, softplus, grad_step, bias_sum);                                          \
    }
GROOTV_INSTANTIATE(float)
GROOTV_INSTANTIATE(double)
#undef GROOTV_INSTANTIATE

// Copies rows of `count` elements, with zeros up to `padded`.
template <class From, class To>
void gather(const From* from, int64_t stride, int64_t rows, int64_t count, int64_t padded, To* to) {
    for (int64_t i = 0; i < rows; ++i, from += stride, to += padded) {
        for (int64_t j = 0; j < count; ++j) to[j] = static_cast<To>(from[j]);
        std::fill(to + count, to + padded, To{0});
    }
}

template <class From, class To>
void scatter(const From* from, int64_t stride, int64_t rows, int64_t count, To* to, int64_t to_stride) {
    for (int64_t i = 0; i < rows; ++i, from += stride, to += to_stride)
        for (int64_t j = 0; j < count; ++j) to[j] = static_cast<To>(from[j]);
}

// Contiguous arguments, and a task's part of them in the type of the sums.
template <class T>
class Arguments {
public:
    using A = acc_type<T>;

    Arguments(const TokenScanArguments& scan, const Tensor& x, const Tensor& delta, const Tensor& rate,
              const Tensor& write, const Tensor& read, const std::optional<Tensor>& bias, bool delta_softplus)
        : scan(scan),
          delta_softplus(delta_softplus),
          states((scan.states + SIMD_WIDTH - 1) / SIMD_WIDTH * SIMD_WIDTH),
          x_(as_contiguous(x)),
          delta_(as_contiguous(delta)),
          rate_(as_contiguous(rate)),
          write_(as_contiguous(write)),
          read_(as_contiguous(read)),
          bias_(bias ? as_contiguous(*bias) : torch::stable::new_zeros(rate, {scan.channels})) {}

    // B and C of a sequence.
    void read_sequence(Workspace& workspace, int64_t item, Selection<A>& in) const {
        in.states = states;
        in.write = take_states(workspace, write_, item);
        in.read = take_states(workspace, read_, item);
    }

    // The rest of a block of channels; delta keeps what step is made of.
    void read_block(int64_t item, int64_t channel, int64_t channels, A* x, A* delta, A* step, A* rate, A* bias,
                    Selection<A>& in) const {
        const int64_t offset = item * scan.length * scan.channels + channel;
        gather(x_.template const_data_ptr<T>() + offset, scan.channels, scan.length, channels, BLOCK, x);
        gather(delta_.template const_data_ptr<T>() + offset, scan.channels, scan.length, channels, BLOCK, step);
        if (delta) std::copy_n(step, scan.length * BLOCK, delta);
        std::fill_n(rate, BLOCK * states, A{0});
        gather(rate_.template const_data_ptr<A>() + channel * scan.states, scan.states, channels, scan.states, states,
               rate);
        gather(bias_.template const_data_ptr<A>() + channel, 0, 1, channels, BLOCK, bias);
        block_steps(step, bias, scan.length, delta_softplus);
        in.x = x, in.step = step, in.rate = rate;
    }

    const TokenScanArguments& scan;
    const bool delta_softplus;
    const int64_t states;

private:
    const A* take_states(Workspace& workspace, const Tensor& from, int64_t item) const {
        auto* rows = workspace.take<A>(scan.length * states);
        gather(from.const_data_ptr<T>() + item * scan.length * scan.states, scan.states, scan.length, scan.states,
               states, rows);
        return rows;
    }

    Tensor x_, delta_, rate_, write_, read_, bias_;
};

std::tuple<Tensor, Tensor> token_scan(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                                      const Tensor& C, const std::optional<Tensor>& delta_bias, const Tensor& order,
                                      const Tensor& parent, bool delta_softplus) {
    TokenScanArguments scan("token_scan", x, delta, A, B, C, delta_bias, order, parent);
    Walks walks(scan, order, parent);
    const int64_t length = scan.length, channels = scan.channels, states = scan.states;
    Tensor output = torch::stable::new_empty(x, {scan.batch, length, channels});
    Tensor state = torch::stable::new_empty(A, {scan.batch, channels, states});
    dispatch_floating(x, [&](auto zero) {
        using T = decltype(zero);
        using Accumulated = acc_type<T>;
        Arguments<T> arguments(scan, x, delta, A, B, C, delta_bias, delta_softplus);
        T* output_ptr = output.mutable_data_ptr<T>();
        auto* state_ptr = state.mutable_data_ptr<Accumulated>();
        const int64_t groups = (channels + GROUP - 1) / GROUP;
        parallel_for_each(scan.function, scan.batch * groups, [&](int64_t task) {
            const int64_t item = task / groups, first = task % groups * GROUP, row = BLOCK * arguments.states;
            Workspace workspace;
            auto take = [&](int64_t count) { return workspace.take<Accumulated>(count); };
            const Walk walk = walks[item];
            Selection<Accumulated> in;
            arguments.read_sequence(workspace, item, in);
            auto *signal = take(length * BLOCK), *step = take(length * BLOCK), *y = take(length * BLOCK);
            auto *rate = take(row), *bias = take(BLOCK), *rows = take(walk.rows * row), *last = take(row);
            for (int64_t channel = first; channel < std::min(first + GROUP, channels); channel += BLOCK) {
                const int64_t count = std::min(BLOCK, channels - channel);
                arguments.read_block(item, channel, count, signal, nullptr, step, rate, bias, in);
                scan_block(walk, in, rows, y, last);
                scatter(y, BLOCK, length, count, output_ptr + item * length * channels + channel, channels);
                scatter(last, arguments.states, count, states, state_ptr + (item * channels + channel) * states,
                        states);
            }
        });
    });
    return {output, state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> token_scan_backward(
    const Tensor& grad, const Tensor& grad_state, const Tensor& x, const Tensor& delta, const Tensor& A,
    const Tensor& B, const Tensor& C, const std::optional<Tensor>& delta_bias, const Tensor& order,
    const Tensor& parent, bool delta_softplus) {
    TokenScanArguments scan("token_scan_backward", x, delta, A, B, C, delta_bias, order, parent);
    scan.check_grads(grad, grad_state, x);
    Walks walks(scan, order, parent);
    const int64_t batch = scan.batch, length = scan.length, channels = scan.channels, states = scan.states;
    Tensor g = as_contiguous(grad), g_state = as_contiguous(grad_state);
    Tensor grad_x = torch::stable::new_empty(x, {batch, length, channels});
    Tensor grad_delta = torch::stable::new_empty(x, {batch, length, channels});
    Tensor grad_B = torch::stable::new_empty(x, {batch, length, states});
    Tensor grad_C = torch::stable::new_empty(x, {batch, length, states});
    Tensor grad_A = torch::stable::new_empty(A, {channels, states});
    Tensor grad_delta_bias = torch::stable::new_empty(A, {channels});
    dispatch_floating(x, [&](auto zero) {
        using T = decltype(zero);
        using Accumulated = acc_type<T>;
        Arguments<T> arguments(scan, x, delta, A, B, C, delta_bias, delta_softplus);
        const T* grad_ptr = g.const_data_ptr<T>();
        const auto* grad_state_ptr = g_state.const_data_ptr<Accumulated>();
        T *grad_x_ptr = grad_x.mutable_data_ptr<T>(), *grad_delta_ptr = grad_delta.mutable_data_ptr<T>();
        const int64_t padded = arguments.states, groups = (channels + GROUP - 1) / GROUP, row = BLOCK * padded;
        // Partial sums, which are the same for any number of threads.
        std::vector<double> rate_sums(batch * groups * GROUP * padded), bias_sums(batch * groups * GROUP);
        std::vector<Accumulated> write_sums(batch * groups * length * padded),
            read_sums(batch * groups * length * padded);
        parallel_for_each(scan.function, batch * groups, [&](int64_t task) {
            const int64_t item = task / groups, first = task % groups * GROUP;
            Workspace workspace;
            auto take = [&](int64_t count) { return workspace.take<Accumulated>(count); };
            const Walk walk = walks[item];
            Selection<Accumulated> in;
            arguments.read_sequence(workspace, item, in);
            auto *signal = take(length * BLOCK), *raw = take(length * BLOCK), *step = take(length * BLOCK);
            auto *grad_y = take(length * BLOCK), *grad_last = take(row), *rate = take(row), *bias = take(BLOCK);
            auto *to_x = take(length * BLOCK), *to_step = take(length * BLOCK), *to_rate = take(row);
            auto* rows = take(length * row);
            advise_huge_pages(rows, length * row * sizeof(Accumulated));
            for (int64_t channel = first; channel < std::min(first + GROUP, channels); channel += BLOCK) {
                const int64_t count = std::min(BLOCK, channels - channel);
                const int64_t offset = item * length * channels + channel;
                const int64_t padded_channel = task * GROUP + channel - first;
                arguments.read_block(item, channel, count, signal, raw, step, rate, bias, in);
                gather(grad_ptr + offset, channels, length, count, BLOCK, grad_y);
                std::fill_n(grad_last, row, Accumulated{0});
                gather(grad_state_ptr + (item * channels + channel) * states, states, count, states, padded, grad_last);
                std::fill_n(to_step, length * BLOCK, Accumulated{0});
                std::fill_n(to_rate, row, Accumulated{0});
                scan_block_backward(
                    walk, in, grad_y, grad_last, rows,
                    {to_x, to_step, write_sums.data() + task * length * padded,
                     read_sums.data() + task * length * padded, to_rate, rate_sums.data() + padded_channel * padded});
                block_steps_backward(raw, bias, length, delta_softplus, to_step, bias_sums.data() + padded_channel);
                scatter(to_x, BLOCK, length, count, grad_x_ptr + offset, channels);
                scatter(to_step, BLOCK, length, count, grad_delta_ptr + offset, channels);
            }
        });

        auto* to_A = grad_A.mutable_data_ptr<Accumulated>();
        auto* to_bias = grad_delta_bias.mutable_data_ptr<Accumulated>();
        for (int64_t c = 0; c < channels; ++c) {
            auto total = [&](const std::vector<double>& sums, int64_t width, int64_t n) {
                double sum = 0;
                for (int64_t item = 0; item < batch; ++item) sum += sums[(item * groups * GROUP + c) * width + n];
                return static_cast<Accumulated>(sum);
            };
            to_bias[c] = total(bias_sums, 1, 0);
            for (int64_t n = 0; n < states; ++n) to_A[c * states + n] = total(rate_sums, padded, n);
        }
        auto add_groups = [&](const std::vector<Accumulated>& sums, T* to) {
            parallel_for_each(scan.function, batch, [&](int64_t item) {
                for (int64_t t = 0; t < length; ++t) {
                    for (int64_t n = 0; n < states; ++n) {
                        Accumulated total = 0;
                        for (int64_t i = 0; i < groups; ++i)
                            total += sums[((item * groups + i) * length + t) * padded + n];
                        to[(item * length + t) * states + n] = static_cast<T>(total);
                    }
                }
            });
        };
        add_groups(write_sums, grad_B.mutable_data_ptr<T>());
        add_groups(read_sums, grad_C.mutable_data_ptr<T>());
    });
    return {grad_x, grad_delta, grad_A, grad_B, grad_C, grad_delta_bias};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    m.impl("token_scan", TORCH_BOX(&grootv::token_scan));
    m.impl("token_scan_backward", TORCH_BOX(&grootv::token_scan_backward));
}
