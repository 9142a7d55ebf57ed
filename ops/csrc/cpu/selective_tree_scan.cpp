// The tree scan of decay exp(d A - scale distance) and signal d B x, which are computed on the way and never stored as
// a whole.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/elementary.h"
#include "cpu/scan_passes.h"
#include "cpu/simd.h"

namespace grootv {
namespace {

constexpr int64_t SUM_CHANNELS = 64;  // whose shares of a vertex's gradient are one partial sum, whatever the tiles
constexpr int64_t SUM_VERTICES = 64;  // whose shares of a channel's gradient are one partial sum

// What a tile reads. Without DISTANCE the decay is exp(d A).
template <class T, bool SOFTPLUS, bool DISTANCE>
struct SelectiveScanInputs {
    using scalar_t = T;
    using acc_t = acc_type<T>;
    static constexpr bool WITH_DISTANCE = DISTANCE;

    TileRows<const scalar_t> x, delta;
    const scalar_t* B;                    // by vertex
    const acc_t* distance;                // by vertex
    const acc_t *A, *delta_bias, *scale;  // by channel
    int64_t channels;
    int32_t root;

    GROOTV_INLINE acc_t distance_of(int64_t vertex) const {
        if constexpr (DISTANCE) return vertex == root ? acc_t{0} : distance[vertex];
        return 0;
    }

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
        const acc_t *A = in.A, *bias = in.delta_bias, *scale = in.scale;
        const acc_t B = static_cast<acc_t>(in.B[vertex]), distance = in.distance_of(vertex);
        acc_t *to_signal = signal[vertex], *to_decay = decay[vertex];
        const int64_t channels = in.channels;
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const acc_t d = in.step(static_cast<acc_t>(delta[c]) + bias[c]);
            acc_t exponent = d * A[c];
            if constexpr (Inputs::WITH_DISTANCE) exponent -= scale[c] * distance;
            to_decay[c] = vector_exp(exponent);
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

// One sum per vertex over the channels of a tile, in parts of SUM_CHANNELS.
template <class acc_t>
struct VertexSums {
    acc_t* term;  // of one vertex by channel, with zeros up to a multiple of SIMD_WIDTH
    acc_t* part;  // a row of vertices for every SUM_CHANNELS channels

    GROOTV_INLINE void store(int64_t vertex, int64_t vertices, int64_t channels) const {
        acc_t* to = part + vertex;
        for (int64_t begin = 0; begin < channels; begin += SUM_CHANNELS, to += vertices) {
            Simd<acc_t> sums{};
            for (int64_t c = begin; c < std::min(begin + SUM_CHANNELS, channels); c += SIMD_WIDTH)
                sums += load(term + c);
            *to = sum<acc_t>(sums);
        }
    }
};

// Passes the gradients of signal and decay on to what these were computed from.
template <class Inputs, class scalar_t = typename Inputs::scalar_t, class acc_t = typename Inputs::acc_t>
struct SelectiveScanGradients {
    const Inputs& in;
    TileRows<acc_t> decay, grad_signal, grad_decay;
    TileRows<scalar_t> grad_x, grad_delta;  // grad_delta may be grad_decay
    TileRows<acc_t> wide;  // grad_x and grad_delta of one vertex before rounding, if scalar_t is not acc_t
    ChannelSums<acc_t> grad_A, grad_delta_bias, grad_scale;
    VertexSums<acc_t> grad_B, grad_distance;
    int64_t vertices;
    int64_t chunk = 0;

    GROOTV_INLINE void prefetch(int64_t vertex) const { in.prefetch(vertex); }

    GROOTV_INLINE void finish(int64_t vertex) {
        const scalar_t *x = in.x[vertex], *delta = in.delta[vertex];
        const acc_t *A = in.A, *bias = in.delta_bias, *scale = in.scale;
        const acc_t *a = decay[vertex], *from_signal = grad_signal[vertex], *from_decay = grad_decay[vertex];
        const acc_t B = static_cast<acc_t>(in.B[vertex]), distance = in.distance_of(vertex);
        acc_t *to_x = wide[0], *to_delta = wide[1];
        if constexpr (std::is_same_v<scalar_t, acc_t>) to_x = grad_x[vertex], to_delta = grad_delta[vertex];
        acc_t *to_A = grad_A.chunk, *to_bias = grad_delta_bias.chunk, *to_scale = grad_scale.chunk;
        acc_t *to_B = grad_B.term, *to_distance = grad_distance.term;
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
            if constexpr (Inputs::WITH_DISTANCE) {
                to_scale[c] -= from_exponent * distance;
                to_distance[c] = -from_exponent * scale[c];
            }
        }
        if constexpr (!std::is_same_v<scalar_t, acc_t>) {  // in loops of their own: rounding may not vectorise
            for (int64_t c = 0; c < channels; ++c) grad_x[vertex][c] = static_cast<scalar_t>(to_x[c]);
            for (int64_t c = 0; c < channels; ++c) grad_delta[vertex][c] = static_cast<scalar_t>(to_delta[c]);
        }
        grad_B.store(vertex, vertices, channels);
        if constexpr (Inputs::WITH_DISTANCE) grad_distance.store(vertex, vertices, channels);
        if (++chunk == SUM_VERTICES) flush();
    }

    GROOTV_INLINE void flush() {
        chunk = 0;
        grad_A.flush(in.channels);
        grad_delta_bias.flush(in.channels);
        if constexpr (Inputs::WITH_DISTANCE) grad_scale.flush(in.channels);
    }
};

template <class acc_t>
GROOTV_INLINE TileRows<const acc_t> as_const(TileRows<acc_t> rows) {
    return {rows.first, rows.stride};
}

template <class Inputs, class scalar_t, class acc_t>
GROOTV_VECTORIZE void scan_tile(TreeSchedule tree, const Inputs& in, TileRows<acc_t> decay,
                                Sums<scalar_t, acc_t>& sum) {
    up_pass(tree, in.channels, SelectiveScanSignal<Inputs>{in, sum.rows, decay}, as_const(decay), sum.rows);
    down_pass(tree, in.channels, as_const(decay), sum.rows);
    sum.store();
}

template <class Inputs, class scalar_t, class acc_t>
GROOTV_VECTORIZE void scan_tile_backward(TreeSchedule tree, const Inputs& in, TileRows<const scalar_t> grad,
                                         TileRows<acc_t> window, int64_t window_size,
                                         SelectiveScanGradients<Inputs> gradients) {
    auto decay = gradients.decay, sum = gradients.grad_decay, grad_sum = gradients.grad_signal;
    up_pass(tree, in.channels, SelectiveScanSignal<Inputs>{in, sum, decay}, as_const(decay), sum);
    up_pass(tree, in.channels, TreeScanSignal<scalar_t>{grad, in.channels}, as_const(decay), grad_sum);
    down_pass_backward(tree, in.channels, as_const(decay), sum, grad_sum, window, window_size, sum, gradients);
    gradients.flush();
}

struct ContiguousArguments {
    ContiguousArguments(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                        const std::optional<Tensor>& delta_bias, const std::optional<Tensor>& distance,
                        const std::optional<Tensor>& scale)
        : x(as_contiguous(x)),
          delta(as_contiguous(delta)),
          A(as_contiguous(A)),
          B(as_contiguous(B)),
          delta_bias(delta_bias ? as_contiguous(*delta_bias) : make_zeros(A, {A.size(0)})) {
        if (distance) this->distance = as_contiguous(*distance), this->scale = as_contiguous(*scale);
    }

    template <class Inputs>
    Inputs inputs(const ChannelTile& tile) const {
        using scalar_t = typename Inputs::scalar_t;
        using acc_t = typename Inputs::acc_t;
        const int64_t first = tile.item * tile.tree.vertices;
        return {tile.rows<const scalar_t>(x),
                tile.rows<const scalar_t>(delta),
                B.const_data_ptr<scalar_t>() + first,
                distance ? distance->const_data_ptr<acc_t>() + first : nullptr,
                A.const_data_ptr<acc_t>() + tile.channel,
                delta_bias.const_data_ptr<acc_t>() + tile.channel,
                scale ? scale->const_data_ptr<acc_t>() + tile.channel : nullptr,
                tile.channels,
                tile.tree.order[0]};
    }

    Tensor x, delta, A, B, delta_bias;
    std::optional<Tensor> distance, scale;
};

// Calls function(std::type_identity<SelectiveScanInputs<scalar_t, with_softplus, with_distance>>{}).
template <class Function>
void dispatch(const Tensor& x, bool with_softplus, bool with_distance, Function function) {
    dispatch_floating(x, [&]<class scalar_t>(scalar_t) {
        auto call = [&]<bool SOFTPLUS>(std::bool_constant<SOFTPLUS>) {
            if (with_distance)
                function(std::type_identity<SelectiveScanInputs<scalar_t, SOFTPLUS, true>>{});
            else
                function(std::type_identity<SelectiveScanInputs<scalar_t, SOFTPLUS, false>>{});
        };
        if (with_softplus)
            call(std::true_type{});
        else
            call(std::false_type{});
    });
}

Tensor selective_tree_scan(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                           const std::optional<Tensor>& delta_bias, const std::optional<Tensor>& distance,
                           const std::optional<Tensor>& scale, const Tensor& order, const Tensor& parent,
                           bool delta_softplus, const std::optional<Tensor>&) {
    SelectiveScanArguments scan("selective_tree_scan", x, delta, A, B, delta_bias, distance, scale, order, parent);
    ScanTasks tasks(scan, order, parent);
    ContiguousArguments arguments(x, delta, A, B, delta_bias, distance, scale);
    Tensor output = empty_map(arguments.x);
    dispatch(x, delta_softplus, distance.has_value(), [&]<class Inputs>(std::type_identity<Inputs>) {
        using scalar_t = typename Inputs::scalar_t;
        using acc_t = typename Inputs::acc_t;
        tasks.for_each_tile(ScanTasks::ALIGNMENT, [&](const ChannelTile& tile) {
            Workspace workspace;
            Sums sum(workspace, tile, tile.rows<scalar_t>(output));
            scan_tile(tile.tree, arguments.inputs<Inputs>(tile), tile.take_rows<acc_t>(workspace, scan.vertices), sum);
        });
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_tree_scan_backward(
    const Tensor& grad, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
    const std::optional<Tensor>& delta_bias, const std::optional<Tensor>& distance, const std::optional<Tensor>& scale,
    const Tensor& order, const Tensor& parent, bool delta_softplus, const std::optional<Tensor>&) {
    SelectiveScanArguments scan("selective_tree_scan_backward", x, delta, A, B, delta_bias, distance, scale, order,
                                parent);
    scan.check_grad(grad, x);
    ScanTasks tasks(scan, order, parent);
    ContiguousArguments arguments(x, delta, A, B, delta_bias, distance, scale);
    const int64_t batch = scan.batch, vertices = scan.vertices, channels = scan.channels;
    Tensor g = as_contiguous(grad), grad_x = empty_map(arguments.x), grad_delta = empty_map(arguments.x);
    Tensor grad_A = make_empty(A, {channels}), grad_delta_bias = make_empty(A, {channels});
    Tensor grad_B = make_empty(B, {batch, vertices});
    Tensor grad_distance = make_empty(A, {distance ? batch : 0, distance ? vertices : 0});
    Tensor grad_scale = make_empty(A, {distance ? channels : 0});
    dispatch(x, delta_softplus, distance.has_value(), [&]<class Inputs>(std::type_identity<Inputs>) {
        using scalar_t = typename Inputs::scalar_t;
        using acc_t = typename Inputs::acc_t;
        constexpr bool DISTANCE = Inputs::WITH_DISTANCE;
        const int64_t groups = (channels + SUM_CHANNELS - 1) / SUM_CHANNELS;
        std::vector<double> A_sums(batch * channels), bias_sums(batch * channels);
        std::vector<double> scale_sums(DISTANCE ? batch * channels : 0);
        std::vector<acc_t> B_sums(batch * groups * vertices);
        std::vector<acc_t> distance_sums(DISTANCE ? B_sums.size() : 0);
        tasks.for_each_tile(SUM_CHANNELS, [&](const ChannelTile& tile) {
            Workspace workspace;
            auto take_zeros = [&](int64_t count) {
                acc_t* zeros = workspace.take<acc_t>(count);
                std::fill_n(zeros, count, acc_t{0});
                return zeros;
            };
            const auto in = arguments.inputs<Inputs>(tile);
            const int64_t window_size = tile.tree.window_size(), channel_sum = tile.item * channels + tile.channel;
            const int64_t vertex_sum = (tile.item * groups + tile.channel / SUM_CHANNELS) * vertices;
            const int64_t terms = (tile.channels + SIMD_WIDTH - 1) / SIMD_WIDTH * SIMD_WIDTH;
            const auto decay = tile.take_rows<acc_t>(workspace, vertices);
            const auto grad_sum = tile.take_rows<acc_t>(workspace, vertices);
            const auto window = tile.take_rows<acc_t>(workspace, window_size);
            const auto to_delta = tile.rows<scalar_t>(grad_delta);
            const Sums sum(workspace, tile, to_delta);
            SelectiveScanGradients<Inputs> gradients{in,
                                                     decay,
                                                     grad_sum,
                                                     sum.rows,
                                                     tile.rows<scalar_t>(grad_x),
                                                     to_delta,
                                                     tile.take_rows<acc_t>(workspace, 2),
                                                     {take_zeros(tile.channels), A_sums.data() + channel_sum},
                                                     {take_zeros(tile.channels), bias_sums.data() + channel_sum},
                                                     {},
                                                     {take_zeros(terms), B_sums.data() + vertex_sum},
                                                     {},
                                                     vertices};
            if constexpr (DISTANCE) {
                gradients.grad_scale = {take_zeros(tile.channels), scale_sums.data() + channel_sum};
                gradients.grad_distance = {take_zeros(terms), distance_sums.data() + vertex_sum};
            }
            scan_tile_backward(tile.tree, in, tile.rows<const scalar_t>(g), window, window_size, gradients);
        });
        auto add_channels = [&](const std::vector<double>& sums, const Tensor& to) {
            add_parts<double>(sums.data(), batch, channels, channels, to.mutable_data_ptr<acc_t>());
        };
        auto add_vertices = [&](const std::vector<acc_t>& sums, auto* to) {
            for (int64_t item = 0; item < batch; ++item)
                add_parts<acc_t>(sums.data() + item * groups * vertices, groups, vertices, vertices,
                                 to + item * vertices);
        };
        add_channels(A_sums, grad_A);
        add_channels(bias_sums, grad_delta_bias);
        add_vertices(B_sums, grad_B.mutable_data_ptr<scalar_t>());
        if constexpr (DISTANCE) {
            add_channels(scale_sums, grad_scale);
            add_vertices(distance_sums, grad_distance.mutable_data_ptr<acc_t>());
        }
    });
    return {grad_x, grad_delta, grad_A, grad_B, grad_delta_bias, grad_distance, grad_scale};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    GROOTV_IMPL(m, selective_tree_scan);
    GROOTV_IMPL(m, selective_tree_scan_backward);
}
