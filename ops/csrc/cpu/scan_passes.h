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

// The trees of a batch, and its division into tasks: a block of channels of one item.
class ScanTasks {
public:
    // Channels of a task, at most: few enough that its rows stay near the core, enough to be worth a walk over the
    // tree.
    static constexpr int64_t BLOCK = 256;
    static constexpr int64_t LINE = 16;  // blocks start at multiples of this, for no two to share a cache line

    // Throws if order and parent are not trees in breadth-first order.
    ScanTasks(const ScanSizes& sizes, const Tensor& order, const Tensor& parent);

    // Calls task(tree, item, channel, channels) for every block of channels of every item, in parallel. Blocks start
    // at multiples of `multiple`, itself one of LINE.
    template <class Task>
    void for_each_block(int64_t multiple, Task task) const {
        if (sizes_.batch == 0 || sizes_.channels == 0) return;
        // Blocks of about equal size, and as many for every thread if there are fewer items than threads.
        int64_t blocks = (sizes_.channels + BLOCK - 1) / BLOCK;
        if (int64_t threads = torch::stable::get_num_threads(); sizes_.batch < threads) {
            const int64_t even = threads / std::gcd(sizes_.batch, threads);
            blocks = (blocks + even - 1) / even * even;
        }
        int64_t size = ((sizes_.channels + blocks - 1) / blocks + multiple - 1) / multiple * multiple;
        blocks = (sizes_.channels + size - 1) / size;
        parallel_for_each(sizes_.function, sizes_.batch * blocks, [&](int64_t i) {
            int64_t item = i / blocks, channel = i % blocks * size;
            TreeSchedule tree{order_.const_data_ptr<int32_t>() + item * sizes_.vertices,
                              parent_position_.data() + item * sizes_.vertices, sizes_.vertices};
            task(tree, item, channel, std::min(size, sizes_.channels - channel));
        });
    }

    // A result of shape (B, L, C).
    Tensor new_signal(const Tensor& like) const;

private:
    ScanSizes sizes_;
    Tensor order_;
    std::vector<int32_t> parent_position_;
};

// Rows of a signal, one per vertex, of a block of channels.
template <class T>
struct Rows {
    T* first;
    int64_t stride;

    GROOTV_INLINE T* operator[](int64_t vertex) const { return first + vertex * stride; }
};

template <class T>
GROOTV_INLINE void prefetch(Rows<T> rows, int64_t vertex, int64_t channels) {
    constexpr int64_t LINE = 64 / sizeof(T);
    for (int64_t c = 0; c < channels; c += LINE) __builtin_prefetch(rows[vertex] + c, !std::is_const_v<T>);
}

constexpr int64_t AHEAD = 4;  // positions to prefetch ahead: the vertices of a level lie scattered

// Where sums are kept: in the result itself if it has their type, else in scratch memory.
template <class T, class A>
class Sums {
public:
    Sums(Workspace& workspace, Rows<T> result, int64_t vertices, int64_t channels)
        : result_(result), vertices_(vertices), channels_(channels) {
        if constexpr (std::is_same_v<T, A>)
            rows = result;
        else
            rows = {workspace.take<A>(vertices * channels), channels};
    }

    GROOTV_INLINE void store() const {
        if constexpr (!std::is_same_v<T, A>)
            for (int64_t v = 0; v < vertices_; ++v)
                for (int64_t c = 0; c < channels_; ++c) result_[v][c] = static_cast<T>(rows[v][c]);
    }

    Rows<A> rows;

private:
    Rows<T> result_;
    int64_t vertices_, channels_;
};

// What the up pass sums: rows that are there already.
template <class T>
struct GivenSignal {
    Rows<const T> rows;
    int64_t channels;

    GROOTV_INLINE void prefetch(int64_t vertex) const { grootv::prefetch(rows, vertex, channels); }
    GROOTV_INLINE const T* row(int64_t vertex) const { return rows[vertex]; }
};

// sum = own + decay[0] child[0] + ... + decay[K - 1] child[K - 1], in this order.
template <int K, class T, class A, class Own>
GROOTV_INLINE void add_children(int64_t channels, const Own* own, const T* const* decay, const A* const* child,
                                A* sum) {
    GROOTV_IVDEP  // own may be sum itself
        for (int64_t c = 0; c < channels; ++c) {
        A total = static_cast<A>(own[c]);
        for (int k = 0; k < K; ++k) total += static_cast<A>(decay[k][c]) * child[k][c];
        sum[c] = total;
    }
}

template <class T, class A, class Own>
GROOTV_INLINE void add_children(int count, int64_t channels, const Own* own, const T* const* decay,
                                const A* const* child, A* sum) {
    switch (count) {
        case 0: return add_children<0>(channels, own, decay, child, sum);
        case 1: return add_children<1>(channels, own, decay, child, sum);
        case 2: return add_children<2>(channels, own, decay, child, sum);
        default: return add_children<3>(channels, own, decay, child, sum);
    }
}

// up[v] = signal[v] + sum over children c of decay[c] up[c], the last child first. signal.row(v) is asked for after
// the rows of v's children, and may write decay[v] and up[v].
template <class Signal, class T, class A>
GROOTV_INLINE void up_pass(TreeSchedule tree, int64_t channels, const Signal& signal, Rows<const T> decay, Rows<A> up) {
    int64_t q = tree.vertices - 1;
    for (int64_t p = tree.vertices - 1; p >= 0; --p) {
        if (p >= AHEAD) signal.prefetch(tree.order[p - AHEAD]);
        auto own = signal.row(tree.order[p]);
        A* sum = up[tree.order[p]];
        for (bool first = true; first || (q > p && tree.parent_position[q] == p); first = false) {
            const T* decay_rows[3];
            const A* child_rows[3];
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
template <class T, class A>
GROOTV_INLINE void down_pass(TreeSchedule tree, int64_t channels, Rows<const T> decay, Rows<A> sum) {
    for (int64_t p = 1; p < tree.vertices; ++p) {
        if (p + AHEAD < tree.vertices) {
            prefetch(decay, tree.order[p + AHEAD], channels);
            prefetch(sum, tree.order[p + AHEAD], channels);
        }
        const T* __restrict decay_row = decay[tree.order[p]];
        const A* __restrict above = sum[tree.order[tree.parent_position[p]]];
        A* __restrict total = sum[tree.order[p]];
        for (int64_t c = 0; c < channels; ++c) {
            // up[v] already flowed into its parent: take that share out before the parent's total flows back, or
            // the vertex would hear its own subtree twice.
            A a = static_cast<A>(decay_row[c]);
            total[c] = total[c] + a * (above[c] - a * total[c]);
        }
    }
}

// For down_pass_backward: leaves the gradients of signal and decay as they are.
struct KeepGradients {
    GROOTV_INLINE void prefetch(int64_t vertex) const {}
    GROOTV_INLINE void finish(int64_t vertex) const {}
};

// The gradient of the signal is the scan of the gradient, for P(i, j) is symmetric. That of a decay pairs what
// comes down its edge with what goes up, for signal and gradient in turn.
// On entry sum and grad_sum hold the up passes; on return grad_sum holds the gradient of the signal. `window` keeps
// the totals of the last vertices until their children have read them, since grad_decay may lie in sum's place.
// consumer.finish(v) is called when both gradients of v are there, and may overwrite grad_decay[v].
template <class T, class A, class Consumer>
GROOTV_INLINE void down_pass_backward(TreeSchedule tree, int64_t channels, Rows<const T> decay, Rows<A> sum,
                                      Rows<A> grad_sum, Rows<A> window, int64_t window_size, Rows<T> grad_decay,
                                      Consumer consumer) {
    const int32_t root = tree.order[0];
    for (int64_t c = 0; c < channels; ++c) {
        window[0][c] = sum[root][c];
        grad_decay[root][c] = static_cast<T>(A{0});
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
        const T* __restrict decay_row = decay[vertex];
        const A* __restrict total_above = window[tree.parent_position[p] & (window_size - 1)];
        const A* __restrict grad_above = grad_sum[tree.order[tree.parent_position[p]]];
        const A* up = sum[vertex];
        A* __restrict total = window[p & (window_size - 1)];
        A* __restrict grad_total = grad_sum[vertex];
        T* to_decay = grad_decay[vertex];
        GROOTV_IVDEP  // to_decay may be up itself
            for (int64_t c = 0; c < channels; ++c) {
            A a = static_cast<A>(decay_row[c]);
            A elsewhere = total_above[c] - a * up[c];
            A grad_elsewhere = grad_above[c] - a * grad_total[c];
            A product = grad_total[c] * elsewhere + up[c] * grad_elsewhere;
            total[c] = up[c] + a * elsewhere;
            grad_total[c] = grad_total[c] + a * grad_elsewhere;
            to_decay[c] = static_cast<T>(product);
        }
        consumer.finish(vertex);
    }
}

}  // namespace grootv
