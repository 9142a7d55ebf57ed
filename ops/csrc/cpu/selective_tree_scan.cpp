// The tree scan of decay exp(d A) and signal d B x, which are computed on the way and never stored as a whole.
#include <algorithm>
#include <vector>

#include "cpu/elementary.h"
#include "cpu/scan_passes.h"
#include "cpu/simd.h"

namespace grootv {
namespace {

constexpr int64_t SUM_CHANNELS = 64;  // whose shares of grad_B are one partial sum, whatever the tiles
constexpr int64_t SUM_VERTICES = 64;  // whose shares of grad_A and grad_delta_bias are one partial sum

// What a tile reads.
template <class scalar_t, bool SOFTPLUS>
struct SelectiveScanInputs {
    using acc_t = acc_type<scalar_t>;

    TileRows<const scalar_t> x, delta;
    const scalar_t* B;            // by vertex
    const acc_t *A, *delta_bias;  // by channel
    int64_t channels;

    GROOTV_INLINE void prefetch(int64_t vertex) const {
        grootv::prefetch(x, vertex, channels);
        grootv::prefetch(delta, vertex, channels);
    }

    GROOTV_INLINE static acc_t step(acc_t shifted) {
        if constexpr (SOFTPLUS) return softplus(shifted);
        return shifted;
    }

    GROOTV_INLINE static acc_t step_slope(acc_t shifted) {
        if constexpr (SOFTPLUS) return softplus_slope(shifted);
        return 1;
    }
};

// The signal of the up pass. Its rows are where the pass puts its sums.
template <class Inputs, class acc_t = typename Inputs::acc_t>
struct SelectiveScanSignal {
    const Inputs& in;
    TileRows<acc_t> signal, decay;

    GROOTV_INLINE void prefetch(int64_t vertex) const { in.prefetch(vertex); }

    GROOTV_INLINE const acc_t* row(int64_t vertex) const {
        const auto *x = in.x[vertex], *delta = in.delta[vertex];
        const acc_t *A = in.A, *bias = in.delta_bias;
        const acc_t B = static_cast<acc_t>(in.B[vertex]);
        acc_t *to_signal = signal[vertex], *to_decay = decay[vertex];
        const int64_t channels = in.channels;
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const acc_t d = in.step(static_cast<acc_t>(delta[c]) + bias[c]);
            to_decay[c] = vector_exp(d * A[c]);
            to_signal[c] = d * (B * static_cast<acc_t>(x[c]));
        }
        return to_signal;
    }
};

// One sum per channel over the vertices of an item, in chunks: float32 alone would lose digits over a large map.
template <class acc_t>
struct ChannelSums {
    acc_t* chunk;
    double* total;

    GROOTV_INLINE void flush(int64_t channels) const {
        for (int64_t c = 0; c < channels; ++c) {
            total[c] += static_cast<double>(chunk[c]);
            chunk[c] = 0;
        }
    }
};

// Passes the gradients of signal and decay on to what these were computed from.
template <class scalar_t, bool SOFTPLUS, class acc_t = acc_type<scalar_t>>
struct SelectiveScanGradients {
    const SelectiveScanInputs<scalar_t, SOFTPLUS>& in;
    TileRows<acc_t> decay, grad_signal, grad_decay;
    TileRows<scalar_t> grad_x, grad_delta;  // grad_delta may be grad_decay
    TileRows<acc_t> wide;  // grad_x and grad_delta of one vertex before rounding, if scalar_t is not acc_t
    ChannelSums<acc_t> grad_A, grad_delta_bias;
    acc_t* grad_B;  // a row of vertices for every SUM_CHANNELS channels
    int64_t vertices;
    acc_t* term;  // shares of grad_B of one vertex, with zeros up to a multiple of SIMD_WIDTH
    int64_t chunk = 0;

    GROOTV_INLINE void prefetch(int64_t vertex) const { in.prefetch(vertex); }

    GROOTV_INLINE void finish(int64_t vertex) {
        const scalar_t *x = in.x[vertex], *delta = in.delta[vertex];
        const acc_t *A = in.A, *bias = in.delta_bias;
        const acc_t *a = decay[vertex], *from_signal = grad_signal[vertex], *from_decay = grad_decay[vertex];
        const acc_t B = static_cast<acc_t>(in.B[vertex]);
        acc_t *to_x = wide[0], *to_delta = wide[1];
        if constexpr (std::is_same_v<scalar_t, acc_t>) to_x = grad_x[vertex], to_delta = grad_delta[vertex];
        acc_t *to_A = grad_A.chunk, *to_bias = grad_delta_bias.chunk, *to_B = term;
        const int64_t channels = in.channels;
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const acc_t shifted = static_cast<acc_t>(delta[c]) + bias[c];
            const acc_t d = in.step(shifted);
            const acc_t from_exponent = from_decay[c] * a[c];
            const acc_t through_x = from_signal[c] * static_cast<acc_t>(x[c]);
            const acc_t grad_shifted = (through_x * B + from_exponent * A[c]) * in.step_slope(shifted);
            to_x[c] = from_signal[c] * (d * B);
            to_delta[c] = grad_shifted;
            to_A[c] += from_exponent * d;
            to_bias[c] += grad_shifted;
            to_B[c] = through_x * d;
        }
        if constexpr (!std::is_same_v<scalar_t, acc_t>) {  // in loops of their own: rounding may not vectorise
            for (int64_t c = 0; c < channels; ++c) grad_x[vertex][c] = static_cast<scalar_t>(to_x[c]);
            for (int64_t c = 0; c < channels; ++c) grad_delta[vertex][c] = static_cast<scalar_t>(to_delta[c]);
        }
        store_share_of_B(vertex);
        if (++chunk == SUM_VERTICES) flush();
    }

    GROOTV_INLINE void flush() {
        chunk = 0;
        grad_A.flush(in.channels);
        grad_delta_bias.flush(in.channels);
    }

    GROOTV_INLINE void store_share_of_B(int64_t vertex) const {
        acc_t* to = grad_B + vertex;
        for (int64_t begin = 0; begin < in.channels; begin += SUM_CHANNELS, to += vertices) {
            Simd<acc_t> sums{};
            for (int64_t c = begin; c < std::min(begin + SUM_CHANNELS, in.channels); c += SIMD_WIDTH)
                sums += load(term + c);
            *to = sum<acc_t>(sums);
        }
    }
};

template <class acc_t>
GROOTV_INLINE TileRows<const acc_t> as_const(TileRows<acc_t> rows) {
    return {rows.first, rows.stride};
}

template <class scalar_t, bool SOFTPLUS, class acc_t>
GROOTV_VECTORIZE void scan_tile(TreeSchedule tree, const SelectiveScanInputs<scalar_t, SOFTPLUS>& in,
                                TileRows<acc_t> decay, Sums<scalar_t, acc_t>& sum) {
    using Signal = SelectiveScanSignal<SelectiveScanInputs<scalar_t, SOFTPLUS>>;
    up_pass(tree, in.channels, Signal{in, sum.rows, decay}, as_const(decay), sum.rows);
    down_pass(tree, in.channels, as_const(decay), sum.rows);
    sum.store();
}

template <class scalar_t, bool SOFTPLUS, class acc_t>
GROOTV_VECTORIZE void scan_tile_backward(TreeSchedule tree, const SelectiveScanInputs<scalar_t, SOFTPLUS>& in,
                                         TileRows<const scalar_t> grad, TileRows<acc_t> window, int64_t window_size,
                                         SelectiveScanGradients<scalar_t, SOFTPLUS> gradients) {
    auto decay = gradients.decay, sum = gradients.grad_decay, grad_sum = gradients.grad_signal;
    using Signal = SelectiveScanSignal<SelectiveScanInputs<scalar_t, SOFTPLUS>>;
    up_pass(tree, in.channels, Signal{in, sum, decay}, as_const(decay), sum);
    up_pass(tree, in.channels, TreeScanSignal<scalar_t>{grad, in.channels}, as_const(decay), grad_sum);
    down_pass_backward(tree, in.channels, as_const(decay), sum, grad_sum, window, window_size, sum, gradients);
    gradients.flush();
}

struct ContiguousArguments {
    ContiguousArguments(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                        const std::optional<Tensor>& delta_bias)
        : x(as_contiguous(x)),
          delta(as_contiguous(delta)),
          A(as_contiguous(A)),
          B(as_contiguous(B)),
          delta_bias(delta_bias ? as_contiguous(*delta_bias) : make_zeros(A, {A.size(0)})) {}

    template <class scalar_t, bool SOFTPLUS>
    SelectiveScanInputs<scalar_t, SOFTPLUS> inputs(const ChannelTile& tile) const {
        using acc_t = acc_type<scalar_t>;
        return {tile.rows<const scalar_t>(x),
                tile.rows<const scalar_t>(delta),
                B.const_data_ptr<scalar_t>() + tile.item * tile.tree.vertices,
                A.const_data_ptr<acc_t>() + tile.channel,
                delta_bias.const_data_ptr<acc_t>() + tile.channel,
                tile.channels};
    }

    Tensor x, delta, A, B, delta_bias;
};

// Calls function(scalar_t{}, std::bool_constant<delta_softplus>{}).
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
                           bool delta_softplus, const std::optional<Tensor>&) {
    SelectiveScanArguments scan("selective_tree_scan", x, delta, A, B, delta_bias, order, parent);
    ScanTasks tasks(scan, order, parent);
    ContiguousArguments arguments(x, delta, A, B, delta_bias);
    Tensor output = empty_map(arguments.x);
    dispatch(x, delta_softplus, [&]<class scalar_t, bool SOFTPLUS>(scalar_t, std::bool_constant<SOFTPLUS>) {
        using acc_t = acc_type<scalar_t>;
        tasks.for_each_tile(ScanTasks::ALIGNMENT, [&](const ChannelTile& tile) {
            Workspace workspace;
            Sums sum(workspace, tile, tile.rows<scalar_t>(output));
            scan_tile(tile.tree, arguments.inputs<scalar_t, SOFTPLUS>(tile),
                      tile.take_rows<acc_t>(workspace, scan.vertices), sum);
        });
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> selective_tree_scan_backward(
    const Tensor& grad, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
    const std::optional<Tensor>& delta_bias, const Tensor& order, const Tensor& parent, bool delta_softplus,
    const std::optional<Tensor>&) {
    SelectiveScanArguments scan("selective_tree_scan_backward", x, delta, A, B, delta_bias, order, parent);
    scan.check_grad(grad, x);
    ScanTasks tasks(scan, order, parent);
    ContiguousArguments arguments(x, delta, A, B, delta_bias);
    const int64_t batch = scan.batch, vertices = scan.vertices, channels = scan.channels;
    Tensor g = as_contiguous(grad), grad_x = empty_map(arguments.x), grad_delta = empty_map(arguments.x);
    Tensor grad_A = make_empty(A, {channels}), grad_delta_bias = make_empty(A, {channels});
    Tensor grad_B = make_empty(B, {batch, vertices});
    dispatch(x, delta_softplus, [&]<class scalar_t, bool SOFTPLUS>(scalar_t, std::bool_constant<SOFTPLUS>) {
        using acc_t = acc_type<scalar_t>;
        const int64_t groups = (channels + SUM_CHANNELS - 1) / SUM_CHANNELS;
        std::vector<double> A_sums(batch * channels), bias_sums(batch * channels);
        std::vector<acc_t> B_sums(batch * groups * vertices);
        tasks.for_each_tile(SUM_CHANNELS, [&](const ChannelTile& tile) {
            Workspace workspace;
            auto take_zeros = [&](int64_t count) {
                acc_t* zeros = workspace.take<acc_t>(count);
                std::fill_n(zeros, count, acc_t{0});
                return zeros;
            };
            const auto in = arguments.inputs<scalar_t, SOFTPLUS>(tile);
            const int64_t window_size = tile.tree.window_size(), channel_sum = tile.item * channels + tile.channel;
            const auto decay = tile.take_rows<acc_t>(workspace, vertices);
            const auto grad_sum = tile.take_rows<acc_t>(workspace, vertices);
            const auto window = tile.take_rows<acc_t>(workspace, window_size);
            const auto to_delta = tile.rows<scalar_t>(grad_delta);
            const Sums sum(workspace, tile, to_delta);
            SelectiveScanGradients<scalar_t, SOFTPLUS> gradients{
                in,
                decay,
                grad_sum,
                sum.rows,
                tile.rows<scalar_t>(grad_x),
                to_delta,
                tile.take_rows<acc_t>(workspace, 2),
                {take_zeros(tile.channels), A_sums.data() + channel_sum},
                {take_zeros(tile.channels), bias_sums.data() + channel_sum},
                B_sums.data() + (tile.item * groups + tile.channel / SUM_CHANNELS) * vertices,
                vertices,
                take_zeros((tile.channels + SIMD_WIDTH - 1) / SIMD_WIDTH * SIMD_WIDTH)};
            scan_tile_backward(tile.tree, in, tile.rows<const scalar_t>(g), window, window_size, gradients);
        });
        add_parts<double>(A_sums.data(), batch, channels, channels, grad_A.mutable_data_ptr<acc_t>());
        add_parts<double>(bias_sums.data(), batch, channels, channels, grad_delta_bias.mutable_data_ptr<acc_t>());
        for (int64_t item = 0; item < batch; ++item)
            add_parts<acc_t>(B_sums.data() + item * groups * vertices, groups, vertices, vertices,
                             grad_B.mutable_data_ptr<scalar_t>() + item * vertices);
    });
    return {grad_x, grad_delta, grad_A, grad_B, grad_delta_bias};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    GROOTV_IMPL(m, selective_tree_scan);
    GROOTV_IMPL(m, selective_tree_scan_backward);
}
