// The tree scan of decay exp(d A) and signal d B x, which are computed on the way, as are the gradients of x, delta, A,
// B and the bias from those of signal and decay.
#include <optional>

#include <torch/csrc/stable/library.h>

#include "cuda/scan/scan.h"
#include "cuda/scan/softplus.h"

namespace grootv {
namespace {

template <class T>
struct SelectedSignal {
    using Element = T;
    using A = acc_type<T>;
    using DecayInput = Pack<T>;  // of delta
    struct Input {
        Pack<T> x, decay;
        T write;
    };

    const T *x, *delta, *write;  // write: B, one value per vertex
    const A *rates, *biases;     // A and delta_bias, one value per channel
    bool with_softplus;
    Pack<A> rate, bias;  // of the channels

    __device__ void select(int64_t channel) {
        rate = as_pack(rates + channel);
        bias = biases ? as_pack(biases + channel) : Pack<A>{};
    }
    __device__ Input read(int32_t row, int64_t at) const { return {as_pack(x + at), as_pack(delta + at), write[row]}; }
    __device__ Pack<T> read_decay(int64_t at) const { return as_pack(delta + at); }

    __device__ Pack<A> shifted(const Pack<T>& delta) const {
        return map<A>([](T delta, A bias) { return static_cast<A>(delta) + bias; }, delta, bias);
    }
    __device__ Pack<A> step(const Pack<T>& delta) const {
        const Pack<A> given = shifted(delta);
        return with_softplus ? map<A>([](A x) { return softplus(x); }, given) : given;
    }
    __device__ Pack<A> step_slope(const Pack<T>& delta) const {
        return with_softplus ? map<A>([](A x) { return softplus_slope(x); }, shifted(delta)) : filled(A{1});
    }
    __device__ Pack<A> signal(const Input& input) const {
        const A write = static_cast<A>(input.write);
        return map<A>([=](A step, T x) { return step * (write * static_cast<A>(x)); }, step(input.decay), input.x);
    }
    __device__ Pack<A> decay(const Pack<T>& delta) const {
        return map<A>([](A step, A rate) { return std::exp(step * rate); }, step(delta), rate);
    }
};

template <class T>
struct SelectedGradients {
    static constexpr int SHARED_PACKS = 2;
    using A = acc_type<T>;
    struct Input {
        Pack<T> x;
        T write;
    };

    T *x, *delta;
    A* write_parts;              // (slices, vertices of the batch)
    A *rate_parts, *bias_parts;  // (members, channels)
    int64_t rows;
    Pack<A> rate_sum, bias_sum;  // over the vertices of this thread, from 0

    __device__ Input read(const SelectedSignal<T>& in, int32_t row, int64_t at) const {
        return {as_pack(in.x + at), in.write[row]};
    }

    template <class Team>
    __device__ void put(const Worker<Team, A>& worker, const SelectedSignal<T>& in, int32_t row, const Input& input,
                        const Pack<T>& delta_input, const Pack<A>& decay, const Pack<A>& grad_signal,
                        const Pack<A>& grad_decay, bool live) {
        const Pack<A> step = in.step(delta_input), slope = in.step_slope(delta_input);
        const A write = static_cast<A>(input.write);
        Pack<T> grad_x, grad_delta;
        A share = 0;  // in the gradient of B
        for (int i = 0; i < PACK<A>; ++i) {
            const A d = step.element[i], from_signal = grad_signal.element[i];
            const A from_exponent = grad_decay.element[i] * decay.element[i];
            const A through_x = from_signal * static_cast<A>(input.x.element[i]);
            const A shifted = std::fma(through_x, write, from_exponent * in.rate.element[i]) * slope.element[i];
            grad_x.element[i] = static_cast<T>(from_signal * (d * write));
            grad_delta.element[i] = static_cast<T>(shifted);
            share = std::fma(through_x, d, share);
            if (!live) continue;
            rate_sum.element[i] = std::fma(from_exponent, d, rate_sum.element[i]);
            bias_sum.element[i] += shifted;
        }
        if (live) {
            as_pack(x + worker.at(row)) = grad_x;
            as_pack(delta + worker.at(row)) = grad_delta;
        } else {
            share = 0;
        }
        for (int32_t other = worker.threads / 2; other > 0; other /= 2) share += __shfl_xor_sync(~0u, share, other);
        if (live && worker.lane == 0) write_parts[worker.slice * rows + row] = share;
    }

    // Adds up the sums of all groups of the block.
    template <class Team>
    __device__ void end(const Worker<Team, A>& worker) const {
        auto* sums = reinterpret_cast<Pack<A>*>(shared_memory());
        const auto thread = static_cast<int32_t>(threadIdx.x), threads = static_cast<int32_t>(blockDim.x);
        __syncthreads();
        sums[thread] = rate_sum;
        sums[threads + thread] = bias_sum;
        __syncthreads();
        if (thread >= worker.threads || !worker.exists) return;
        auto add = [](A sum, A more) { return sum + more; };
        Pack<A> rate{}, bias{};
        for (int32_t other = thread; other < threads; other += worker.threads) {
            rate = map<A>(add, rate, sums[other]);
            bias = map<A>(add, bias, sums[threads + other]);
        }
        as_pack(rate_parts + worker.at(worker.member)) = rate;
        as_pack(bias_parts + worker.at(worker.member)) = bias;
    }
};

// The arguments as the scan takes them.
struct Arguments {
    Arguments(const Scan& scan, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
              const std::optional<Tensor>& delta_bias, bool softplus)
        : x(scan.packed(x)),
          delta(scan.packed(delta)),
          rate(scan.packed(A)),
          write(as_contiguous(B)),
          softplus(softplus) {
        if (delta_bias) bias = scan.packed(*delta_bias);
    }

    template <class T>
    SelectedSignal<T> signal() const {
        using A = acc_type<T>;
        return {x.const_data_ptr<T>(),
                delta.const_data_ptr<T>(),
                write.const_data_ptr<T>(),
                rate.const_data_ptr<A>(),
                bias ? bias->const_data_ptr<A>() : nullptr,
                softplus,
                {},
                {}};
    }

    Tensor x, delta, rate, write;
    std::optional<Tensor> bias;
    bool softplus;
};

Tensor selective_tree_scan(const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
                           const std::optional<Tensor>& delta_bias, const Tensor& order, const Tensor& parent,
                           bool delta_softplus) {
    SelectiveScanArguments sizes("selective_tree_scan", x, delta, A, B, delta_bias, order, parent);
    Scan scan(sizes, x, order, parent);
    Arguments arguments(scan, x, delta, A, B, delta_bias, delta_softplus);
    Tensor output = scan.new_rows(x);
    if (scan.empty()) return scan.unpacked(output);
    dispatch_floating(x, [&](auto zero) {
        using T = decltype(zero);
        scan.forward(arguments.signal<T>(), true, output.mutable_data_ptr<T>());
    });
    return scan.unpacked(output);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> selective_tree_scan_backward(
    const Tensor& grad, const Tensor& x, const Tensor& delta, const Tensor& A, const Tensor& B,
    const std::optional<Tensor>& delta_bias, const Tensor& order, const Tensor& parent, bool delta_softplus) {
    SelectiveScanArguments sizes("selective_tree_scan_backward", x, delta, A, B, delta_bias, order, parent);
    sizes.check_grad(grad, x);
    Scan scan(sizes, x, order, parent);
    Arguments arguments(scan, x, delta, A, B, delta_bias, delta_softplus);
    Tensor g = scan.packed(grad), grad_x = scan.new_rows(x), grad_delta = scan.new_rows(x);
    Tensor grad_B = torch::stable::new_empty(B, {sizes.batch, sizes.vertices});
    // Empty sums are 0.
    Tensor write_parts = torch::stable::new_empty(A, {0, sizes.batch, sizes.vertices});
    Tensor rate_parts = scan.new_parts(A, 0), bias_parts = rate_parts;
    if (!scan.empty()) {
        dispatch_floating(x, [&](auto zero) {
            using T = decltype(zero);
            using Accumulated = acc_type<T>;
            const auto signal = arguments.signal<T>();
            scan.backward<2>(signal, g.const_data_ptr<T>(), [&](int64_t slices, int64_t members) {
                write_parts = torch::stable::new_empty(A, {slices, sizes.batch, sizes.vertices});
                rate_parts = scan.new_parts(A, members);
                bias_parts = scan.new_parts(A, members);
                return SelectedGradients<T>{grad_x.mutable_data_ptr<T>(),
                                            grad_delta.mutable_data_ptr<T>(),
                                            write_parts.mutable_data_ptr<Accumulated>(),
                                            rate_parts.mutable_data_ptr<Accumulated>(),
                                            bias_parts.mutable_data_ptr<Accumulated>(),
                                            sizes.batch * sizes.vertices,
                                            {},
                                            {}};
            });
        });
    }
    const int64_t dim = 0;
    auto sum = [&](const Tensor& parts) { return torch::stable::sum(parts, {{&dim, 1}}); };
    torch::stable::copy_(grad_B, sum(write_parts));
    return {scan.unpacked(grad_x), scan.unpacked(grad_delta), scan.unpacked(sum(rate_parts)), grad_B,
            scan.unpacked(sum(bias_parts))};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    m.impl("selective_tree_scan", TORCH_BOX(&grootv::selective_tree_scan));
    m.impl("selective_tree_scan_backward", TORCH_BOX(&grootv::selective_tree_scan_backward));
}
