// The tree scan of decay exp(step A - scale distance) and signal step B x. Signals are computed into the sums, decays
// into scratch memory or into a result that is not there yet. The gradients of all arguments are computed from those of
// signal and decay on the way.
#include <optional>
#include <type_traits>

#include "cuda/scan/scan.h"
#include "cuda/scan/softplus.h"

namespace grootv {
namespace {

// Without DISTANCE the decay is exp(step A).
template <class T, bool DISTANCE>
struct SelectiveScanInputs {
    using scalar_t = T;
    using acc_t = acc_type<T>;
    using decay_t = acc_t;
    static constexpr bool WITH_DISTANCE = DISTANCE;
    struct Loaded {
        Vector<scalar_t> x, delta;
        scalar_t B;
        acc_t distance;
    };

    const scalar_t *x_ptr, *delta_ptr, *B_ptr;  // B: one value per vertex
    const acc_t* distance_ptr;                  // one value per vertex
    const acc_t *A_ptr, *bias_ptr, *scale_ptr;  // one value per channel
    bool with_softplus;
    acc_t* decays;                 // of every vertex and channel: scratch
    Vector<acc_t> A, bias, scale;  // of the thread's channels

    __device__ void select(int64_t channel) {
        A = as_vector(A_ptr + channel);
        bias = bias_ptr ? as_vector(bias_ptr + channel) : Vector<acc_t>{};
        if constexpr (DISTANCE) scale = as_vector(scale_ptr + channel);
    }
    __device__ Loaded load(int32_t row, int64_t at) const {
        Loaded loaded{as_vector(x_ptr + at), as_vector(delta_ptr + at), B_ptr[row], 0};
        if constexpr (DISTANCE) loaded.distance = distance_ptr[row];
        return loaded;
    }
    __device__ Vector<acc_t> shifted(const Vector<scalar_t>& delta) const {
        return map<acc_t>([](auto delta, auto bias) { return static_cast<acc_t>(delta) + bias; }, delta, bias);
    }
    __device__ Vector<acc_t> step(const Vector<scalar_t>& delta) const {
        const Vector<acc_t> given = shifted(delta);
        return with_softplus ? map<acc_t>([](auto x) { return softplus(x); }, given) : given;
    }
    __device__ Vector<acc_t> signal(const Loaded& loaded, int64_t at) const {
        const Vector<acc_t> step = this->step(loaded.delta);
        if constexpr (DISTANCE)
            as_vector(decays + at) = map<acc_t>(
                [=](auto step, auto A, auto scale) { return std::exp(std::fma(-scale, loaded.distance, step * A)); },
                step, A, scale);
        else
            as_vector(decays + at) = map<acc_t>([](auto step, auto A) { return std::exp(step * A); }, step, A);
        const acc_t B = static_cast<acc_t>(loaded.B);
        return map<acc_t>([=](auto step, auto x) { return step * (B * static_cast<acc_t>(x)); }, step, loaded.x);
    }
};

template <class Inputs>
struct SelectiveScanGradients {
    static constexpr bool DISTANCE = Inputs::WITH_DISTANCE;
    static constexpr int SUMS = DISTANCE ? 3 : 2, SHARED_VECTORS = SUMS;
    static constexpr bool BY_WARPS = true;
    using scalar_t = typename Inputs::scalar_t;
    using acc_t = typename Inputs::acc_t;
    using Loaded = typename Inputs::Loaded;

    scalar_t *x, *delta;
    acc_t *B_parts, *distance_parts;            // (tiles, vertices of the batch)
    acc_t *A_parts, *bias_parts, *scale_parts;  // (blocks of a tile, channels)
    int64_t rows;
    Vector<acc_t> A_sum, bias_sum, scale_sum;  // over the vertices of this thread, from 0

    __device__ Loaded load(const Inputs& in, int32_t row, int64_t at) const { return in.load(row, at); }

    template <class Group>
    __device__ void store(const ChannelTile<Group, acc_t>& tile, const Inputs& in, int32_t row, const Loaded& loaded,
                          const Vector<acc_t>& decay, const Vector<acc_t>& grad_signal, const Vector<acc_t>& grad_decay,
                          bool is_root, bool live) {
        const Vector<acc_t> given = in.shifted(loaded.delta);
        Vector<acc_t> step = given, slope = filled(acc_t{1});
        if (in.with_softplus) {
            step = map<acc_t>([](auto x) { return softplus(x); }, given);
            slope = map<acc_t>([](auto x) { return softplus_slope(x); }, given);
        }
        const acc_t B = static_cast<acc_t>(loaded.B);
        acc_t distance = 0;
        if constexpr (DISTANCE)  // loaded here and not ahead, where it would take registers
            if (!is_root) distance = in.distance_ptr[row];
        Vector<scalar_t> grad_x, grad_delta;
        acc_t grad_B = 0, grad_distance = 0;  // of the tile's channels
        for (int i = 0; i < VECTOR_SIZE<acc_t>; ++i) {
            const acc_t d = step.element[i], from_signal = grad_signal.element[i];
            const acc_t from_exponent = grad_decay.element[i] * decay.element[i];
            const acc_t through_x = from_signal * static_cast<acc_t>(loaded.x.element[i]);
            const acc_t shifted = std::fma(through_x, B, from_exponent * in.A.element[i]) * slope.element[i];
            grad_x.element[i] = static_cast<scalar_t>(from_signal * (d * B));
            grad_delta.element[i] = static_cast<scalar_t>(shifted);
            grad_B = std::fma(through_x, d, grad_B);
            if constexpr (DISTANCE) grad_distance = std::fma(-from_exponent, in.scale.element[i], grad_distance);
            if (!live) continue;
            A_sum.element[i] = std::fma(from_exponent, d, A_sum.element[i]);
            bias_sum.element[i] += shifted;
            if constexpr (DISTANCE) scale_sum.element[i] = std::fma(-from_exponent, distance, scale_sum.element[i]);
        }
        if (live) {
            store_once(&as_vector(x + tile.at(row)), grad_x);
            store_once(&as_vector(delta + tile.at(row)), grad_delta);
        } else {
            grad_B = grad_distance = 0;
        }
        for (int32_t other = tile.threads / 2; other > 0; other /= 2) {
            grad_B += __shfl_xor_sync(~0u, grad_B, other);
            if constexpr (DISTANCE) grad_distance += __shfl_xor_sync(~0u, grad_distance, other);
        }
        if (!live || tile.rank != 0) return;
        B_parts[tile.index * rows + row] = grad_B;
        if constexpr (DISTANCE) distance_parts[tile.index * rows + row] = grad_distance;
    }

    // Adds up the sums of all threads of the block with the same channels, upper half onto lower half.
    template <class Group>
    __device__ void end(const ChannelTile<Group, acc_t>& tile) const {
        auto* sums = reinterpret_cast<Vector<acc_t>*>(shared_memory());
        const auto thread = static_cast<int32_t>(threadIdx.x), threads = static_cast<int32_t>(blockDim.x);
        sums[thread] = A_sum;
        sums[threads + thread] = bias_sum;
        if constexpr (DISTANCE) sums[2 * threads + thread] = scale_sum;
        auto add = [](auto sum, auto more) { return sum + more; };
        for (int32_t half = threads / 2; half >= tile.threads; half /= 2) {
            __syncthreads();
            if (thread >= half) continue;
            for (int32_t k = thread; k < SUMS * threads; k += threads)
                sums[k] = map<acc_t>(add, sums[k], sums[k + half]);
        }
        if (thread >= tile.threads || !tile.exists) return;
        as_vector(A_parts + tile.at(tile.block)) = sums[thread];
        as_vector(bias_parts + tile.at(tile.block)) = sums[threads + thread];
        if constexpr (DISTANCE) as_vector(scale_parts + tile.at(tile.block)) = sums[2 * threads + thread];
    }
};

// The arguments with padded channels.
struct PaddedArguments {
    PaddedArguments(const Scan& scan, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                    const std::optional<Tensor>& delta_bias, const std::optional<Tensor>& distance,
                    const std::optional<Tensor>& scale, bool softplus)
        : x(scan.padded(x)), delta(scan.padded(delta)), A(scan.padded(A)), B(as_contiguous(B)), softplus(softplus) {
        if (delta_bias) bias = scan.padded(*delta_bias);
        if (distance) this->distance = as_contiguous(*distance), this->scale = scan.padded(*scale);
    }

    template <class Inputs>
    Inputs inputs() const {
        using scalar_t = typename Inputs::scalar_t;
        using acc_t = typename Inputs::acc_t;
        return {x.const_data_ptr<scalar_t>(),
                delta.const_data_ptr<scalar_t>(),
                B.const_data_ptr<scalar_t>(),
                distance ? distance->const_data_ptr<acc_t>() : nullptr,
                A.const_data_ptr<acc_t>(),
                bias ? bias->const_data_ptr<acc_t>() : nullptr,
                scale ? scale->const_data_ptr<acc_t>() : nullptr,
                softplus,
                nullptr,
                {},
                {},
                {}};
    }

    // Calls run(inputs) with the types of the arguments.
    template <class Run>
    void dispatch(Run run) const {
        dispatch_floating(x, [&]<class scalar_t>(scalar_t) {
            if (distance)
                run(inputs<SelectiveScanInputs<scalar_t, true>>());
            else
                run(inputs<SelectiveScanInputs<scalar_t, false>>());
        });
    }

    Tensor x, delta, A, B;
    std::optional<Tensor> bias, distance, scale;
    bool softplus;
};

Tensor selective_tree_scan(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                           const std::optional<Tensor>& delta_bias, const std::optional<Tensor>& distance,
                           const std::optional<Tensor>& scale, const Tensor& order, const Tensor& parent,
                           bool delta_softplus, const std::optional<Tensor>& decomposition) {
    SelectiveScanArguments sizes("selective_tree_scan", x, delta, A, B, delta_bias, distance, scale, order, parent);
    Scan scan(sizes, x, order, parent, decomposition);
    PaddedArguments arguments(scan, x, delta, A, B, delta_bias, distance, scale, delta_softplus);
    Tensor output = scan.new_rows(x);
    if (scan.empty()) return scan.unpadded(output);
    arguments.dispatch([&]<class Inputs>(const Inputs& inputs) {
        scan.forward(inputs, true, output.mutable_data_ptr<typename Inputs::scalar_t>());
    });
    return scan.unpadded(output);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_tree_scan_backward(
    const Tensor& grad, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
    const std::optional<Tensor>& delta_bias, const std::optional<Tensor>& distance, const std::optional<Tensor>& scale,
    const Tensor& order, const Tensor& parent, bool delta_softplus, const std::optional<Tensor>& decomposition) {
    SelectiveScanArguments sizes("selective_tree_scan_backward", x, delta, A, B, delta_bias, distance, scale, order,
                                 parent);
    sizes.check_grad(grad, x);
    Scan scan(sizes, x, order, parent, decomposition);
    PaddedArguments arguments(scan, x, delta, A, B, delta_bias, distance, scale, delta_softplus);
    Tensor g = scan.padded(grad), grad_x = scan.new_rows(x), grad_delta = scan.new_rows(x);
    Tensor grad_B = make_empty(B, {sizes.batch, sizes.vertices});
    // Empty sums are 0.
    auto vertex_parts = [&](int64_t tiles) { return make_empty(A, {tiles, sizes.batch, sizes.vertices}); };
    Tensor B_parts = vertex_parts(0), distance_parts = B_parts;
    Tensor A_parts = scan.new_parts(A, 0), bias_parts = A_parts, scale_parts = A_parts;
    if (!scan.empty()) {
        arguments.dispatch([&]<class Inputs>(const Inputs& inputs) {
            using scalar_t = typename Inputs::scalar_t;
            using acc_t = typename Inputs::acc_t;
            scan.backward<2>(inputs, g.const_data_ptr<scalar_t>(), grad_x.mutable_data_ptr<scalar_t>(),
                             [&](int64_t tiles, int64_t blocks) {
                                 B_parts = vertex_parts(tiles);
                                 A_parts = scan.new_parts(A, blocks);
                                 bias_parts = scan.new_parts(A, blocks);
                                 if constexpr (Inputs::WITH_DISTANCE) {
                                     distance_parts = vertex_parts(tiles);
                                     scale_parts = scan.new_parts(A, blocks);
                                 }
                                 return SelectiveScanGradients<Inputs>{grad_x.mutable_data_ptr<scalar_t>(),
                                                                       grad_delta.mutable_data_ptr<scalar_t>(),
                                                                       B_parts.mutable_data_ptr<acc_t>(),
                                                                       distance_parts.mutable_data_ptr<acc_t>(),
                                                                       A_parts.mutable_data_ptr<acc_t>(),
                                                                       bias_parts.mutable_data_ptr<acc_t>(),
                                                                       scale_parts.mutable_data_ptr<acc_t>(),
                                                                       sizes.batch * sizes.vertices,
                                                                       {},
                                                                       {},
                                                                       {}};
                             });
        });
    }
    torch::stable::copy_(grad_B, sum_parts(B_parts));
    Tensor grad_distance = distance ? sum_parts(distance_parts) : make_empty(A, {0, 0});
    Tensor grad_scale = distance ? scan.unpadded(sum_parts(scale_parts)) : make_empty(A, {0});
    return {scan.unpadded(grad_x),
            scan.unpadded(grad_delta),
            scan.unpadded(sum_parts(A_parts)),
            grad_B,
            scan.unpadded(sum_parts(bias_parts)),
            grad_distance,
            grad_scale};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, selective_tree_scan);
    GROOTV_IMPL(m, selective_tree_scan_backward);
}
