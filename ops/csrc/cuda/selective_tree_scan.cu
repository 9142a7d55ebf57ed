// The tree scan of decay exp(d A) and signal d B x, which are computed on the way. Its gradient first leaves the
// gradients of signal and decay in scratch memory; a second kernel passes them on to x, delta, A, B and the bias.
#include <optional>

#include <torch/csrc/stable/library.h>

#include "cuda/elementary.h"
#include "cuda/scan.h"

namespace grootv {
namespace {

template <class T>
struct SelectedSignal {
    using Element = T;
    using A = typename Accumulator<T>::type;

    const T *x, *delta, *write;  // write: B, one value per vertex
    const A *rate, *bias;        // A and delta_bias, one value per channel
    bool with_softplus;
    int64_t channels;

    __device__ A shifted(int64_t row, int64_t c) const {
        const A given = static_cast<A>(delta[row * channels + c]);
        return bias ? given + bias[c] : given;
    }
    __device__ A step(A shifted) const { return with_softplus ? softplus(shifted) : shifted; }
    __device__ A step_slope(A shifted) const { return with_softplus ? softplus_slope(shifted) : A{1}; }
    __device__ A decay_of(A step, int64_t c) const {
        using std::exp;
        return exp(step * rate[c]);
    }

    __device__ SignalDecay<A> both(int64_t row, int64_t c) const {
        const A d = step(shifted(row, c));
        return {d * (static_cast<A>(write[row]) * static_cast<A>(x[row * channels + c])), decay_of(d, c)};
    }
    __device__ A decay(int64_t row, int64_t c) const { return decay_of(step(shifted(row, c)), c); }
};

constexpr int ROWS = 256;  // vertices of one block of the second kernel

template <class T, class A = typename Accumulator<T>::type>
struct SelectedGradients {
    const A *signal, *decay;  // what the scan left
    T *x, *delta, *write;
    A *rate_part, *bias_part;  // (blocks, channels)
};

// One block passes on the gradients of ROWS vertices. Its warps take whole rows of WARP channels: a row adds up to
// the gradient of B, the columns to a part of the gradients of A and the bias.
template <class T>
__global__ void selection_backward_kernel(SelectedSignal<T> in, int64_t rows, SelectedGradients<T> gradients) {
    using A = typename Accumulator<T>::type;
    auto* row_sum = reinterpret_cast<A*>(shared_memory());
    A* column_sum = row_sum + ROWS;  // rate and bias, for every thread
    const int32_t thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, warps = blockDim.x / WARP;
    const int64_t begin = int64_t{blockIdx.x} * ROWS, end = begin + ROWS < rows ? begin + ROWS : rows;
    for (int64_t row = begin + warp; row < end; row += warps)
        if (lane == 0) row_sum[row - begin] = 0;
    for (int64_t first = 0; first < in.channels; first += WARP) {
        const int64_t c = first + lane;
        const bool exists = c < in.channels;
        A rate_sum = 0, bias_sum = 0;
        for (int64_t row = begin + warp; row < end; row += warps) {
            const int64_t i = row * in.channels + c;
            A share = 0;
            if (exists) {
                const A shifted = in.shifted(row, c), d = in.step(shifted), write = static_cast<A>(in.write[row]);
                const A from_exponent = gradients.decay[i] * in.decay_of(d, c), from_signal = gradients.signal[i];
                const A through_x = from_signal * static_cast<A>(in.x[i]);
                const A grad_shifted = (through_x * write + from_exponent * in.rate[c]) * in.step_slope(shifted);
                gradients.x[i] = static_cast<T>(from_signal * (d * write));
                gradients.delta[i] = static_cast<T>(grad_shifted);
                rate_sum += from_exponent * d;
                bias_sum += grad_shifted;
                share = through_x * d;
            }
            for (int other = WARP / 2; other > 0; other /= 2) share += __shfl_xor_sync(~0u, share, other);
            if (lane == 0) row_sum[row - begin] += share;
        }
        column_sum[thread] = rate_sum;
        column_sum[blockDim.x + thread] = bias_sum;
        __syncthreads();
        if (warp < 2 && exists) {
            A sum = 0;
            for (int32_t other = 0; other < warps; ++other) sum += column_sum[warp * blockDim.x + other * WARP + lane];
            (warp == 0 ? gradients.rate_part : gradients.bias_part)[blockIdx.x * in.channels + c] = sum;
        }
        __syncthreads();
    }
    for (int64_t row = begin + warp; row < end; row += warps)
        if (lane == 0) gradients.write[row] = static_cast<T>(row_sum[row - begin]);
}

// The arguments, made contiguous.
struct Arguments {
    Arguments(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
              const std::optional<Tensor>& delta_bias, bool softplus)
        : x(as_contiguous(x)),
          delta(as_contiguous(delta)),
          rate(as_contiguous(A)),
          write(as_contiguous(B)),
          softplus(softplus) {
        if (delta_bias) bias = as_contiguous(*delta_bias);
    }

    template <class T>
    SelectedSignal<T> signal() const {
        using A = typename Accumulator<T>::type;
        return {x.const_data_ptr<T>(),
                delta.const_data_ptr<T>(),
                write.const_data_ptr<T>(),
                rate.const_data_ptr<A>(),
                bias ? bias->const_data_ptr<A>() : nullptr,
                softplus,
                x.size(2)};
    }

    Tensor x, delta, rate, write;
    std::optional<Tensor> bias;
    bool softplus;
};

Tensor selective_tree_scan(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                           const std::optional<Tensor>& delta_bias, const Tensor& order, const Tensor& parent,
                           const Tensor& level_ptr, bool delta_softplus) {
    SelectiveScanArguments sizes("selective_tree_scan", x, delta, A, B, delta_bias, order, parent, level_ptr);
    Scan scan(sizes, x, order, parent);
    Arguments arguments(x, delta, A, B, delta_bias, delta_softplus);
    Tensor output = torch::stable::new_empty(x, {sizes.batch, sizes.vertices, sizes.channels});
    if (scan.empty()) return output;
    dispatch_floating(x, [&](auto zero) {
        using T = decltype(zero);
        scan.forward(arguments.signal<T>(), true, output.mutable_data_ptr<T>());
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> selective_tree_scan_backward(
    const Tensor& grad, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
    const std::optional<Tensor>& delta_bias, const Tensor& order, const Tensor& parent, const Tensor& level_ptr,
    bool delta_softplus) {
    SelectiveScanArguments sizes("selective_tree_scan_backward", x, delta, A, B, delta_bias, order, parent, level_ptr);
    sizes.check_grad(grad, x);
    Scan scan(sizes, x, order, parent);
    Arguments arguments(x, delta, A, B, delta_bias, delta_softplus);
    Tensor g = as_contiguous(grad);
    const int64_t rows = sizes.batch * sizes.vertices, channels = sizes.channels, blocks = (rows + ROWS - 1) / ROWS;
    Tensor grad_x = torch::stable::new_empty(x, {sizes.batch, sizes.vertices, channels});
    Tensor grad_delta = torch::stable::new_empty(x, {sizes.batch, sizes.vertices, channels});
    Tensor grad_B = torch::stable::new_zeros(B, {sizes.batch, sizes.vertices});
    Tensor rate_part = torch::stable::new_empty(A, {blocks, channels});
    Tensor bias_part = torch::stable::new_empty(A, {blocks, channels});
    if (!scan.empty()) {
        dispatch_floating(x, [&](auto zero) {
            using T = decltype(zero);
            using Accumulated = typename Accumulator<T>::type;
            const auto signal = arguments.signal<T>();
            ScanGradients<Accumulated> left{scan.template take<Accumulated>(), scan.template take<Accumulated>(),
                                            channels};
            scan.backward(signal, true, g.const_data_ptr<T>(), left);
            SelectedGradients<T> gradients{left.signal,
                                           left.decay,
                                           grad_x.mutable_data_ptr<T>(),
                                           grad_delta.mutable_data_ptr<T>(),
                                           grad_B.mutable_data_ptr<T>(),
                                           rate_part.mutable_data_ptr<Accumulated>(),
                                           bias_part.mutable_data_ptr<Accumulated>()};
            scan.device().launch(selection_backward_kernel<T>, dim3(static_cast<unsigned>(blocks)), SCAN_THREADS,
                                 (ROWS + 2 * SCAN_THREADS) * sizeof(Accumulated), signal, rows, gradients);
        });
    }
    const int64_t dim = 0;
    return {grad_x, grad_delta, torch::stable::sum(rate_part, {{&dim, 1}}), grad_B,
            torch::stable::sum(bias_part, {{&dim, 1}})};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    m.impl("selective_tree_scan", TORCH_BOX(&grootv::selective_tree_scan));
    m.impl("selective_tree_scan_backward", TORCH_BOX(&grootv::selective_tree_scan_backward));
}
