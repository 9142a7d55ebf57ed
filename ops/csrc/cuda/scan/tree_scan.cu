#include "tree_scan.h"

#include "cuda/scan/scan.h"

namespace grootv {
namespace {

// Signal and decay as they are given.
template <class T>
struct TreeScanInputs {
    using scalar_t = T;
    using acc_t = acc_type<T>;
    using decay_t = T;
    using Loaded = Vector<scalar_t>;

    const scalar_t *signals, *decays;

    __device__ void select(int64_t) {}
    __device__ Loaded load(int32_t, int64_t at) const { return load_once(&as_vector(signals + at)); }
    __device__ Vector<acc_t> signal(const Loaded& loaded, int64_t) const { return cast<acc_t>(loaded); }
};

template <class scalar_t>
struct TreeScanGradients {
    static constexpr int SHARED_VECTORS = 0;
    static constexpr bool BY_WARPS = false;
    using Inputs = TreeScanInputs<scalar_t>;
    using acc_t = acc_type<scalar_t>;
    struct Loaded {};

    scalar_t *signal, *decay;

    __device__ Loaded load(const Inputs&, int32_t, int64_t) const { return {}; }
    template <class Group>
    __device__ void store(const ChannelTile<Group, acc_t>& tile, const Inputs&, int32_t row, Loaded,
                          const Vector<acc_t>&, const Vector<acc_t>& grad_signal, const Vector<acc_t>& grad_decay, bool,
                          bool live) const {
        if (!live) return;
        store_once(&as_vector(signal + tile.at(row)), cast<scalar_t>(grad_signal));
        store_once(&as_vector(decay + tile.at(row)), cast<scalar_t>(grad_decay));
    }
    template <class Group>
    __device__ void end(const ChannelTile<Group, acc_t>&) const {}
};

Tensor tree_scan(const Tensor& input, const Tensor& decay, const Tensor& order, const Tensor& parent,
                 const std::string& direction, const std::optional<Tensor>& decomposition) {
    ScanArguments arguments("tree_scan", input, decay, order, parent, direction);
    Scan scan(arguments, input, order, parent, decomposition);
    Tensor u = scan.padded(input), a = scan.padded(decay), output = scan.new_rows(u);
    if (scan.empty()) return scan.unpadded(output);
    dispatch_floating(u, [&]<class scalar_t>(scalar_t) {
        const TreeScanInputs<scalar_t> inputs{u.const_data_ptr<scalar_t>(), a.const_data_ptr<scalar_t>()};
        scan.forward(inputs, arguments.both, output.mutable_data_ptr<scalar_t>());
    });
    return scan.unpadded(output);
}

std::tuple<Tensor, Tensor> tree_scan_backward(const Tensor& grad, const Tensor& input, const Tensor& decay,
                                              const Tensor& order, const Tensor& parent, const std::string& direction,
                                              const std::optional<Tensor>& decomposition) {
    ScanArguments arguments("tree_scan_backward", input, decay, order, parent, direction);
    arguments.check_grad(grad, input);
    Scan scan(arguments, input, order, parent, decomposition);
    Tensor g = scan.padded(grad), u = scan.padded(input), a = scan.padded(decay);
    Tensor grad_input = scan.new_rows(u), grad_decay = scan.new_rows(u);
    if (scan.empty()) return {scan.unpadded(grad_input), scan.unpadded(grad_decay)};
    dispatch_floating(u, [&]<class scalar_t>(scalar_t) {
        const TreeScanInputs<scalar_t> inputs{u.const_data_ptr<scalar_t>(), a.const_data_ptr<scalar_t>()};
        const TreeScanGradients<scalar_t> gradients{grad_input.mutable_data_ptr<scalar_t>(),
                                                    grad_decay.mutable_data_ptr<scalar_t>()};
        auto give = [&](int64_t, int64_t) { return gradients; };
        if (arguments.both)
            scan.backward<2>(inputs, g.const_data_ptr<scalar_t>(), nullptr, give);
        else
            scan.backward<1>(inputs, g.const_data_ptr<scalar_t>(), nullptr, give);
    });
    return {scan.unpadded(grad_input), scan.unpadded(grad_decay)};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, tree_scan);
    GROOTV_IMPL(m, tree_scan_backward);
}
