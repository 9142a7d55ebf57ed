// The two passes of a scan on the CPU, vertex by vertex with the inner loop over channels.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/vectorize.h"
#include "cpu/workspace.h"
#include "tree_scan.h"

namespace grootv {

struct TreeSchedule {
    const int32_t* order;            // vertex at each position
    const int32_t* parent_position;  // position of the parent; the root, at position 0, is its own
    int64_t vertices;

    // How many successive totals must be kept so that children find their parent's: a power of two above the
    // greatest distance of a vertex from its parent.
    int64_t window_size() const {
        int64_t distance = 0;
        for (int64_t p = 0; p < vertices; ++p) distance = std::max(distance, p - parent_position[p]);
        return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(distance + 1)));
    }
};

// The rows that a channel tile has of a map: one per vertex.
template <class T>
struct TileRows {
    T* first;
    int64_t stride;

    GROOTV_INLINE T* operator[](int64_t vertex) const { return first + vertex * stride; }
};

// A task: a tile of channels of one item.
struct ChannelTile {
    TreeSchedule tree;
    int64_t item, channel, channels;

    // Of a contiguous map (B, L, C).
    template <class T>
    TileRows<T> rows(const Tensor& map) const {
        const int64_t stride = map.size(2), offset = item * tree.vertices * stride + channel;
        if constexpr (std::is_const_v<T>)
            return {map.const_data_ptr<std::remove_const_t<T>>() + offset, stride};
        else
            return {map.mutable_data_ptr<T>() + offset, stride};
    }

    template <class T>
    TileRows<T> take_rows(Workspace& workspace, int64_t count) const {
        return {workspace.take<T>(count * channels), channels};
    }
};

// The trees of a batch, and its division into tasks.
class ScanTasks {
public:
    // Channels of a tile, at most: few enough that its rows stay near the core, enough to be worth a walk over the
    // tree.
    static constexpr int64_t MAX_CHANNELS = 256;
    // Tiles start at multiples of this many channels, so that no two share a cache line.
    static constexpr int64_t ALIGNMENT = 16;

    // Throws if order and parent are not trees in breadth-first order.
    ScanTasks(const ScanSizes& sizes, const Tensor& order, const Tensor& parent);

    // Calls task(tile) for every tile of every item, in parallel. Tiles start at multiples of `multiple`, itself one of
    // ALIGNMENT.
    template <class Task>
    void for_each_tile(int64_t multiple, Task task) const {
        if (sizes_.batch == 0 || sizes_.channels == 0) return;
        // Tiles of about equal size, and as many for every thread if there are fewer items than threads.
        int64_t tiles = (sizes_.channels + MAX_CHANNELS - 1) / MAX_CHANNELS;
        if (int64_t threads = torch::stable::get_num_threads(); sizes_.batch < threads) {
            const int64_t even = threads / std::gcd(sizes_.batch, threads);
            tiles = (tiles + even - 1) / even * even;
        }
        int64_t size = ((sizes_.channels + tiles - 1) / tiles + multiple - 1) / multiple * multiple;
        tiles = (sizes_.channels + size - 1) / size;
        parallel_for_each(sizes_.function, sizes_.batch * tiles, [&](int64_t i) {
            int64_t item = i / tiles, channel = i % tiles * size;
            TreeSchedule tree{order_.const_data_ptr<int32_t>() + item * sizes_.vertices,
                              parent_position_.data() + item * sizes_.vertices, sizes_.vertices};
            task(ChannelTile{tree, item, channel, std::min(size, sizes_.channels - channel)});
        });
    }

private:
    ScanSizes sizes_;
    Tensor order_;
    std::vector<int32_t> parent_position_;
};

template <class T>
GROOTV_INLINE void prefetch(TileRows<T> rows, int64_t vertex, int64_t channels) {
    constexpr int64_t CACHE_LINE = 64 / sizeof(T);
    for (int64_t c = 0; c < channels; c += CACHE_LINE) __builtin_prefetch(rows[vertex] + c, !std::is_const_v<T>);
}

constexpr int64_t AHEAD = 4;  // positions to prefetch ahead: the vertices of a level are scattered

// Where sums are kept: in the result itself if it has their type, else in scratch memory.
template <class scalar_t, class acc_t = acc_type<scalar_t>>
class Sums {
public:
    Sums(Workspace& workspace, const ChannelTile& tile, TileRows<scalar_t> result)
        : result_(result), vertices_(tile.tree.vertices), channels_(tile.channels) {
        if constexpr (std::is_same_v<scalar_t, acc_t>)
            rows = result;
        else
            rows = tile.take_rows<acc_t>(workspace, vertices_);
    }

    GROOTV_INLINE void store() const {
        if constexpr (!std::is_same_v<scalar_t, acc_t>)
            for (int64_t v = 0; v < vertices_; ++v)
                for (int64_t c = 0; c < channels_; ++c) result_[v][c] = static_cast<scalar_t>(rows[v][c]);
    }

    TileRows<acc_t> rows;

private:
    TileRows<scalar_t> result_;
    int64_t vertices_, channels_;
};

// What the up pass sums: the rows of a map.
template <class scalar_t>
struct TreeScanSignal {
    TileRows<const scalar_t> rows;
    int64_t channels;

    GROOTV_INLINE void prefetch(int64_t vertex) const { grootv::prefetch(rows, vertex, channels); }
    GROOTV_INLINE const scalar_t* row(int64_t vertex) const { return rows[vertex]; }
};

// sum = own + decay[0] child[0] + ... + decay[K - 1] child[K - 1], in this order.
template <int K, class scalar_t, class acc_t, class Own>
GROOTV_INLINE void add_children(int64_t channels, const Own* own, const scalar_t* const* decay,
                                const acc_t* const* child, acc_t* sum) {
    GROOTV_IVDEP  // own may be sum itself
        for (int64_t c = 0; c < channels; ++c) {
        acc_t total = static_cast<acc_t>(own[c]);
        for (int k = 0; k < K; ++k) total += static_cast<acc_t>(decay[k][c]) * child[k][c];
        sum[c] = total;
    }
}

template <class scalar_t, class acc_t, class Own>
GROOTV_INLINE void add_children(int count, int64_t channels, const Own* own, const scalar_t* const* decay,
                                const acc_t* const* child, acc_t* sum) {
    switch (count) {
        case 0: return add_children<0>(channels, own, decay, child, sum);
        case 1: return add_children<1>(channels, own, decay, child, sum);
        case 2: return add_children<2>(channels, own, decay, child, sum);
        default: return add_children<3>(channels, own, decay, child, sum);
    }
}

// up[v] = signal[v] + sum over children c of decay[c] up[c], the last child first. signal.row(v) is called after v's
// children are done, and may write decay[v] and up[v].
template <class Signal, class scalar_t, class acc_t>
GROOTV_INLINE void up_pass(TreeSchedule tree, int64_t channels, const Signal& signal, TileRows<const scalar_t> decay,
                           TileRows<acc_t> up) {
    int64_t q = tree.vertices - 1;
    for (int64_t p = tree.vertices - 1; p >= 0; --p) {
        if (p >= AHEAD) signal.prefetch(tree.order[p - AHEAD]);
        auto own = signal.row(tree.order[p]);
        acc_t* sum = up[tree.order[p]];
        for (bool first = true; first || (q > p && tree.parent_position[q] == p); first = false) {
            const scalar_t* decay_rows[3];
            const acc_t* child_rows[3];
            int count = 0;
            for (; count < 3 && q > p && tree.parent_position[q] == p; ++count, --q) {
                if (q >= AHEAD) prefetch(decay, tree.order[q - AHEAD], channels);
                decay_rows[count] = decay[tree.order[q]];
                child_rows[count] = up[tree.order[q]];
            }
            if (first)
                add_children(count, channels, own, decay_rows, child_rows, sum);
            else
                add_children(count, channels, sum, decay_rows, child_rows, sum);
        }
    }
}

// total[v] = up[v] + decay[v] (total[parent] - decay[v] up[v]), in place of up.
template <class scalar_t, class acc_t>
GROOTV_INLINE void down_pass(TreeSchedule tree, int64_t channels, TileRows<const scalar_t> decay, TileRows<acc_t> sum) {
    for (int64_t p = 1; p < tree.vertices; ++p) {
        if (p + AHEAD < tree.vertices) {
            prefetch(decay, tree.order[p + AHEAD], channels);
            prefetch(sum, tree.order[p + AHEAD], channels);
        }
        const scalar_t* __restrict decay_row = decay[tree.order[p]];
        const acc_t* __restrict above = sum[tree.order[tree.parent_position[p]]];
        acc_t* __restrict total = sum[tree.order[p]];
        for (int64_t c = 0; c < channels; ++c) {
            // up[v] already flowed into its parent: take that share out before the parent's total flows back, or
            // the vertex would receive its own subtree twice.
            acc_t a = static_cast<acc_t>(decay_row[c]);
            total[c] = total[c] + a * (above[c] - a * total[c]);
        }
    }
}

// A consumer for down_pass_backward that leaves the gradients of signal and decay as they are.
struct KeepGradients {
    GROOTV_INLINE void prefetch(int64_t vertex) const {}
    GROOTV_INLINE void finish(int64_t vertex) const {}
};

// The gradient of the signal is the scan of the gradient, because P(i, j) is symmetric. That of a decay multiplies what
// comes down its edge by what goes up, for signal and gradient each.
// On entry sum and grad_sum hold the up passes; on return grad_sum holds the gradient of the signal. `window` keeps
// the totals of the last vertices until their children have read them, since grad_decay may be in sum's place.
// consumer.finish(v) is called once both gradients of v are known, and may overwrite grad_decay[v].
template <class scalar_t, class acc_t, class Consumer>
GROOTV_INLINE void down_pass_backward(TreeSchedule tree, int64_t channels, TileRows<const scalar_t> decay,
                                      TileRows<acc_t> sum, TileRows<acc_t> grad_sum, TileRows<acc_t> window,
                                      int64_t window_size, TileRows<scalar_t> grad_decay, Consumer consumer) {
    const int32_t root = tree.order[0];
    for (int64_t c = 0; c < channels; ++c) {
        window[0][c] = sum[root][c];
        grad_decay[root][c] = static_cast<scalar_t>(acc_t{0});
    }
    consumer.finish(root);
    for (int64_t p = 1; p < tree.vertices; ++p) {
        const int32_t vertex = tree.order[p];
        if (p + AHEAD < tree.vertices) {
            prefetch(decay, tree.order[p + AHEAD], channels);
            prefetch(sum, tree.order[p + AHEAD], channels);
            prefetch(grad_sum, tree.order[p + AHEAD], channels);
            consumer.prefetch(tree.order[p + AHEAD]);
        }
        const scalar_t* __restrict decay_row = decay[vertex];
        const acc_t* __restrict total_above = window[tree.parent_position[p] & (window_size - 1)];
        const acc_t* __restrict grad_above = grad_sum[tree.order[tree.parent_position[p]]];
        const acc_t* up = sum[vertex];
        acc_t* __restrict total = window[p & (window_size - 1)];
        acc_t* __restrict grad_total = grad_sum[vertex];
        scalar_t* to_decay = grad_decay[vertex];
        GROOTV_IVDEP  // to_decay may be up itself
            for (int64_t c = 0; c < channels; ++c) {
            acc_t a = static_cast<acc_t>(decay_row[c]);
            acc_t elsewhere = total_above[c] - a * up[c];
            acc_t grad_elsewhere = grad_above[c] - a * grad_total[c];
            acc_t product = grad_total[c] * elsewhere + up[c] * grad_elsewhere;
            total[c] = up[c] + a * elsewhere;
            grad_total[c] = grad_total[c] + a * grad_elsewhere;
            to_decay[c] = static_cast<scalar_t>(product);
        }
        consumer.finish(vertex);
    }
}

}  // namespace grootv
