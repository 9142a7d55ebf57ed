// Norm, multiply-add, norm and gate of a vertex by one warp. The gradients of the parameters sum over vertices: a
// second kernel takes them column by column, from what the first has found out about each row.
#include <torch/csrc/stable/library.h>

#include "cuda/common/device.h"
#include "cuda/common/workspace.h"
#include "read_out.h"

namespace grootv {
namespace {

template <class A>
__device__ A sum_of_warp(A value) {
    for (int other = WARP / 2; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
    return value;
}

template <class A>
__device__ A sigmoid(A x) {
    using std::exp;
    return 1 / (1 + exp(-x));
}

// What LayerNorm does to a row: (x - mean) * scale.
template <class A>
struct Norm {
    A mean, scale;

    __device__ A operator()(A x) const { return (x - mean) * scale; }
};

// The same for every lane of the warp, which share the channels of the row value(c) out.
template <class A, class Value>
__device__ Norm<A> norm_of(int64_t channels, A eps, Value value) {
    using std::sqrt;
    const int lane = threadIdx.x % WARP;
    A sum = 0, square = 0;
    for (int64_t c = lane; c < channels; c += WARP) sum += value(c);
    const A mean = sum_of_warp(sum) / channels;
    for (int64_t c = lane; c < channels; c += WARP) square += (value(c) - mean) * (value(c) - mean);
    return {mean, 1 / sqrt(sum_of_warp(square) / channels + eps)};
}

// What one vertex holds.
template <class A, class Z>
struct Row {
    const ReadOutParameters<A>& in;
    const A *h, *x;
    const Z* z;
    A C;

    __device__ Row(const ReadOutParameters<A>& in, int64_t row, const A* h, const A* C, const A* x, const Z* z)
        : in(in), h(h + row * in.channels), x(x + row * in.channels), z(z + row * in.channels), C(C[row]) {}

    __device__ A state(const Norm<A>& norm, int64_t c) const { return in.h_weight[c] * norm(h[c]) + in.h_bias[c]; }
    __device__ A y(const Norm<A>& norm, int64_t c) const { return in.D[c] * x[c] + C * state(norm, c); }
    __device__ A gate(int64_t c) const { return static_cast<A>(z[c]); }
    __device__ A silu(int64_t c) const { return gate(c) * sigmoid(gate(c)); }
};

template <class A, class Z>
__global__ void read_out_kernel(ReadOutParameters<A> in, int64_t rows, const A* h, const A* C, const A* x, const Z* z,
                                Z* output) {
    const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / WARP;
    if (row >= rows) return;
    const Row<A, Z> vertex(in, row, h, C, x, z);
    const auto state = norm_of(in.channels, in.eps, [&](int64_t c) { return vertex.h[c]; });
    const auto outer = norm_of(in.channels, in.eps, [&](int64_t c) { return vertex.y(state, c); });
    for (int64_t c = threadIdx.x % WARP; c < in.channels; c += WARP) {
        const A normed = in.y_weight[c] * outer(vertex.y(state, c)) + in.y_bias[c];
        output[row * in.channels + c] = static_cast<Z>(normed * vertex.silu(c));
    }
}

// What the gradients of a row need of all its channels: both norms, and mean and slope of the gradient of the outer
// norm's normalised row, which its own mean and scale take back.
template <class A>
struct RowSums {
    Norm<A> state, outer;
    A mean, slope;
};

template <class A, class Z>
__device__ A grad_of_y(const Row<A, Z>& vertex, const RowSums<A>& sums, A grad, int64_t c) {
    const A normed = sums.outer(vertex.y(sums.state, c));
    return sums.outer.scale * (grad * vertex.silu(c) * vertex.in.y_weight[c] - sums.mean - normed * sums.slope);
}

template <class A, class Z>
struct RowGradients {
    A *h, *C, *x;
    Z* z;
    RowSums<A>* sums;
};

template <class A, class Z>
__global__ void read_out_backward_kernel(ReadOutParameters<A> in, int64_t rows, const Z* grad, const A* h, const A* C,
                                         const A* x, const Z* z, RowGradients<A, Z> gradients) {
    const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / WARP, channels = in.channels;
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    const int64_t offset = row * channels;
    const Row<A, Z> vertex(in, row, h, C, x, z);
    RowSums<A> sums;
    sums.state = norm_of(channels, in.eps, [&](int64_t c) { return vertex.h[c]; });
    sums.outer = norm_of(channels, in.eps, [&](int64_t c) { return vertex.y(sums.state, c); });
    sums.mean = sums.slope = 0;
    for (int64_t c = lane; c < channels; c += WARP) {
        const A from = static_cast<A>(grad[offset + c]), gate = vertex.gate(c), open = sigmoid(gate);
        const A normed = sums.outer(vertex.y(sums.state, c)), from_normed = from * gate * open * in.y_weight[c];
        const A output = in.y_weight[c] * normed + in.y_bias[c];
        gradients.z[offset + c] = static_cast<Z>(from * output * (open * (1 + gate * (1 - open))));
        sums.mean += from_normed;
        sums.slope += from_normed * normed;
    }
    sums.mean = sum_of_warp(sums.mean) / channels;
    sums.slope = sum_of_warp(sums.slope) / channels;
    A read = 0, mean = 0, slope = 0;
    for (int64_t c = lane; c < channels; c += WARP) {
        const A from_y = grad_of_y(vertex, sums, static_cast<A>(grad[offset + c]), c);
        const A from_normed = from_y * vertex.C * in.h_weight[c];
        gradients.x[offset + c] = from_y * in.D[c];
        read += from_y * vertex.state(sums.state, c);
        mean += from_normed;
        slope += from_normed * sums.state(vertex.h[c]);
    }
    read = sum_of_warp(read), mean = sum_of_warp(mean) / channels, slope = sum_of_warp(slope) / channels;
    for (int64_t c = lane; c < channels; c += WARP) {
        const A from_y = grad_of_y(vertex, sums, static_cast<A>(grad[offset + c]), c);
        const A from_normed = from_y * vertex.C * in.h_weight[c];
        gradients.h[offset + c] = sums.state.scale * (from_normed - mean - sums.state(vertex.h[c]) * slope);
    }
    if (lane == 0) {
        gradients.C[row] = read;
        gradients.sums[row] = sums;
    }
}

constexpr int ROWS = 256;      // vertices of one block of the second kernel
constexpr int PARAMETERS = 5;  // D, h_weight, h_bias, y_weight, y_bias

template <class A>
struct ParameterParts {
    A* parts[PARAMETERS];  // (blocks, channels) each
};

// One block adds up ROWS vertices of WARP channels; its warps take whole rows of them.
template <class A, class Z>
__global__ void parameter_kernel(ReadOutParameters<A> in, int64_t rows, const Z* grad, const A* h, const A* C,
                                 const A* x, const Z* z, const RowSums<A>* row_sums, ParameterParts<A> out) {
    auto* shared = reinterpret_cast<A*>(shared_memory());  // (PARAMETERS, threads)
    const int32_t thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, warps = blockDim.x / WARP;
    const int64_t begin = int64_t{blockIdx.x} * ROWS, end = begin + ROWS < rows ? begin + ROWS : rows;
    const int64_t c = int64_t{blockIdx.y} * WARP + lane;
    A sums[PARAMETERS] = {};
    for (int64_t row = begin + warp; row < end && c < in.channels; row += warps) {
        const Row<A, Z> vertex(in, row, h, C, x, z);
        const RowSums<A>& known = row_sums[row];
        const A from = static_cast<A>(grad[row * in.channels + c]), from_output = from * vertex.silu(c);
        const A from_y = grad_of_y(vertex, known, from, c);
        sums[0] += from_y * vertex.x[c];
        sums[1] += from_y * vertex.C * known.state(vertex.h[c]);
        sums[2] += from_y * vertex.C;
        sums[3] += from_output * known.outer(vertex.y(known.state, c));
        sums[4] += from_output;
    }
    for (int k = 0; k < PARAMETERS; ++k) shared[k * blockDim.x + thread] = sums[k];
    __syncthreads();
    if (c >= in.channels) return;
    for (int k = warp; k < PARAMETERS; k += warps) {
        A sum = 0;
        for (int other = 0; other < warps; ++other) sum += shared[k * blockDim.x + other * WARP + lane];
        out.parts[k][blockIdx.x * in.channels + c] = sum;
    }
}

dim3 blocks_for_rows(int64_t rows) {
    return dim3(static_cast<unsigned>((rows * WARP + ITEM_THREADS - 1) / ITEM_THREADS));
}

Tensor new_like(const Tensor& like) {
    return torch::stable::new_empty(like, {like.size(0), like.size(1), like.size(2)});
}

Tensor gated_read_out(const Tensor& h, const Tensor& C, const Tensor& x, const Tensor& D, const Tensor& z,
                      const Tensor& h_weight, const Tensor& h_bias, const Tensor& y_weight, const Tensor& y_bias,
                      double eps) {
    ReadOutArguments in("gated_read_out", h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps);
    check_batch(in.function, in.batch, in.vertices);
    Tensor output = new_like(in.z);
    if (output.numel() == 0) return output;
    const Device device(in.function, h);
    in.dispatch([&](auto wide, auto zero) {
        using A = decltype(wide);
        using Z = decltype(zero);
        device.launch(read_out_kernel<A, Z>, blocks_for_rows(in.rows()), ITEM_THREADS, 0, in.parameters<A>(), in.rows(),
                      in.h.const_data_ptr<A>(), in.C.const_data_ptr<A>(), in.x.const_data_ptr<A>(),
                      in.z.const_data_ptr<Z>(), output.mutable_data_ptr<Z>());
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_read_out_backward(
    const Tensor& grad, const Tensor& h, const Tensor& C, const Tensor& x, const Tensor& D, const Tensor& z,
    const Tensor& h_weight, const Tensor& h_bias, const Tensor& y_weight, const Tensor& y_bias, double eps) {
    ReadOutArguments in("gated_read_out_backward", h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps);
    check_batch(in.function, in.batch, in.vertices);
    Tensor g = in.check_grad(grad), grad_h = new_like(in.h), grad_x = new_like(in.x), grad_z = new_like(in.z);
    Tensor grad_C = torch::stable::new_zeros(C, {in.batch, in.vertices});
    const int64_t blocks = (in.rows() + ROWS - 1) / ROWS;
    auto new_parts = [&] { return torch::stable::new_empty(D, {blocks, in.channels}); };
    Tensor parts[PARAMETERS] = {new_parts(), new_parts(), new_parts(), new_parts(), new_parts()};
    if (grad_h.numel() > 0) {
        const Device device(in.function, h);
        Workspace workspace(h);
        in.dispatch([&](auto wide, auto zero) {
            using A = decltype(wide);
            using Z = decltype(zero);
            const auto parameters = in.parameters<A>();
            const A *h_ptr = in.h.const_data_ptr<A>(), *C_ptr = in.C.const_data_ptr<A>();
            const A* x_ptr = in.x.const_data_ptr<A>();
            const Z *z_ptr = in.z.const_data_ptr<Z>(), *grad_ptr = g.const_data_ptr<Z>();
            auto* sums = workspace.take<RowSums<A>>(in.rows());
            RowGradients<A, Z> gradients{grad_h.mutable_data_ptr<A>(), grad_C.mutable_data_ptr<A>(),
                                         grad_x.mutable_data_ptr<A>(), grad_z.mutable_data_ptr<Z>(), sums};
            device.launch(read_out_backward_kernel<A, Z>, blocks_for_rows(in.rows()), ITEM_THREADS, 0, parameters,
                          in.rows(), grad_ptr, h_ptr, C_ptr, x_ptr, z_ptr, gradients);
            ParameterParts<A> to;
            for (int k = 0; k < PARAMETERS; ++k) to.parts[k] = parts[k].mutable_data_ptr<A>();
            const dim3 tiles(static_cast<unsigned>(blocks), static_cast<unsigned>((in.channels + WARP - 1) / WARP));
            device.launch(parameter_kernel<A, Z>, tiles, ITEM_THREADS, PARAMETERS * ITEM_THREADS * sizeof(A),
                          parameters, in.rows(), grad_ptr, h_ptr, C_ptr, x_ptr, z_ptr, sums, to);
        });
    }
    const int64_t dim = 0;
    auto sum = [&](int k) { return torch::stable::sum(parts[k], {{&dim, 1}}); };
    return {grad_h, grad_C, grad_x, sum(0), grad_z, sum(1), sum(2), sum(3), sum(4)};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    m.impl("gated_read_out", TORCH_BOX(&grootv::gated_read_out));
    m.impl("gated_read_out_backward", TORCH_BOX(&grootv::gated_read_out_backward));
}
