// The states of a tile of channels are a few rows: that of a token is given up as soon as its parent has received it.
// Only the backward pass keeps those of all tokens. Their number is padded with zeros to a multiple of SIMD_WIDTH.
#include "token_scan.h"

#include <algorithm>
#include <vector>

#include "cpu/elementary.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/token_walk.h"
#include "cpu/workspace.h"

namespace grootv {
namespace {

constexpr int64_t TILE = 16;          // channels at once
constexpr int64_t SUM_CHANNELS = 64;  // whose shares of grad_B and grad_C are one partial sum
constexpr int64_t SUM_TOKENS = 64;    // whose shares of grad_A are one partial sum

template <class acc_t>
GROOTV_INLINE Simd<acc_t> decay(acc_t step, const acc_t* A) {
    acc_t factors[SIMD_WIDTH];
    for (int64_t n = 0; n < SIMD_WIDTH; ++n) factors[n] = vector_exp(step * A[n]);
    return load(factors);
}

// What a tile of one sequence reads. x and step are rows of TILE channels, B and C of `states` states; A is a row of
// states per channel.
template <class acc_t>
struct TokenInputs {
    const acc_t *x, *step, *B, *C, *A;
    int64_t states;
};

// Adds what the children sent to the signal of a token, and sends the state that this makes to the parent.
template <class acc_t>
GROOTV_INLINE Simd<acc_t> pass_state(const TokenVisit& visit, Simd<acc_t> signal, const acc_t* parent_step,
                                     const acc_t* A, const acc_t* row, acc_t* parent_row) {
    Simd<acc_t> state = signal;
    if (visit.received) state += load(row);
    if (visit.parent < 0) return state;
    Simd<acc_t> sent = decay(*parent_step, A) * state;
    if (visit.parent_received) sent += load(parent_row);
    store(parent_row, sent);
    return state;
}

// h = what the children sent + step x B; y = sum of C h.
template <class acc_t>
GROOTV_VECTORIZE void scan_tile(TokenWalk walk, const TokenInputs<acc_t>& in, acc_t* rows, acc_t* y, acc_t* last) {
    const int64_t states = in.states, row_size = TILE * states;
    for (int64_t i = 0; i < walk.length; ++i) {
        const TokenVisit visit = walk.visits[i];
        const acc_t *x = in.x + visit.token * TILE, *step = in.step + visit.token * TILE;
        const acc_t *B = in.B + visit.token * states, *C = in.C + visit.token * states;
        acc_t *row = rows + visit.row * row_size, *parent_row = rows + visit.parent_row * row_size;
        for (int64_t c = 0; c < TILE; ++c) {
            const acc_t signal = step[c] * x[c];
            Simd<acc_t> output{};
            for (int64_t n = 0; n < states; n += SIMD_WIDTH) {
                const int64_t at = c * states + n;
                const Simd<acc_t> state =
                    pass_state(visit, signal * load(B + n), step + TILE + c, in.A + at, row + at, parent_row + at);
                output += load(C + n) * state;
                if (visit.parent < 0) store(last + at, state);
            }
            y[visit.token * TILE + c] = sum<acc_t>(output);
        }
    }
}

template <class acc_t>
struct TokenGradients {
    acc_t *x, *step;  // rows of TILE channels
    acc_t *B, *C;     // rows of states, to which the tiles of SUM_CHANNELS channels add
    acc_t* A;         // a row of states per channel
    double* A_sum;    // the same, over all tokens so far
};

// states: rows of TILE * states for every token, filled and used up. grad: rows of TILE channels. grad_last: a row
// of states per channel.
template <class acc_t>
GROOTV_VECTORIZE void scan_tile_backward(TokenWalk walk, const TokenInputs<acc_t>& in, const acc_t* grad,
                                         const acc_t* grad_last, acc_t* rows, const TokenGradients<acc_t>& to) {
    const int64_t states = in.states, row_size = TILE * states;
    for (int64_t i = 0; i < walk.length; ++i) {
        const TokenVisit visit = walk.visits[i];
        const acc_t *x = in.x + visit.token * TILE, *step = in.step + visit.token * TILE;
        const acc_t* B = in.B + visit.token * states;
        acc_t* row = rows + visit.token * row_size;
        acc_t* parent_row = visit.parent < 0 ? row : rows + visit.parent * row_size;
        for (int64_t c = 0; c < TILE; ++c) {
            const acc_t signal = step[c] * x[c];
            for (int64_t n = 0; n < states; n += SIMD_WIDTH) {
                const int64_t at = c * states + n;
                store(row + at,
                      pass_state(visit, signal * load(B + n), step + TILE + c, in.A + at, row + at, parent_row + at));
            }
        }
    }
    // From the root: a row of states becomes the gradient of these states, which the children read.
    int64_t chunk = 0;
    for (int64_t i = walk.length - 1; i >= 0; --i) {
        const TokenVisit visit = walk.visits[i];
        const int64_t token = visit.token;
        const acc_t *x = in.x + token * TILE, *step = in.step + token * TILE;
        const acc_t *B = in.B + token * states, *C = in.C + token * states;
        const acc_t* grad_y = grad + token * TILE;
        const acc_t* parent_row = visit.parent < 0 ? rows : rows + visit.parent * row_size;
        acc_t *row = rows + token * row_size, *grad_step = to.step + token * TILE;
        acc_t *grad_B = to.B + token * states, *grad_C = to.C + token * states;
        for (int64_t c = 0; c < TILE; ++c) {
            const acc_t signal = step[c] * x[c];
            Simd<acc_t> from_signal{}, from_decay{};
            for (int64_t n = 0; n < states; n += SIMD_WIDTH) {
                const int64_t at = c * states + n;
                const Simd<acc_t> state = load(row + at);
                Simd<acc_t> gradient = grad_y[c] * load(C + n);
                if (visit.parent < 0) {
                    gradient += load(grad_last + at);
                } else {
                    const acc_t* A = in.A + at;
                    const Simd<acc_t> from_parent = decay(step[TILE + c], A) * load(parent_row + at);
                    const Simd<acc_t> exponent = from_parent * state;
                    gradient += from_parent;
                    from_decay += exponent * load(A);
                    store(to.A + at, load(to.A + at) + step[TILE + c] * exponent);
                }
                from_signal += gradient * load(B + n);
                store(grad_B + n, load(grad_B + n) + signal * gradient);
                store(grad_C + n, load(grad_C + n) + grad_y[c] * state);
                store(row + at, gradient);
            }
            const acc_t grad_signal = sum<acc_t>(from_signal);
            to.x[token * TILE + c] = grad_signal * step[c];
            grad_step[c] += grad_signal * x[c];
            if (visit.parent >= 0) grad_step[TILE + c] += sum<acc_t>(from_decay);
        }
        if (++chunk % SUM_TOKENS == 0 || i == 0) {
            for (int64_t at = 0; at < row_size; ++at) {
                to.A_sum[at] += static_cast<double>(to.A[at]);
                to.A[at] = 0;
            }
        }
    }
}

// step: rows of TILE channels of delta, to which the bias is added.
template <class acc_t>
GROOTV_VECTORIZE void tile_steps(acc_t* step, const acc_t* bias, int64_t length, bool delta_softplus) {
    for (int64_t t = 0; t < length; ++t) {
        acc_t* row = step + t * TILE;
        for (int64_t c = 0; c < TILE; ++c) row[c] += bias[c];
        if (delta_softplus)
            for (int64_t c = 0; c < TILE; ++c) row[c] = softplus(row[c]);
    }
}

// grad_step: rows of TILE channels, which become the gradient of delta. bias_sum: one value per channel.
template <class acc_t>
GROOTV_VECTORIZE void tile_steps_backward(const acc_t* delta, const acc_t* bias, int64_t length, bool delta_softplus,
                                          acc_t* grad_step, double* bias_sum) {
    for (int64_t t = 0; t < length; ++t) {
        acc_t* row = grad_step + t * TILE;
        if (delta_softplus)
            for (int64_t c = 0; c < TILE; ++c) row[c] *= softplus_slope(delta[t * TILE + c] + bias[c]);
        for (int64_t c = 0; c < TILE; ++c) bias_sum[c] += static_cast<double>(row[c]);
    }
}

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

// The arguments in tiles, in the type of the sums.
template <class scalar_t>
class TokenReader {
public:
    using acc_t = acc_type<scalar_t>;

    TokenReader(const TokenScanArguments& scan, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                const Tensor& C, const std::optional<Tensor>& delta_bias, bool delta_softplus)
        : scan(scan),
          delta_softplus(delta_softplus),
          states((scan.states + SIMD_WIDTH - 1) / SIMD_WIDTH * SIMD_WIDTH),
          x_(as_contiguous(x)),
          delta_(as_contiguous(delta)),
          A_(as_contiguous(A)),
          B_(as_contiguous(B)),
          C_(as_contiguous(C)),
          delta_bias_(delta_bias ? as_contiguous(*delta_bias) : make_zeros(A, {scan.channels})) {}

    // B and C of a sequence.
    void read_sequence(Workspace& workspace, int64_t item, TokenInputs<acc_t>& in) const {
        in.states = states;
        in.B = take_states(workspace, B_, item);
        in.C = take_states(workspace, C_, item);
    }

    // The rest of a tile; delta keeps what step is made of.
    void read_tile(int64_t item, int64_t channel, int64_t channels, acc_t* x, acc_t* delta, acc_t* step, acc_t* A,
                   acc_t* delta_bias, TokenInputs<acc_t>& in) const {
        const int64_t offset = item * scan.length * scan.channels + channel;
        gather(x_.template const_data_ptr<scalar_t>() + offset, scan.channels, scan.length, channels, TILE, x);
        gather(delta_.template const_data_ptr<scalar_t>() + offset, scan.channels, scan.length, channels, TILE, step);
        if (delta) std::copy_n(step, scan.length * TILE, delta);
        std::fill_n(A, TILE * states, acc_t{0});
        gather(A_.template const_data_ptr<acc_t>() + channel * scan.states, scan.states, channels, scan.states, states,
               A);
        gather(delta_bias_.template const_data_ptr<acc_t>() + channel, 0, 1, channels, TILE, delta_bias);
        tile_steps(step, delta_bias, scan.length, delta_softplus);
        in.x = x, in.step = step, in.A = A;
    }

    const TokenScanArguments& scan;
    const bool delta_softplus;
    const int64_t states;

private:
    const acc_t* take_states(Workspace& workspace, const Tensor& from, int64_t item) const {
        auto* rows = workspace.take<acc_t>(scan.length * states);
        gather(from.const_data_ptr<scalar_t>() + item * scan.length * scan.states, scan.states, scan.length,
               scan.states, states, rows);
        return rows;
    }

    Tensor x_, delta_, A_, B_, C_, delta_bias_;
};

std::tuple<Tensor, Tensor> token_scan(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                                      const Tensor& C, const std::optional<Tensor>& delta_bias, const Tensor& order,
                                      const Tensor& parent, bool delta_softplus) {
    TokenScanArguments scan("token_scan", x, delta, A, B, C, delta_bias, order, parent);
    TokenWalks walks(scan, order, parent);
    const int64_t length = scan.length, channels = scan.channels, states = scan.states;
    Tensor output = make_empty(x, {scan.batch, length, channels});
    Tensor state = make_empty(A, {scan.batch, channels, states});
    dispatch_floating(x, [&]<class scalar_t>(scalar_t) {
        using acc_t = acc_type<scalar_t>;
        TokenReader<scalar_t> reader(scan, x, delta, A, B, C, delta_bias, delta_softplus);
        const int64_t groups = (channels + SUM_CHANNELS - 1) / SUM_CHANNELS;
        parallel_for_each(scan.function, scan.batch * groups, [&](int64_t task) {
            const int64_t item = task / groups, first = task % groups * SUM_CHANNELS, row = TILE * reader.states;
            Workspace workspace;
            auto take = [&](int64_t count) { return workspace.take<acc_t>(count); };
            const TokenWalk walk = walks[item];
            TokenInputs<acc_t> in;
            reader.read_sequence(workspace, item, in);
            auto *signal = take(length * TILE), *step = take(length * TILE), *y = take(length * TILE);
            auto *A_rows = take(row), *bias = take(TILE), *rows = take(walk.rows * row), *last = take(row);
            for (int64_t channel = first; channel < std::min(first + SUM_CHANNELS, channels); channel += TILE) {
                const int64_t count = std::min(TILE, channels - channel);
                reader.read_tile(item, channel, count, signal, nullptr, step, A_rows, bias, in);
                scan_tile(walk, in, rows, y, last);
                scatter(y, TILE, length, count,
                        output.mutable_data_ptr<scalar_t>() + item * length * channels + channel, channels);
                scatter(last, reader.states, count, states,
                        state.mutable_data_ptr<acc_t>() + (item * channels + channel) * states, states);
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
    TokenWalks walks(scan, order, parent);
    const int64_t batch = scan.batch, length = scan.length, channels = scan.channels, states = scan.states;
    Tensor g = as_contiguous(grad), g_state = as_contiguous(grad_state);
    Tensor grad_x = make_empty(x, {batch, length, channels});
    Tensor grad_delta = make_empty(x, {batch, length, channels});
    Tensor grad_B = make_empty(x, {batch, length, states});
    Tensor grad_C = make_empty(x, {batch, length, states});
    Tensor grad_A = make_empty(A, {channels, states});
    Tensor grad_delta_bias = make_empty(A, {channels});
    dispatch_floating(x, [&]<class scalar_t>(scalar_t) {
        using acc_t = acc_type<scalar_t>;
        TokenReader<scalar_t> reader(scan, x, delta, A, B, C, delta_bias, delta_softplus);
        const int64_t padded = reader.states, row = TILE * padded;
        const int64_t groups = (channels + SUM_CHANNELS - 1) / SUM_CHANNELS;
        std::vector<double> A_sums(batch * groups * SUM_CHANNELS * padded), bias_sums(batch * groups * SUM_CHANNELS);
        std::vector<acc_t> B_sums(batch * groups * length * padded), C_sums(batch * groups * length * padded);
        parallel_for_each(scan.function, batch * groups, [&](int64_t task) {
            const int64_t item = task / groups, first = task % groups * SUM_CHANNELS;
            Workspace workspace;
            auto take = [&](int64_t count) { return workspace.take<acc_t>(count); };
            const TokenWalk walk = walks[item];
            TokenInputs<acc_t> in;
            reader.read_sequence(workspace, item, in);
            auto *signal = take(length * TILE), *raw = take(length * TILE), *step = take(length * TILE);
            auto *grad_y = take(length * TILE), *grad_last = take(row), *A_rows = take(row), *bias = take(TILE);
            auto *to_x = take(length * TILE), *to_step = take(length * TILE), *to_A_tile = take(row);
            auto* rows = take(length * row);
            advise_huge_pages(rows, length * row * sizeof(acc_t));
            for (int64_t channel = first; channel < std::min(first + SUM_CHANNELS, channels); channel += TILE) {
                const int64_t count = std::min(TILE, channels - channel);
                const int64_t offset = item * length * channels + channel;
                const int64_t padded_channel = task * SUM_CHANNELS + channel - first;
                reader.read_tile(item, channel, count, signal, raw, step, A_rows, bias, in);
                gather(g.const_data_ptr<scalar_t>() + offset, channels, length, count, TILE, grad_y);
                std::fill_n(grad_last, row, acc_t{0});
                gather(g_state.const_data_ptr<acc_t>() + (item * channels + channel) * states, states, count, states,
                       padded, grad_last);
                std::fill_n(to_step, length * TILE, acc_t{0});
                std::fill_n(to_A_tile, row, acc_t{0});
                scan_tile_backward(
                    walk, in, grad_y, grad_last, rows,
                    {to_x, to_step, B_sums.data() + task * length * padded, C_sums.data() + task * length * padded,
                     to_A_tile, A_sums.data() + padded_channel * padded});
                tile_steps_backward(raw, bias, length, delta_softplus, to_step, bias_sums.data() + padded_channel);
                scatter(to_x, TILE, length, count, grad_x.mutable_data_ptr<scalar_t>() + offset, channels);
                scatter(to_step, TILE, length, count, grad_delta.mutable_data_ptr<scalar_t>() + offset, channels);
            }
        });

        const int64_t item_channels = groups * SUM_CHANNELS;
        add_parts<double>(bias_sums.data(), batch, item_channels, channels, grad_delta_bias.mutable_data_ptr<acc_t>());
        for (int64_t c = 0; c < channels; ++c)
            add_parts<double>(A_sums.data() + c * padded, batch, item_channels * padded, states,
                              grad_A.mutable_data_ptr<acc_t>() + c * states);
        auto add_groups = [&](const std::vector<acc_t>& sums, scalar_t* to) {
            parallel_for_each(scan.function, batch * length, [&](int64_t token) {
                const int64_t row = token / length * groups * length + token % length;
                add_parts<acc_t>(sums.data() + row * padded, groups, length * padded, states, to + token * states);
            });
        };
        add_groups(B_sums, grad_B.mutable_data_ptr<scalar_t>());
        add_groups(C_sums, grad_C.mutable_data_ptr<scalar_t>());
    });
    return {grad_x, grad_delta, grad_A, grad_B, grad_C, grad_delta_bias};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    GROOTV_IMPL(m, token_scan);
    GROOTV_IMPL(m, token_scan_backward);
}
