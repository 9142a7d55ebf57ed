#include "cpu/scan_passes.h"

#include <atomic>

#include <torch/csrc/stable/library.h>

#include "cpu/huge_pages.h"

namespace grootv {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// down_pass_backward for direction `up`, where a vertex hears its own subtree only: its gradient comes from above only.
template <class T, class A>
GROOTV_INLINE void down_pass_backward_up(TreeSchedule tree, int64_t channels, Rows<const T> grad, Rows<const T> decay,
                                         Rows<A> sum, Rows<A> grad_sum, Rows<T> grad_decay) {
    const int32_t root = tree.order[0];
    for (int64_t c = 0; c < channels; ++c) {
        grad_sum[root][c] = static_cast<A>(grad[root][c]);
        grad_decay[root][c] = static_cast<T>(A{0});
    }
    for (int64_t p = 1; p < tree.vertices; ++p) {
        const int32_t vertex = tree.order[p];
        const T* __restrict own = grad[vertex];
        const T* __restrict decay_row = decay[vertex];
        const A* __restrict grad_above = grad_sum[tree.order[tree.parent_position[p]]];
        const A* up = sum[vertex];
        A* __restrict grad_total = grad_sum[vertex];
        T* to_decay = grad_decay[vertex];
        GROOTV_IVDEP  // to_decay may be up itself
            for (int64_t c = 0; c < channels; ++c) {
            grad_total[c] = static_cast<A>(own[c]) + static_cast<A>(decay_row[c]) * grad_above[c];
            to_decay[c] = static_cast<T>(up[c] * grad_above[c]);
        }
    }
}

#define GROOTV_INSTANTIATE(T)                                                                                      \
    GROOTV_VECTORIZE void scan_block(TreeSchedule tree, int64_t channels, bool both, Rows<const T> input,          \
                                     Rows<const T> decay, Sums<T, acc_type<T>>& output) {                          \
        up_pass(tree, channels, GivenSignal<T>{input, channels}, decay, output.rows);                              \
        if (both) down_pass(tree, channels, decay, output.rows);                                                   \
        output.store();                                                                                            \
    }                                                                                                              \
    GROOTV_VECTORIZE void scan_block_backward(TreeSchedule tree, int64_t channels, bool both, Rows<const T> grad,  \
                                              Rows<const T> input, Rows<const T> decay, Sums<T, acc_type<T>>& sum, \
                                              Sums<T, acc_type<T>>& grad_sum, Rows<acc_type<T>> window,            \
                                              int64_t window_size, Rows<T> grad_decay) {                           \
        up_pass(tree, channels, GivenSignal<T>{input, channels}, decay, sum.rows);                                 \
        if (both) {                                                                                                \
            up_pass(tree, channels, GivenSignal<T>{grad, channels}, decay, grad_sum.rows);                         \
            down_pass_backward(tree, channels, decay, sum.rows, grad_sum.rows, window, window_size, grad_decay,    \
                               KeepGradients{});                                                                   \
        } else {                                                                                                   \
            down_pass_backward_up(tree, channels, grad, decay, sum.rows, grad_sum.rows, grad_decay);               \
        }                                                                                                          \
        grad_sum.store();                                                                                          \
    }
GROOTV_INSTANTIATE(float)
GROOTV_INSTANTIATE(double)
GROOTV_INSTANTIATE(Half)
GROOTV_INSTANTIATE(BFloat16)
#undef GROOTV_INSTANTIATE

// False if `order` is no permutation or not the breadth-first order of the tree that `parent` describes.
bool find_parent_positions(const int32_t* order, const int32_t* parent, int64_t vertices, int32_t* parent_position) {
    Workspace workspace;
    auto* position = workspace.take<int32_t>(vertices);
    for (int64_t p = 0; p < vertices; ++p) {
        if (order[p] < 0 || order[p] >= vertices) return false;
        position[order[p]] = static_cast<int32_t>(p);
    }
    bool fine = parent[order[0]] == order[0];
    for (int64_t p = 0, previous = 0; p < vertices; ++p) {
        const int32_t vertex = order[p], above = parent[vertex];
        if (above < 0 || above >= vertices) return false;
        // A vertex that stands twice in the order has lost its first position.
        const int64_t found = position[above];
        fine &= (position[vertex] == p) & (found >= previous) & (found < p || p == 0);
        parent_position[p] = static_cast<int32_t>(found);
        previous = found;
    }
    return fine;
}

}  // namespace

ScanTasks::ScanTasks(const ScanSizes& sizes, const Tensor& order, const Tensor& parent)
    : sizes_(sizes), order_(as_contiguous(order)), parent_position_(sizes.batch * sizes.vertices) {
    Tensor parents = as_contiguous(parent);
    std::atomic<int64_t> wrong{-1};
    parallel_for_each(sizes.function, sizes.batch, [&](int64_t item) {
        int64_t offset = item * sizes.vertices;
        if (!find_parent_positions(order_.const_data_ptr<int32_t>() + offset,
                                   parents.const_data_ptr<int32_t>() + offset, sizes.vertices,
                                   parent_position_.data() + offset))
            wrong = item;
    });
    check(wrong < 0, sizes.function, ": order and parent must be a tree in breadth-first order, but those of item ",
          wrong.load(), " are not");
}

Tensor ScanTasks::new_signal(const Tensor& like) const {
    Tensor signal = torch::stable::new_empty(like, {sizes_.batch, sizes_.vertices, sizes_.channels});
    advise_huge_pages(signal.mutable_data_ptr(), signal.numel() * signal.element_size());
    return signal;
}

namespace {

Tensor tree_scan(const Tensor& input, const Tensor& decay, const Tensor& order, const Tensor& parent,
                 const std::string& direction) {
    ScanArguments scan("tree_scan", input, decay, order, parent, direction);
    ScanTasks tasks(scan, order, parent);
    Tensor u = as_contiguous(input), a = as_contiguous(decay);
    Tensor output = tasks.new_signal(u);
    dispatch_floating(u, [&](auto zero) {
        using T = decltype(zero);
        using A = acc_type<T>;
        const T *input_ptr = u.const_data_ptr<T>(), *decay_ptr = a.const_data_ptr<T>();
        T* output_ptr = output.mutable_data_ptr<T>();
        tasks.for_each_block(ScanTasks::LINE, [&](TreeSchedule tree, int64_t item, int64_t channel, int64_t channels) {
            Workspace workspace;
            int64_t stride = scan.channels, offset = item * scan.vertices * stride + channel;
            Sums<T, A> sum(workspace, {output_ptr + offset, stride}, tree.vertices, channels);
            scan_block(tree, channels, scan.both, Rows<const T>{input_ptr + offset, stride},
                       Rows<const T>{decay_ptr + offset, stride}, sum);
        });
    });
    return output;
}

std::tuple<Tensor, Tensor> tree_scan_backward(const Tensor& grad, const Tensor& input, const Tensor& decay,
                                              const Tensor& order, const Tensor& parent, const std::string& direction) {
    ScanArguments scan("tree_scan_backward", input, decay, order, parent, direction);
    scan.check_grad(grad, input);
    ScanTasks tasks(scan, order, parent);
    Tensor g = as_contiguous(grad), u = as_contiguous(input), a = as_contiguous(decay);
    Tensor grad_input = tasks.new_signal(u), grad_decay = tasks.new_signal(u);
    dispatch_floating(u, [&](auto zero) {
        using T = decltype(zero);
        using A = acc_type<T>;
        const T *input_ptr = u.const_data_ptr<T>(), *decay_ptr = a.const_data_ptr<T>();
        const T* grad_ptr = g.const_data_ptr<T>();
        T *grad_input_ptr = grad_input.mutable_data_ptr<T>(), *grad_decay_ptr = grad_decay.mutable_data_ptr<T>();
        tasks.for_each_block(ScanTasks::LINE, [&](TreeSchedule tree, int64_t item, int64_t channel, int64_t channels) {
            Workspace workspace;
            int64_t stride = scan.channels, offset = item * scan.vertices * stride + channel;
            Rows<T> to_input{grad_input_ptr + offset, stride}, to_decay{grad_decay_ptr + offset, stride};
            Sums<T, A> sum(workspace, to_decay, tree.vertices, channels);
            Sums<T, A> grad_sum(workspace, to_input, tree.vertices, channels);
            int64_t window_size = tree.window_size();
            Rows<A> window{workspace.take<A>(window_size * channels), channels};
            scan_block_backward(tree, channels, scan.both, Rows<const T>{grad_ptr + offset, stride},
                                Rows<const T>{input_ptr + offset, stride}, Rows<const T>{decay_ptr + offset, stride},
                                sum, grad_sum, window, window_size, to_decay);
        });
    });
    return {grad_input, grad_decay};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    m.impl("tree_scan", TORCH_BOX(&grootv::tree_scan));
    m.impl("tree_scan_backward", TORCH_BOX(&grootv::tree_scan_backward));
}
