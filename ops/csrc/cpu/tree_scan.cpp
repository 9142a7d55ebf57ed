#include "tree_scan.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "checks.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "cpu/vectorize.h"
#include "cpu/workspace.h"

namespace grootv {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Channels of one task, at most: few enough that its rows stay near the core, enough to be worth a walk over the tree.
constexpr int64_t BLOCK = 256;
constexpr int64_t LINE = 16;  // blocks start at multiples of this, for no two to share a cache line
constexpr int64_t AHEAD = 4;  // positions to prefetch ahead: the vertices of a level lie scattered

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

// up[v] = signal[v] + sum over children c of decay[c] up[c], the last child first
template <class T, class A>
GROOTV_INLINE void up_pass(TreeSchedule tree, int64_t channels, Rows<const T> signal, Rows<const T> decay, Rows<A> up) {
    int64_t q = tree.vertices - 1;
    for (int64_t p = tree.vertices - 1; p >= 0; --p) {
        if (p >= AHEAD) prefetch(signal, tree.order[p - AHEAD], channels);
        const T* own = signal[tree.order[p]];
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

// The gradient of the input is the scan of the gradient, for P(i, j) is symmetric. That of a decay pairs what
// comes down its edge with what goes up, for signal and gradient in turn.
// On entry sum and grad_sum hold the up passes; on return grad_sum holds the gradient of the input. `window` keeps
// the totals of the last vertices until their children have read them, since grad_decay may lie in sum's place.
template <class T, class A>
GROOTV_INLINE void down_pass_backward(TreeSchedule tree, int64_t channels, Rows<const T> decay, Rows<A> sum,
                                      Rows<A> grad_sum, Rows<A> window, int64_t window_size, Rows<T> grad_decay) {
    const int32_t root = tree.order[0];
    for (int64_t c = 0; c < channels; ++c) {
        window[0][c] = sum[root][c];
        grad_decay[root][c] = static_cast<T>(A{0});
    }
    for (int64_t p = 1; p < tree.vertices; ++p) {
        const int32_t vertex = tree.order[p];
        if (p + AHEAD < tree.vertices) {
            prefetch(decay, tree.order[p + AHEAD], channels);
            prefetch(sum, tree.order[p + AHEAD], channels);
            prefetch(grad_sum, tree.order[p + AHEAD], channels);
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
    }
}

// The same for direction `up`, where a vertex hears its own subtree only: its gradient comes from above only.
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

// Where sums are kept: in the result itself if it has their type, else in scratch memory.
template <class T, class A>
class Sums {
public:
    Sums(Rows<T> result, int64_t vertices, int64_t channels)
        : result_(result), vertices_(vertices), channels_(channels) {
        if constexpr (std::is_same_v<T, A>) {
            rows = result;
        } else {
            scratch_ = std::make_unique_for_overwrite<A[]>(vertices * channels);
            rows = {scratch_.get(), channels};
        }
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
    std::unique_ptr<A[]> scratch_;
};

#define GROOTV_INSTANTIATE(T)                                                                                         \
    GROOTV_VECTORIZE void scan_block(TreeSchedule tree, int64_t channels, bool both, Rows<const T> input,             \
                                     Rows<const T> decay, Sums<T, Accumulator<T>::type>& output) {                    \
        up_pass(tree, channels, input, decay, output.rows);                                                           \
        if (both) down_pass(tree, channels, decay, output.rows);                                                      \
        output.store();                                                                                               \
    }                                                                                                                 \
    GROOTV_VECTORIZE void scan_block_backward(                                                                        \
        TreeSchedule tree, int64_t channels, bool both, Rows<const T> grad, Rows<const T> input, Rows<const T> decay, \
        Sums<T, Accumulator<T>::type>& sum, Sums<T, Accumulator<T>::type>& grad_sum,                                  \
        Rows<Accumulator<T>::type> window, int64_t window_size, Rows<T> grad_decay) {                                 \
        up_pass(tree, channels, input, decay, sum.rows);                                                              \
        if (both) {                                                                                                   \
            up_pass(tree, channels, grad, decay, grad_sum.rows);                                                      \
            down_pass_backward(tree, channels, decay, sum.rows, grad_sum.rows, window, window_size, grad_decay);      \
        } else {                                                                                                      \
            down_pass_backward_up(tree, channels, grad, decay, sum.rows, grad_sum.rows, grad_decay);                  \
        }                                                                                                             \
        grad_sum.store();                                                                                             \
    }
GROOTV_INSTANTIATE(float)
GROOTV_INSTANTIATE(double)
GROOTV_INSTANTIATE(Half)
GROOTV_INSTANTIATE(BFloat16)
#undef GROOTV_INSTANTIATE

// Calls function(T{}) for the element type of a checked floating tensor.
template <class Function>
void dispatch_floating(const Tensor& tensor, Function function) {
    switch (tensor.scalar_type()) {
        case ScalarType::Float: return function(float{});
        case ScalarType::Double: return function(double{});
        case ScalarType::Half: return function(Half{});
        default: return function(BFloat16{});
    }
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
        // A vertex that stands twice in the order has lost its first position.
        const int64_t found = position[above];
        fine &= (position[vertex] == p) & (found >= previous) & (found < p || p == 0);
        parent_position[p] = static_cast<int32_t>(found);
        previous = found;
    }
    return fine;
}

// The checked arguments of a scan, and its division into tasks: a block of channels of one item.
class Scan {
public:
    Scan(const char* function, const Tensor& input, const Tensor& decay, const Tensor& order, const Tensor& parent,
         const Tensor& level_ptr, const std::string& direction)
        : both(direction == "both"), function_(function) {
        check(both || direction == "up", function, ": direction must be one of both, up, got '", direction, "'");
        check_floating(function, "input", input);
        check_dim(function, "input", input, 3, "(B, L, C)");
        batch = input.size(0), vertices = input.size(1), channels = input.size(2);
        check(vertices >= 1, function, ": input must have at least one vertex, got shape ",
              format_shape(input.sizes()));
        check_dtype(function, "decay", decay, input.scalar_type());
        check_shape(function, "decay", "one value per vertex and channel", decay, {batch, vertices, channels});
        const char* rule = "one entry per vertex of each item";
        check_shape(function, "order", rule, order, {batch, vertices});
        check_shape(function, "parent", rule, parent, {batch, vertices});
        check_shape(function, "level_ptr", "one entry more than vertices", level_ptr, {batch, vertices + 1});
        check_dtype(function, "order", order, ScalarType::Int);
        check_dtype(function, "parent", parent, ScalarType::Int);
        check_dtype(function, "level_ptr", level_ptr, ScalarType::Int);
        check_same_device(function, "decay", decay, input);
        check_same_device(function, "order", order, input);
        check_same_device(function, "parent", parent, input);
        check_same_device(function, "level_ptr", level_ptr, input);

        order_ = as_contiguous(order);
        Tensor parents = as_contiguous(parent);
        parent_position_.resize(batch * vertices);
        std::atomic<int64_t> wrong{-1};
        parallel_for_each(function, batch, [&](int64_t item) {
            int64_t offset = item * vertices;
            if (!find_parent_positions(order_.const_data_ptr<int32_t>() + offset,
                                       parents.const_data_ptr<int32_t>() + offset, vertices,
                                       parent_position_.data() + offset))
                wrong = item;
        });
        check(wrong < 0, function, ": order and parent must be a tree in breadth-first order, but those of item ",
              wrong.load(), " are not");
    }

    // Calls task(tree, offset, channels) for every block of channels of every item, in parallel; the block starts
    // `offset` elements into the signals.
    template <class Task>
    void for_each_block(Task task) const {
        if (batch == 0 || channels == 0) return;
        // Blocks of about equal size, and one for each thread if there are fewer items than threads.
        int64_t threads = torch::stable::get_num_threads();
        int64_t blocks = std::max((channels + BLOCK - 1) / BLOCK, (threads + batch - 1) / batch);
        int64_t size = ((channels + blocks - 1) / blocks + LINE - 1) / LINE * LINE;
        blocks = (channels + size - 1) / size;
        parallel_for_each(function_, batch * blocks, [&](int64_t i) {
            int64_t item = i / blocks, channel = i % blocks * size;
            TreeSchedule tree{order_.const_data_ptr<int32_t>() + item * vertices,
                              parent_position_.data() + item * vertices, vertices};
            task(tree, item * vertices * channels + channel, std::min(size, channels - channel));
        });
    }

    Tensor new_signal(const Tensor& like) const {
        Tensor signal = torch::stable::new_empty(like, {batch, vertices, channels});
        advise_huge_pages(signal.mutable_data_ptr(), signal.numel() * signal.element_size());
        return signal;
    }

    bool both;
    int64_t batch, vertices, channels;

private:
    const char* function_;
    Tensor order_;
    std::vector<int32_t> parent_position_;
};

Tensor tree_scan(const Tensor& input, const Tensor& decay, const Tensor& order, const Tensor& parent,
                 const Tensor& level_ptr, const std::string& direction) {
    Scan scan("tree_scan", input, decay, order, parent, level_ptr, direction);
    Tensor u = as_contiguous(input), a = as_contiguous(decay);
    Tensor output = scan.new_signal(u);
    dispatch_floating(u, [&](auto zero) {
        using T = decltype(zero);
        using A = typename Accumulator<T>::type;
        const T *input_ptr = u.const_data_ptr<T>(), *decay_ptr = a.const_data_ptr<T>();
        T* output_ptr = output.mutable_data_ptr<T>();
        scan.for_each_block([&](TreeSchedule tree, int64_t offset, int64_t channels) {
            Sums<T, A> sum({output_ptr + offset, scan.channels}, tree.vertices, channels);
            scan_block(tree, channels, scan.both, Rows<const T>{input_ptr + offset, scan.channels},
                       Rows<const T>{decay_ptr + offset, scan.channels}, sum);
        });
    });
    return output;
}

std::tuple<Tensor, Tensor> tree_scan_backward(const Tensor& grad, const Tensor& input, const Tensor& decay,
                                              const Tensor& order, const Tensor& parent, const Tensor& level_ptr,
                                              const std::string& direction) {
    const char* function = "tree_scan_backward";
    Scan scan(function, input, decay, order, parent, level_ptr, direction);
    check_dtype(function, "grad", grad, input.scalar_type());
    check_shape(function, "grad", "one value per vertex and channel", grad, {scan.batch, scan.vertices, scan.channels});
    check_same_device(function, "grad", grad, input);
    Tensor g = as_contiguous(grad), u = as_contiguous(input);
    Tensor a = as_contiguous(decay);
    Tensor grad_input = scan.new_signal(u), grad_decay = scan.new_signal(u);
    dispatch_floating(u, [&](auto zero) {
        using T = decltype(zero);
        using A = typename Accumulator<T>::type;
        const T *input_ptr = u.const_data_ptr<T>(), *decay_ptr = a.const_data_ptr<T>();
        const T* grad_ptr = g.const_data_ptr<T>();
        T *grad_input_ptr = grad_input.mutable_data_ptr<T>(), *grad_decay_ptr = grad_decay.mutable_data_ptr<T>();
        scan.for_each_block([&](TreeSchedule tree, int64_t offset, int64_t channels) {
            Rows<T> to_input{grad_input_ptr + offset, scan.channels}, to_decay{grad_decay_ptr + offset, scan.channels};
            Sums<T, A> sum(to_decay, tree.vertices, channels), grad_sum(to_input, tree.vertices, channels);
            int64_t window_size = tree.window_size();
            auto window = std::make_unique_for_overwrite<A[]>(window_size * channels);
            scan_block_backward(tree, channels, scan.both, Rows<const T>{grad_ptr + offset, scan.channels},
                                Rows<const T>{input_ptr + offset, scan.channels},
                                Rows<const T>{decay_ptr + offset, scan.channels}, sum, grad_sum,
                                Rows<A>{window.get(), channels}, window_size, to_decay);
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
