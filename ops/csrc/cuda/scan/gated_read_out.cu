// Norm, multiply-add, norm and gate of a vertex by one warp. The gradients of the parameters are sums over vertices: a
// second kernel adds them up column by column, with the norms of each row that the first has stored.
#include "cuda/common/device.h"
#include "cuda/common/workspace.h"
#include "read_out.h"

namespace grootv {
namespace {

template <class acc_t>
__device__ acc_t sum_of_warp(acc_t value) {
    for (int other = WARP / 2; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
    return value;
}

template <class acc_t>
__device__ acc_t sigmoid(acc_t x) {
    using std::exp;
    return 1 / (1 + exp(-x));
}

// What LayerNorm does to a row: (x - mean) * scale.
template <class acc_t>
struct Norm {
    acc_t mean, scale;

    __device__ acc_t operator()(acc_t x) const { return (x - mean) * scale; }
};

// The same for every lane of the warp; the lanes divide the channels of the row value(c) among them.
template <class acc_t, class Value>
__device__ Norm<acc_t> row_norm(int64_t channels, acc_t eps, Value value) {
    using std::sqrt;
    const int lane = threadIdx.x % WARP;
    acc_t sum = 0, square = 0;
    for (int64_t c = lane; c < channels; c += WARP) sum += value(c);
    const acc_t mean = sum_of_warp(sum) / channels;
    for (int64_t c = lane; c < channels; c += WARP) square += (value(c) - mean) * (value(c) - mean);
    return {mean, 1 / sqrt(sum_of_warp(square) / channels + eps)};
}

// The row of one vertex.
template <class acc_t, class scalar_t>
struct ReadOutRow {
    const ReadOutParameters<acc_t>& in;
    const acc_t *h, *x;
    const scalar_t* z;
    acc_t C;

    __device__ ReadOutRow(const ReadOutParameters<acc_t>& in, int64_t row, const acc_t* h, const acc_t* C,
                          const acc_t* x, const scalar_t* z)
        : in(in), h(h + row * in.channels), x(x + row * in.channels), z(z + row * in.channels), C(C[row]) {}

    __device__ acc_t state(const Norm<acc_t>& norm, int64_t c) const {
        return in.h_weight[c] * norm(h[c]) + in.h_bias[c];
    }
    __device__ acc_t y(const Norm<acc_t>& norm, int64_t c) const { return in.D[c] * x[c] + C * state(norm, c); }
    __device__ acc_t gate(int64_t c) const { return static_cast<acc_t>(z[c]); }
    __device__ acc_t silu(int64_t c) const { return gate(c) * sigmoid(gate(c)); }
};

template <class acc_t, class scalar_t>
__global__ void read_out_kernel(ReadOutParameters<acc_t> in, int64_t rows, const acc_t* h, const acc_t* C,
                                const acc_t* x, const scalar_t* z, scalar_t* output) {
    const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / WARP;
    if (row >= rows) return;
    const ReadOutRow<acc_t, scalar_t> vertex(in, row, h, C, x, z);
    const auto state = row_norm(in.channels, in.eps, [&](int64_t c) { return vertex.h[c]; });
    const auto outer = row_norm(in.channels, in.eps, [&](int64_t c) { return vertex.y(state, c); });
    for (int64_t c = threadIdx.x % WARP; c < in.channels; c += WARP) {
        const acc_t normed = in.y_weight[c] * outer(vertex.y(state, c)) + in.y_bias[c];
        output[row * in.channels + c] = static_cast<scalar_t>(normed * vertex.silu(c));
    }
}

// What the gradients of a row need of all its channels: both norms, and of the gradient of the outer norm's result the
// mean and the slope, which are subtracted again because the norm removes mean and scale.
template <class acc_t>
struct RowSums {
    Norm<acc_t> state, outer;
    acc_t mean, slope;
};

template <class acc_t, class scalar_t>
__device__ acc_t grad_of_y(const ReadOutRow<acc_t, scalar_t>& vertex, const RowSums<acc_t>& sums, acc_t grad,
                           int64_t c) {
    const acc_t normed = sums.outer(vertex.y(sums.state, c));
    return sums.outer.scale * (grad * vertex.silu(c) * vertex.in.y_weight[c] - sums.mean - normed * sums.slope);
}

template <class acc_t, class scalar_t>
struct RowGradients {
    acc_t *h, *C, *x;
    scalar_t* z;
    RowSums<acc_t>* sums;
};

template <class acc_t, class scalar_t>
__global__ void read_out_backward_kernel(ReadOutParameters<acc_t> in, int64_t rows, const scalar_t* grad,
                                         const acc_t* h, const acc_t* C, const acc_t* x, const scalar_t* z,
                                         RowGradients<acc_t, scalar_t> gradients) {
    const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / WARP, channels = in.channels;
    if (row >= rows) return;
    const int lane = threadIdx.x % WARP;
    const int64_t offset = row * channels;
    const ReadOutRow<acc_t, scalar_t> vertex(in, row, h, C, x, z);
    RowSums<acc_t> sums;
    sums.state = row_norm(channels, in.eps, [&](int64_t c) { return vertex.h[c]; });
    sums.outer = row_norm(channels, in.eps, [&](int64_t c) { return vertex.y(sums.state, c); });
    sums.mean = sums.slope = 0;
    for (int64_t c = lane; c < channels; c += WARP) {
        const acc_t from = static_cast<acc_t>(grad[offset + c]), gate = vertex.gate(c), open = sigmoid(gate);
        const acc_t normed = sums.outer(vertex.y(sums.state, c)), from_normed = from * (gate * open) * in.y_weight[c];
        const acc_t output = in.y_weight[c] * normed + in.y_bias[c];
        gradients.z[offset + c] = static_cast<scalar_t>(from * output * (open * (1 + gate * (1 - open))));
        sums.mean += from_normed;
        sums.slope += from_normed * normed;
    }
    sums.mean = sum_of_warp(sums.mean) / channels;
    sums.slope = sum_of_warp(sums.slope) / channels;
    acc_t grad_C = 0, mean = 0, slope = 0;
    for (int64_t c = lane; c < channels; c += WARP) {
        const acc_t from_y = grad_of_y(vertex, sums, static_cast<acc_t>(grad[offset + c]), c);
        const acc_t from_normed = from_y * vertex.C * in.h_weight[c];
        gradients.x[offset + c] = from_y * in.D[c];
        grad_C += from_y * vertex.state(sums.state, c);
        mean += from_normed;
        slope += from_normed * sums.state(vertex.h[c]);
    }
    grad_C = sum_of_warp(grad_C), mean = sum_of_warp(mean) / channels, slope = sum_of_warp(slope) / channels;
    for (int64_t c = lane; c < channels; c += WARP) {
        const acc_t from_y = grad_of_y(vertex, sums, static_cast<acc_t>(grad[offset + c]), c);
        const acc_t from_normed = from_y * vertex.C * in.h_weight[c];
        gradients.h[offset + c] = sums.state.scale * (from_normed - mean - sums.state(vertex.h[c]) * slope);
    }
    if (lane == 0) {
        gradients.C[row] = grad_C;
        gradients.sums[row] = sums;
    }
}

constexpr int BLOCK_ROWS = 256;  // vertices of one block of the second kernel
constexpr int PARAMETERS = 5;    // D, h_weight, h_bias, y_weight, y_bias

template <class acc_t>
struct ParameterParts {
    acc_t* parts[PARAMETERS];  // (blocks, channels) each
};

// One block adds up BLOCK_ROWS vertices of WARP channels; its warps take whole rows of them.
template <class acc_t, class scalar_t>
__global__ void parameter_kernel(ReadOutParameters<acc_t> in, int64_t rows, const scalar_t* grad, const acc_t* h,
                                 const acc_t* C, const acc_t* x, const scalar_t* z, const RowSums<acc_t>* row_sums,
                                 ParameterParts<acc_t> out) {
    auto* shared = reinterpret_cast<acc_t*>(shared_memory());  // (PARAMETERS, threads)
    const int32_t thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, warps = blockDim.x / WARP;
    const int64_t begin = int64_t{blockIdx.x} * BLOCK_ROWS, end = begin + BLOCK_ROWS < rows ? begin + BLOCK_ROWS : rows;
    const int64_t c = int64_t{blockIdx.y} * WARP + lane;
    acc_t sums[PARAMETERS] = {};
    for (int64_t row = begin + warp; row < end && c < in.channels; row += warps) {
        const ReadOutRow<acc_t, scalar_t> vertex(in, row, h, C, x, z);
        const RowSums<acc_t>& known = row_sums[row];
        const acc_t from = static_cast<acc_t>(grad[row * in.channels + c]), from_output = from * vertex.silu(c);
        const acc_t from_y = grad_of_y(vertex, known, from, c);
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
        acc_t sum = 0;
        for (int other = 0; other < warps; ++other) sum += shared[k * blockDim.x + other * WARP + lane];
        out.parts[k][blockIdx.x * in.channels + c] = sum;
    }
}

int64_t blocks_for_rows(int64_t rows) {
    return (rows * WARP + ELEMENT_THREADS - 1) / ELEMENT_THREADS;
}

Tensor new_like(const Tensor& like) {
    return make_empty(like, {like.size(0), like.size(1), like.size(2)});
}

Tensor gated_read_out(const Tensor& h, const Tensor& C, const Tensor& x, const Tensor& D, const Tensor& z,
                      const Tensor& h_weight, const Tensor& h_bias, const Tensor& y_weight, const Tensor& y_bias,
                      double eps) {
    ReadOutArguments in("gated_read_out", h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps);
    check_batch(in.function, in.batch, in.vertices);
    Tensor output = new_like(in.z);
    if (output.numel() == 0) return output;
    const Device device(in.function, h);
    in.dispatch([&]<class acc_t, class scalar_t>(acc_t, scalar_t) {
        device.launch(read_out_kernel<acc_t, scalar_t>, blocks_for_rows(in.rows()), ELEMENT_THREADS, 0,
                      in.parameters<acc_t>(), in.rows(), in.h.const_data_ptr<acc_t>(), in.C.const_data_ptr<acc_t>(),
                      in.x.const_data_ptr<acc_t>(), in.z.const_data_ptr<scalar_t>(),
                      output.mutable_data_ptr<scalar_t>());
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_read_out_backward(
    const Tensor& grad, const Tensor& h, const Tensor& C, const Tensor& x, const Tensor& D, const Tensor& z,
    const Tensor& h_weight, const Tensor& h_bias, const Tensor& y_weight, const Tensor& y_bias, double eps) {
    ReadOutArguments in("gated_read_out_backward", h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps);
    check_batch(in.function, in.batch, in.vertices);
    Tensor g = in.check_grad(grad), grad_h = new_like(in.h), grad_x = new_like(in.x), grad_z = new_like(in.z);
    Tensor grad_C = make_zeros(C, {in.batch, in.vertices});
    const int64_t blocks = (in.rows() + BLOCK_ROWS - 1) / BLOCK_ROWS;
    auto new_parts = [&] { return make_empty(D, {blocks, in.channels}); };
    Tensor parts[PARAMETERS] = {new_parts(), new_parts(), new_parts(), new_parts(), new_parts()};
    if (grad_h.numel() > 0) {
        const Device device(in.function, h);
        Workspace workspace(h);
        in.dispatch([&]<class acc_t, class scalar_t>(acc_t, scalar_t) {
            const auto parameters = in.parameters<acc_t>();
            const acc_t *h_ptr = in.h.const_data_ptr<acc_t>(), *C_ptr = in.C.const_data_ptr<acc_t>();
            const acc_t* x_ptr = in.x.const_data_ptr<acc_t>();
            const scalar_t *z_ptr = in.z.const_data_ptr<scalar_t>(), *grad_ptr = g.const_data_ptr<scalar_t>();
            auto* sums = workspace.take<RowSums<acc_t>>(in.rows());
            RowGradients<acc_t, scalar_t> gradients{grad_h.mutable_data_ptr<acc_t>(), grad_C.mutable_data_ptr<acc_t>(),
                                                    grad_x.mutable_data_ptr<acc_t>(),
                                                    grad_z.mutable_data_ptr<scalar_t>(), sums};
            device.launch(read_out_backward_kernel<acc_t, scalar_t>, blocks_for_rows(in.rows()), ELEMENT_THREADS, 0,
                          parameters, in.rows(), grad_ptr, h_ptr, C_ptr, x_ptr, z_ptr, gradients);
            ParameterParts<acc_t> to;
            for (int k = 0; k < PARAMETERS; ++k) to.parts[k] = parts[k].mutable_data_ptr<acc_t>();
            const dim3 tiles(blocks, (in.channels + WARP - 1) / WARP);
            device.launch(parameter_kernel<acc_t, scalar_t>, tiles, ELEMENT_THREADS,
                          PARAMETERS * ELEMENT_THREADS * sizeof(acc_t), parameters, in.rows(), grad_ptr, h_ptr, C_ptr,
                          x_ptr, z_ptr, sums, to);
        });
    }
    auto sum = [&](int k) { return sum_parts(parts[k]); };
    return {grad_h, grad_C, grad_x, sum(0), grad_z, sum(1), sum(2), sum(3), sum(4)};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, GROOTV_BACKEND, m) {
    GROOTV_IMPL(m, gated_read_out);
    GROOTV_IMPL(m, gated_read_out_backward);
}
