#include "tree_scan.h"

#include <torch/csrc/stable/library.h>

#include "cuda/scan.h"

namespace grootv {
namespace {

Tensor tree_scan(const Tensor& input, const Tensor& decay, const Tensor& order, const Tensor& parent,
                 const Tensor& level_ptr, const std::string& direction) {
    ScanArguments arguments("tree_scan", input, decay, order, parent, level_ptr, direction);
    Scan scan(arguments, input, order, parent);
    Tensor u = as_contiguous(input), a = as_contiguous(decay);
    Tensor output = torch::stable::new_empty(u, {scan.sizes.batch, scan.sizes.vertices, scan.sizes.channels});
    if (scan.empty()) return output;
    dispatch_floating(u, [&](auto zero) {
        using T = decltype(zero);
        GivenSignal<T> signal{u.const_data_ptr<T>(), a.const_data_ptr<T>(), scan.sizes.channels};
        scan.forward(signal, arguments.both, output.mutable_data_ptr<T>());
    });
    return output;
}

std::tuple<Tensor, Tensor> tree_scan_backward(const Tensor& grad, const Tensor& input, const Tensor& decay,
                                              const Tensor& order, const Tensor& parent, const Tensor& level_ptr,
                                              const std::string& direction) {
    ScanArguments arguments("tree_scan_backward", input, decay, order, parent, level_ptr, direction);
    arguments.check_grad(grad, input);
    Scan scan(arguments, input, order, parent);
    Tensor g = as_contiguous(grad), u = as_contiguous(input), a = as_contiguous(decay);
    auto new_signal = [&] {
        return torch::stable::new_empty(u, {scan.sizes.batch, scan.sizes.vertices, scan.sizes.channels});
    };
    Tensor grad_input = new_signal(), grad_decay = new_signal();
    if (scan.empty()) return {grad_input, grad_decay};
    dispatch_floating(u, [&](auto zero) {
        using T = decltype(zero);
        GivenSignal<T> signal{u.const_data_ptr<T>(), a.const_data_ptr<T>(), scan.sizes.channels};
        ScanGradients<T> gradients{grad_input.mutable_data_ptr<T>(), grad_decay.mutable_data_ptr<T>(),
                                   scan.sizes.channels};
        scan.backward(signal, arguments.both, g.const_data_ptr<T>(), gradients);
    });
    return {grad_input, grad_decay};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    m.impl("tree_scan", TORCH_BOX(&grootv::tree_scan));
    m.impl("tree_scan_backward", TORCH_BOX(&grootv::tree_scan_backward));
}
