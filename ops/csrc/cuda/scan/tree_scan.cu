#include "tree_scan.h"

#include <torch/csrc/stable/library.h>

#include "cuda/scan/scan.h"

namespace grootv {
namespace {

// Signal and decay as they are given.
template <class T>
struct GivenSignal {
    using Element = T;
    using A = acc_type<T>;
    using DecayInput = Pack<T>;
    struct Input {
        Pack<T> signal, decay;
    };

    const T *signals, *decays;

    __device__ void select(int64_t) {}
    __device__ Input read(int32_t, int64_t at) const { return {as_pack(signals + at), as_pack(decays + at)}; }
    __device__ Pack<T> read_decay(int64_t at) const { return as_pack(decays + at); }
    __device__ Pack<A> signal(const Input& input) const { return cast<A>(input.signal); }
    __device__ Pack<A> decay(const Pack<T>& input) const { return cast<A>(input); }
};

template <class T>
struct GivenGradients {
    static constexpr int SHARED_PACKS = 0;
    using A = acc_type<T>;
    struct Input {};

    T *signal, *decay;

    __device__ Input read(const GivenSignal<T>&, int32_t, int64_t) const { return {}; }
    template <class Team>
    __device__ void put(const Worker<Team, A>& worker, const GivenSignal<T>&, int32_t row, Input, const Pack<T>&,
                        const Pack<A>&, const Pack<A>& grad_signal, const Pack<A>& grad_decay, bool live) const {
        if (!live) return;
        as_pack(signal + worker.at(row)) = cast<T>(grad_signal);
        as_pack(decay + worker.at(row)) = cast<T>(grad_decay);
    }
    template <class Team>
    __device__ void end(const Worker<Team, A>&) const {}
};

Tensor tree_scan(const Tensor& input, const Tensor& decay, const Tensor& order, const Tensor& parent,
                 const std::string& direction) {
    ScanArguments arguments("tree_scan", input, decay, order, parent, direction);
    Scan scan(arguments, input, order, parent);
    Tensor u = scan.packed(input), a = scan.packed(decay), output = scan.new_rows(u);
    if (scan.empty()) return scan.unpacked(output);
    dispatch_floating(u, [&](auto zero) {
        using T = decltype(zero);
        GivenSignal<T> signal{u.const_data_ptr<T>(), a.const_data_ptr<T>()};
        scan.forward(signal, arguments.both, output.mutable_data_ptr<T>());
    });
    return scan.unpacked(output);
}

std::tuple<Tensor, Tensor> tree_scan_backward(const Tensor& grad, const Tensor& input, const Tensor& decay,
                                              const Tensor& order, const Tensor& parent, const std::string& direction) {
    ScanArguments arguments("tree_scan_backward", input, decay, order, parent, direction);
    arguments.check_grad(grad, input);
    Scan scan(arguments, input, order, parent);
    Tensor g = scan.packed(grad), u = scan.packed(input), a = scan.packed(decay);
    Tensor grad_input = scan.new_rows(u), grad_decay = scan.new_rows(u);
    if (scan.empty()) return {scan.unpacked(grad_input), scan.unpacked(grad_decay)};
    dispatch_floating(u, [&](auto zero) {
        using T = decltype(zero);
        GivenSignal<T> signal{u.const_data_ptr<T>(), a.const_data_ptr<T>()};
        GivenGradients<T> gradients{grad_input.mutable_data_ptr<T>(), grad_decay.mutable_data_ptr<T>()};
        auto give = [&](int64_t, int64_t) { return gradients; };
        if (arguments.both)
            scan.backward<2>(signal, g.const_data_ptr<T>(), give);
        else
            scan.backward<1>(signal, g.const_data_ptr<T>(), give);
    });
    return {scan.unpacked(grad_input), scan.unpacked(grad_decay)};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    m.impl("tree_scan", TORCH_BOX(&grootv::tree_scan));
    m.impl("tree_scan_backward", TORCH_BOX(&grootv::tree_scan_backward));
}
