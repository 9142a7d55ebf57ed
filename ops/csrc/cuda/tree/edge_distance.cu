// Some lanes of a warp share a vertex. The distance is found from its row and its parent's, both read once; the
// gradient gathers from the rows of the parent and the children.
#include "edge_distance.h"

#include "cuda/common/vector.h"
#include "cuda/common/workspace.h"
#include "cuda/tree/subtrees.h"

namespace grootv {
namespace {

constexpr int LANES = 8;         // of a vertex
constexpr int LANE_VECTORS = 4;  // that a lane has of a row at a time

// The children of the vertex at a position: positions first ... end - 1, which count through the batch.
struct alignas(8) ChildRange {
    int32_t first, end;
};

// A batch of trees.
struct Trees {
    const int32_t *order, *parent;
    int32_t items, vertices;
    int32_t* valid;        // by item: whether order and parent are a tree in breadth-first order
    ChildRange* children;  // by position
};

template <class Group>
__global__ void __launch_bounds__(GROUP_THREADS, 1) children_kernel(Trees trees, std::byte* memory) {
    using Found = Subtrees<Group, int32_t>;
    const int32_t item = Group::IS_BLOCK ? static_cast<int32_t>(blockIdx.x) : 0, first = item * trees.vertices;
    const Found found(memory + item * Found::bytes(1, trees.vertices), trees.order + first, trees.parent + first,
                      trees.items, trees.vertices);
    found.find_children();
    for_each<Group>(found.items, [=](int64_t i) { trees.valid[item + i] = found.valid[i]; });
    for_each<Group>(found.count, [=](int64_t p) {
        trees.children[first + p] = {first + found.first_child[p], first + found.end_child[p]};
    });
}

Trees find_children(const Device& device, Workspace& workspace, const EdgeDistanceArguments& in) {
    auto [valid, children] = workspace.take<int32_t, ChildRange>(in.batch, in.rows());
    const Trees trees{in.order.const_data_ptr<int32_t>(),
                      in.parent.const_data_ptr<int32_t>(),
                      static_cast<int32_t>(in.batch),
                      static_cast<int32_t>(in.vertices),
                      valid,
                      children};
    if (one_block_each(device, in.batch, in.vertices)) {
        auto* memory = workspace.take<std::byte>(in.batch * Subtrees<BlockGroup, int32_t>::bytes(1, in.vertices));
        device.launch(children_kernel<BlockGroup>, in.batch, GROUP_THREADS, 0, trees, memory);
    } else {
        auto* memory = workspace.take<std::byte>(Subtrees<GridGroup, int32_t>::bytes(in.batch, in.vertices));
        launch_grid_group(device, children_kernel<GridGroup>, in.rows(), trees, memory);
    }
    return trees;
}

// The rows of a map, in whole vectors, which vertices of the batch have.
template <class acc_t>
struct Rows {
    acc_t* first;
    int64_t channels;

    __device__ auto& at(int64_t row, int64_t c) const { return as_vector(first + row * channels + c); }
};

__device__ int32_t row_of_thread() {
    return static_cast<int32_t>((int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / LANES);
}

template <class acc_t>
__device__ acc_t sum_of_lanes(acc_t value) {
    for (int other = LANES / 2; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
    return value;
}

template <class acc_t>
struct EdgeResults {
    acc_t* distance;  // or, for the backward pass of cosine:
    acc_t *dot, *norm;
};

template <Metric metric, class acc_t>
__global__ void distance_kernel(Trees trees, Rows<const acc_t> features, EdgeResults<acc_t> to) {
    const int32_t row = row_of_thread(), lane = threadIdx.x % LANES, count = trees.items * trees.vertices;
    // Lanes beyond the batch take part in the shuffles with its first vertex.
    const int32_t own = row < count ? row : 0, item = own / trees.vertices;
    const bool valid = trees.valid[item];
    const int32_t above = valid ? item * trees.vertices + trees.parent[own] : own;
    acc_t terms = 0, square = 0, square_above = 0;
    for (int64_t c = lane * VECTOR_SIZE<acc_t>; c < features.channels; c += LANES * VECTOR_SIZE<acc_t>) {
        const Vector<acc_t> x = features.at(own, c), y = features.at(above, c);
        for (int i = 0; i < VECTOR_SIZE<acc_t>; ++i) {
            if constexpr (metric == Metric::cosine) {
                terms += x.element[i] * y.element[i];
                square += x.element[i] * x.element[i];
                square_above += y.element[i] * y.element[i];
            } else {
                const acc_t difference = x.element[i] - y.element[i];
                if constexpr (metric == Metric::euclidean)
                    terms += difference * difference;
                else
                    terms += difference < 0 ? -difference : difference;
            }
        }
    }
    terms = sum_of_lanes(terms);
    acc_t distance = terms;
    if constexpr (metric == Metric::cosine) {
        const acc_t norm = norm_of_square(sum_of_lanes(square)),
                    norm_above = norm_of_square(sum_of_lanes(square_above));
        distance = cosine_distance(terms, norm, norm_above);
        if (to.norm && row < count && lane == 0) to.norm[row] = norm, to.dot[row] = terms;
    }
    if (!to.distance || row >= count || lane != 0) return;
    to.distance[row] = !valid ? acc_t(NAN) : above == own ? acc_t{0} : distance;
}

// Calls task(other end, what the edge adds to the gradient of `vertex`) for the edges of the vertex at a position.
template <Metric metric, class acc_t, class Task>
__device__ void for_each_edge(const Trees& trees, int32_t position, int32_t root, int32_t vertex, const acc_t* grad,
                              const EdgeResults<acc_t>& known, Task task) {
    auto visit = [&](int32_t below, int32_t other) {
        if constexpr (metric == Metric::cosine)
            task(other, edge_gradient<metric>(grad[below], known.dot[below], known.norm[vertex], known.norm[other]));
        else
            task(other, edge_gradient<metric, acc_t>(grad[below], 0, 0, 0));
    };
    const int32_t above = root + trees.parent[vertex];
    if (above != vertex) visit(vertex, above);
    const ChildRange children = trees.children[position];
    for (int32_t p = children.first; p < children.end; ++p) visit(root + trees.order[p], root + trees.order[p]);
}

template <Metric metric, class acc_t>
__global__ void gradient_kernel(Trees trees, Rows<const acc_t> features, const acc_t* grad, EdgeResults<acc_t> known,
                                Rows<acc_t> grad_features) {
    constexpr int VECTOR = VECTOR_SIZE<acc_t>;
    const int32_t position = row_of_thread(), lane = threadIdx.x % LANES;
    if (position >= trees.items * trees.vertices) return;
    const int32_t item = position / trees.vertices, root = item * trees.vertices;
    const bool valid = trees.valid[item];
    const int32_t vertex = valid ? root + trees.order[position] : position;
    for (int64_t first = 0; first < features.channels; first += LANE_VECTORS * LANES * VECTOR) {
        auto channel = [=](int k) { return first + (k * LANES + lane) * VECTOR; };
        Vector<acc_t> x[LANE_VECTORS], total[LANE_VECTORS];
#pragma unroll
        for (int k = 0; k < LANE_VECTORS; ++k) {
            x[k] = channel(k) < features.channels ? features.at(vertex, channel(k)) : Vector<acc_t>{};
            total[k] = filled(valid ? acc_t{0} : acc_t(NAN));
        }
        if (valid)
            for_each_edge<metric>(trees, position, root, vertex, grad, known,
                                  [&](int32_t other, EdgeGradient<acc_t> edge) {
#pragma unroll
                                      for (int k = 0; k < LANE_VECTORS; ++k) {
                                          if (channel(k) >= features.channels) continue;
                                          const Vector<acc_t> y = features.at(other, channel(k));
                                          for (int i = 0; i < VECTOR; ++i) {
                                              const acc_t x_i = x[k].element[i], y_i = y.element[i];
                                              acc_t& sum = total[k].element[i];
                                              if constexpr (metric == Metric::cosine)
                                                  sum += edge.own * x_i - edge.other * y_i;
                                              else if constexpr (metric == Metric::euclidean)
                                                  sum += edge.other * (x_i - y_i);
                                              else
                                                  sum += x_i > y_i ? edge.other : x_i < y_i ? -edge.other : acc_t{0};
                                          }
                                      }
                                  });
#pragma unroll
        for (int k = 0; k < LANE_VECTORS; ++k)
            if (channel(k) < features.channels) grad_features.at(vertex, channel(k)) = total[k];
    }
}

// Contiguous, for loads of 16 bytes, with channels of 0 up to whole vectors, which change neither distance nor
// gradient.
template <class acc_t>
Tensor padded(const Tensor& features) {
    const int64_t fill[] = {0, -features.size(2) & (VECTOR_SIZE<acc_t> - 1)};
    if (fill[1] > 0) return torch::stable::pad(features, {fill, 2});
    constexpr uintptr_t ALIGNMENT = 16;
    return reinterpret_cast<uintptr_t>(features.const_data_ptr()) % ALIGNMENT == 0 ? features
                                                                                   : torch::stable::clone(features);
}

template <class acc_t>
Rows<const acc_t> rows_of(const Tensor& map) {
    return {map.const_data_ptr<acc_t>(), map.size(2)};
}

int64_t blocks_for_rows(int64_t rows) {
    return (rows * LANES + ELEMENT_THREADS - 1) / ELEMENT_THREADS;
}

Tensor tree_edge_distance(const Tensor& features, const Tensor& order, const Tensor& parent,
                          const std::string& metric_name) {
    EdgeDistanceArguments in("tree_edge_distance", features, order, parent, metric_name);
    check_batch(in.function, in.batch, in.vertices);
    Tensor distance = make_empty(in.features, {in.batch, in.vertices});
    if (in.batch == 0) return distance;
    const Device device(in.function, features);
    Workspace workspace(in.features);
    const Trees trees = find_children(device, workspace, in);
    in.dispatch([&]<Metric metric, class acc_t>(acc_t) {
        const Tensor map = padded<acc_t>(in.features);
        device.launch(distance_kernel<metric, acc_t>, blocks_for_rows(in.rows()), ELEMENT_THREADS, 0, trees,
                      rows_of<acc_t>(map), EdgeResults<acc_t>{distance.mutable_data_ptr<acc_t>(), nullptr, nullptr});
    });
    return distance;
}

Tensor tree_edge_distance_backward(const Tensor& grad, const Tensor& features, const Tensor& order,
                                   const Tensor& parent, const std::string& metric_name) {
    EdgeDistanceArguments in("tree_edge_distance_backward", features, order, parent, metric_name);
    check_batch(in.function, in.batch, in.vertices);
    const Tensor g = in.check_grad(grad);
    if (in.batch * in.channels == 0) return make_empty(in.features, {in.batch, in.vertices, in.channels});
    const Device device(in.function, features);
    Workspace workspace(in.features);
    const Trees trees = find_children(device, workspace, in);
    Tensor result;
    in.dispatch([&]<Metric metric, class acc_t>(acc_t) {
        const Tensor map = padded<acc_t>(in.features);
        result = make_empty(map, {in.batch, in.vertices, map.size(2)});
        const int64_t blocks = blocks_for_rows(in.rows());
        EdgeResults<acc_t> known{};
        if (metric == Metric::cosine) {
            auto [dot, norm] = workspace.take<acc_t, acc_t>(in.rows(), in.rows());
            known = {nullptr, dot, norm};
            device.launch(distance_kernel<metric, acc_t>, blocks, ELEMENT_THREADS, 0, trees, rows_of<acc_t>(map),
                          known);
        }
        device.launch(gradient_kernel<metric, acc_t>, blocks, ELEMENT_THREADS, 0, trees, rows_of<acc_t>(map),
                      g.const_data_ptr<acc_t>(), known, Rows<acc_t>{result.mutable_data_ptr<acc_t>(), map.size(2)});
    });
    return result.size(2) == in.channels ? result : as_contiguous(torch::stable::narrow(result, 2, 0, in.channels));
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, tree_edge_distance);
    GROOTV_IMPL(m, tree_edge_distance_backward);
}
