// Distances row by row, in the order of the map's memory, where most parents are near. The gradient of a row gathers
// from the rows of its parent and its children.
#include "edge_distance.h"

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scan_passes.h"
#include "cpu/simd.h"

namespace grootv {
namespace {

constexpr int64_t TASK_VERTICES = 256;

// The positions of a vertex's children.
struct ChildRange {
    int32_t first = 0, end = 0;
};

// Checks the trees, as scans do.
class Trees {
public:
    explicit Trees(const EdgeDistanceArguments& in) : sizes_(whole_items(in)), tasks_(sizes_, in.order, in.parent) {}

    // By vertex, (B, L).
    std::vector<ChildRange> children() const {
        std::vector<ChildRange> ranges(sizes_.batch * sizes_.vertices);
        tasks_.for_each_tile(ScanTasks::ALIGNMENT, [&](const ChannelTile& item) {
            const TreeSchedule tree = item.tree;
            ChildRange* of = ranges.data() + item.item * tree.vertices;
            for (int64_t p = 1; p < tree.vertices; ++p) {
                ChildRange& range = of[tree.order[tree.parent_position[p]]];
                if (range.end == 0) range.first = static_cast<int32_t>(p);
                range.end = static_cast<int32_t>(p + 1);
            }
        });
        return ranges;
    }

private:
    // As if of one channel, so that a task is an item.
    static ScanSizes whole_items(ScanSizes sizes) {
        sizes.channels = 1;
        return sizes;
    }

    ScanSizes sizes_;
    ScanTasks tasks_;
};

// One item of the batch.
template <class acc_t>
struct Item {
    const acc_t* features;
    const int32_t *order, *parent;
    int64_t vertices, channels;

    GROOTV_INLINE const acc_t* row(int64_t vertex) const { return features + vertex * channels; }
};

template <Metric metric, class acc_t>
GROOTV_INLINE void add_terms(Simd<acc_t> x, Simd<acc_t> y, Simd<acc_t>& square, Simd<acc_t>& sums) {
    if constexpr (metric == Metric::cosine) {
        square += x * x;
        sums += x * y;
    } else {
        const Simd<acc_t> difference = x - y;
        if constexpr (metric == Metric::euclidean)
            sums += difference * difference;
        else
            sums += difference < 0 ? -difference : difference;
    }
}

// Sums over channels of the terms of vertices first ... end - 1 with their parents and, for cosine, the norms.
template <Metric metric, class acc_t>
GROOTV_VECTORIZE void sum_terms(const Item<acc_t>& item, int64_t first, int64_t end, acc_t* sum_of, acc_t* norm) {
    const int64_t channels = item.channels;
    for (int64_t v = first; v < end; ++v) {
        const acc_t *x = item.row(v), *y = item.row(item.parent[v]);
        Simd<acc_t> square{}, sums{};
        int64_t c = 0;
        for (; c + SIMD_WIDTH <= channels; c += SIMD_WIDTH)
            add_terms<metric, acc_t>(load(x + c), load(y + c), square, sums);
        if (const int64_t rest = channels - c)
            add_terms<metric, acc_t>(load_tail(x + c, rest), load_tail(y + c, rest), square, sums);
        sum_of[v] = sum<acc_t>(sums);
        if constexpr (metric == Metric::cosine) norm[v] = sum<acc_t>(square);
    }
    if constexpr (metric == Metric::cosine)
        for (int64_t v = first; v < end; ++v) norm[v] = norm_of_square(norm[v]);
}

// Sums to distances, in place.
template <Metric metric, class acc_t>
GROOTV_VECTORIZE void finish_distances(const Item<acc_t>& item, int64_t first, int64_t end, const acc_t* norm,
                                       acc_t* distance) {
    const int32_t* parent = item.parent;
    GROOTV_IVDEP
    for (int64_t v = first; v < end; ++v) {
        acc_t found = distance[v];
        if constexpr (metric == Metric::cosine) found = cosine_distance(found, norm[v], norm[parent[v]]);
        distance[v] = parent[v] == v ? 0 : found;
    }
}

template <class acc_t>
struct Edges {
    static constexpr int MOST = 4;

    const acc_t* row[MOST];  // of the other end
    acc_t other[MOST], own;  // of EdgeGradient; the sum of all
    int count;
};

template <Metric metric, int K, class acc_t>
GROOTV_INLINE Simd<acc_t> pull(Simd<acc_t> x, const Simd<acc_t>* y, const Edges<acc_t>& edges, Simd<acc_t> total) {
    if constexpr (metric == Metric::cosine) total += edges.own * x;
    for (int k = 0; k < K; ++k) {
        const acc_t other = edges.other[k];
        if constexpr (metric == Metric::cosine) {
            total -= other * y[k];
        } else if constexpr (metric == Metric::euclidean) {
            total += other * (x - y[k]);
        } else {
            const Simd<acc_t> difference = x - y[k], zero{};
            total += difference > 0 ? zero + other : difference < 0 ? zero - other : zero;
        }
    }
    return total;
}

// Adds the first K edges to the gradient of the row x, which starts with them if `fresh`.
template <Metric metric, int K, class acc_t>
GROOTV_INLINE void pull_row(int64_t channels, const acc_t* x, const Edges<acc_t>& edges, bool fresh, acc_t* grad) {
    Simd<acc_t> y[Edges<acc_t>::MOST];
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= channels; c += SIMD_WIDTH) {
        for (int k = 0; k < K; ++k) y[k] = load(edges.row[k] + c);
        const Simd<acc_t> before = fresh ? Simd<acc_t>{} : load(grad + c);
        store(grad + c, pull<metric, K, acc_t>(load(x + c), y, edges, before));
    }
    if (const int64_t rest = channels - c) {
        for (int k = 0; k < K; ++k) y[k] = load_tail(edges.row[k] + c, rest);
        const Simd<acc_t> before = fresh ? Simd<acc_t>{} : load_tail(grad + c, rest);
        const Simd<acc_t> total = pull<metric, K, acc_t>(load_tail(x + c, rest), y, edges, before);
        std::memcpy(grad + c, &total, rest * sizeof(acc_t));
    }
}

// The gradients of vertices first ... end - 1. All arrays are the item's, by vertex; dot and norm are for cosine.
template <Metric metric, class acc_t>
GROOTV_VECTORIZE void gather_gradients(const Item<acc_t>& item, int64_t first, int64_t end, const ChildRange* children,
                                       const acc_t* grad, const acc_t* dot, const acc_t* norm, acc_t* grad_features) {
    const int64_t channels = item.channels;
    for (int64_t v = first; v < end; ++v) {
        Edges<acc_t> edges{};
        // To vertex `other`, whose distance is that of vertex `below`, one of the two.
        auto add = [&](int64_t below, int64_t other) {
            EdgeGradient<acc_t> edge;
            if constexpr (metric == Metric::cosine)
                edge = edge_gradient<metric>(grad[below], dot[below], norm[v], norm[other]);
            else
                edge = edge_gradient<metric, acc_t>(grad[below], 0, 0, 0);
            edges.row[edges.count] = item.row(other);
            edges.other[edges.count++] = edge.other;
            edges.own += edge.own;
        };
        if (item.parent[v] != v) add(v, item.parent[v]);
        int64_t p = children[v].first;
        for (bool fresh = true; fresh || p < children[v].end; fresh = false, edges.count = 0, edges.own = 0) {
            for (; p < children[v].end && edges.count < edges.MOST; ++p) add(item.order[p], item.order[p]);
            const acc_t* x = item.row(v);
            acc_t* to = grad_features + v * channels;
            switch (edges.count) {
                case 0: pull_row<metric, 0>(channels, x, edges, fresh, to); break;
                case 1: pull_row<metric, 1>(channels, x, edges, fresh, to); break;
                case 2: pull_row<metric, 2>(channels, x, edges, fresh, to); break;
                case 3: pull_row<metric, 3>(channels, x, edges, fresh, to); break;
                default: pull_row<metric, 4>(channels, x, edges, fresh, to);
            }
        }
    }
}

// Calls task(item, offset of its vertices in the batch, first, end) for every TASK_VERTICES vertices, in parallel.
template <class acc_t, class Task>
void for_each_task(const EdgeDistanceArguments& in, Task task) {
    const int64_t tasks = (in.vertices + TASK_VERTICES - 1) / TASK_VERTICES;
    parallel_for_each(in.function, in.batch * tasks, [&](int64_t i) {
        const int64_t offset = i / tasks * in.vertices, first = i % tasks * TASK_VERTICES;
        const Item<acc_t> item{in.features.const_data_ptr<acc_t>() + offset * in.channels,
                               in.order.const_data_ptr<int32_t>() + offset,
                               in.parent.const_data_ptr<int32_t>() + offset, in.vertices, in.channels};
        task(item, offset, first, std::min(first + TASK_VERTICES, in.vertices));
    });
}

Tensor tree_edge_distance(const Tensor& features, const Tensor& order, const Tensor& parent,
                          const std::string& metric_name) {
    EdgeDistanceArguments in("tree_edge_distance", features, order, parent, metric_name);
    Tensor distance = make_empty(in.features, {in.batch, in.vertices});
    const Trees trees(in);
    in.dispatch([&]<Metric metric, class acc_t>(acc_t) {
        std::vector<acc_t> norms(in.rows());
        auto* to = distance.mutable_data_ptr<acc_t>();
        for_each_task<acc_t>(in, [&](const Item<acc_t>& item, int64_t offset, int64_t first, int64_t end) {
            sum_terms<metric>(item, first, end, to + offset, norms.data() + offset);
        });
        for_each_task<acc_t>(in, [&](const Item<acc_t>& item, int64_t offset, int64_t first, int64_t end) {
            finish_distances<metric>(item, first, end, norms.data() + offset, to + offset);
        });
    });
    return distance;
}

Tensor tree_edge_distance_backward(const Tensor& grad, const Tensor& features, const Tensor& order,
                                   const Tensor& parent, const std::string& metric_name) {
    EdgeDistanceArguments in("tree_edge_distance_backward", features, order, parent, metric_name);
    const Tensor g = in.check_grad(grad);
    Tensor grad_features = empty_map(in.features);
    const std::vector<ChildRange> children = Trees(in).children();
    in.dispatch([&]<Metric metric, class acc_t>(acc_t) {
        std::vector<acc_t> dots(in.rows()), norms(in.rows());
        if (metric == Metric::cosine)
            for_each_task<acc_t>(in, [&](const Item<acc_t>& item, int64_t offset, int64_t first, int64_t end) {
                sum_terms<metric>(item, first, end, dots.data() + offset, norms.data() + offset);
            });
        for_each_task<acc_t>(in, [&](const Item<acc_t>& item, int64_t offset, int64_t first, int64_t end) {
            gather_gradients<metric>(item, first, end, children.data() + offset, g.const_data_ptr<acc_t>() + offset,
                                     dots.data() + offset, norms.data() + offset,
                                     grad_features.mutable_data_ptr<acc_t>() + offset * in.channels);
        });
    });
    return grad_features;
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    GROOTV_IMPL(m, tree_edge_distance);
    GROOTV_IMPL(m, tree_edge_distance_backward);
}
