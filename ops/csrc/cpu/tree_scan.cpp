#include "cpu/scan_passes.h"

#include <atomic>

namespace grootv {
namespace {

// down_pass_backward for direction `up`, where a vertex receives its own subtree only: its gradient comes from above
// only.
template <class scalar_t, class acc_t>
GROOTV_INLINE void down_pass_backward_up(TreeSchedule tree, int64_t channels, TileRows<const scalar_t> grad,
                                         TileRows<const scalar_t> decay, TileRows<acc_t> sum, TileRows<acc_t> grad_sum,
                                         TileRows<scalar_t> grad_decay) {
    const int32_t root = tree.order[0];
    for (int64_t c = 0; c < channels; ++c) {
        grad_sum[root][c] = static_cast<acc_t>(grad[root][c]);
        grad_decay[root][c] = static_cast<scalar_t>(acc_t{0});
    }
    for (int64_t p = 1; p < tree.vertices; ++p) {
        const int32_t vertex = tree.order[p];
        const scalar_t* __restrict own = grad[vertex];
        const scalar_t* __restrict decay_row = decay[vertex];
        const acc_t* __restrict grad_above = grad_sum[tree.order[tree.parent_position[p]]];
        const acc_t* up = sum[vertex];
        acc_t* __restrict grad_total = grad_sum[vertex];
        scalar_t* to_decay = grad_decay[vertex];
        GROOTV_IVDEP  // to_decay may be up itself
            for (int64_t c = 0; c < channels; ++c) {
            grad_total[c] = static_cast<acc_t>(own[c]) + static_cast<acc_t>(decay_row[c]) * grad_above[c];
            to_decay[c] = static_cast<scalar_t>(up[c] * grad_above[c]);
        }
    }
}

template <class scalar_t, class acc_t>
GROOTV_VECTORIZE void scan_tile(TreeSchedule tree, int64_t channels, bool both, TileRows<const scalar_t> input,
                                TileRows<const scalar_t> decay, Sums<scalar_t, acc_t>& output) {
    up_pass(tree, channels, TreeScanSignal<scalar_t>{input, channels}, decay, output.rows);
    if (both) down_pass(tree, channels, decay, output.rows);
    output.store();
}

template <class scalar_t, class acc_t>
GROOTV_VECTORIZE void scan_tile_backward(TreeSchedule tree, int64_t channels, bool both, TileRows<const scalar_t> grad,
                                         TileRows<const scalar_t> input, TileRows<const scalar_t> decay,
                                         Sums<scalar_t, acc_t>& sum, Sums<scalar_t, acc_t>& grad_sum,
                                         TileRows<acc_t> window, int64_t window_size, TileRows<scalar_t> grad_decay) {
    up_pass(tree, channels, TreeScanSignal<scalar_t>{input, channels}, decay, sum.rows);
    if (both) {
        up_pass(tree, channels, TreeScanSignal<scalar_t>{grad, channels}, decay, grad_sum.rows);
        down_pass_backward(tree, channels, decay, sum.rows, grad_sum.rows, window, window_size, grad_decay,
                           KeepGradients{});
    } else {
        down_pass_backward_up(tree, channels, grad, decay, sum.rows, grad_sum.rows, grad_decay);
    }
    grad_sum.store();
}

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
        // Of a vertex that is twice in the order, only the last position was kept.
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

namespace {

Tensor tree_scan(const Tensor& input, const Tensor& decay, const Tensor& order, const Tensor& parent,
                 const std::string& direction, const std::optional<Tensor>&) {
    ScanArguments scan("tree_scan", input, decay, order, parent, direction);
    ScanTasks tasks(scan, order, parent);
    Tensor u = as_contiguous(input), a = as_contiguous(decay);
    Tensor output = empty_map(u);
    dispatch_floating(u, [&]<class scalar_t>(scalar_t) {
        tasks.for_each_tile(ScanTasks::ALIGNMENT, [&](const ChannelTile& tile) {
            Workspace workspace;
            Sums sum(workspace, tile, tile.rows<scalar_t>(output));
            scan_tile(tile.tree, tile.channels, scan.both, tile.rows<const scalar_t>(u), tile.rows<const scalar_t>(a),
                      sum);
        });
    });
    return output;
}

std::tuple<Tensor, Tensor> tree_scan_backward(const Tensor& grad, const Tensor& input, const Tensor& decay,
                                              const Tensor& order, const Tensor& parent, const std::string& direction,
                                              const std::optional<Tensor>&) {
    ScanArguments scan("tree_scan_backward", input, decay, order, parent, direction);
    scan.check_grad(grad, input);
    ScanTasks tasks(scan, order, parent);
    Tensor g = as_contiguous(grad), u = as_contiguous(input), a = as_contiguous(decay);
    Tensor grad_input = empty_map(u), grad_decay = empty_map(u);
    dispatch_floating(u, [&]<class scalar_t>(scalar_t) {
        tasks.for_each_tile(ScanTasks::ALIGNMENT, [&](const ChannelTile& tile) {
            Workspace workspace;
            const auto to_decay = tile.rows<scalar_t>(grad_decay);
            Sums sum(workspace, tile, to_decay), grad_sum(workspace, tile, tile.rows<scalar_t>(grad_input));
            const int64_t window_size = tile.tree.window_size();
            const auto window = tile.take_rows<acc_type<scalar_t>>(workspace, window_size);
            scan_tile_backward(tile.tree, tile.channels, scan.both, tile.rows<const scalar_t>(g),
                               tile.rows<const scalar_t>(u), tile.rows<const scalar_t>(a), sum, grad_sum, window,
                               window_size, to_decay);
        });
    });
    return {grad_input, grad_decay};
}

// A CPU takes the vertices in breadth-first order.
Tensor heavy_light(const Tensor& order, const Tensor& parent, const std::string& function) {
    check_tree(function.c_str(), order, parent);
    return make_empty(order, {order.size(0), 0});
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    GROOTV_IMPL(m, heavy_light);
    GROOTV_IMPL(m, tree_scan);
    GROOTV_IMPL(m, tree_scan_backward);
}
