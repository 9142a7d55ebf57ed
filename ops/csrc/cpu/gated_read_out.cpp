// Norm, multiply-add, norm and gate of a vertex while its row is in the cache.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "cpu/elementary.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "cpu/vectorize.h"
#include "cpu/workspace.h"
#include "read_out.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // Lanes crosses inlined calls only

namespace grootv {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int64_t SIMD_WIDTH = 16;  // of a sum over channels, which is the same on every processor
constexpr int64_t ROWS = 64;        // vertices of a task, whose shares of a parameter's gradient are one partial sum

template <class A>
struct ParameterSums {
    A *D, *h_weight, *h_bias, *y_weight, *y_bias;
};

// The sum over all channels of value(at), where at(row) is what a row holds there: SIMD_WIDTH values or a single one.
template <class A, class Value>
GROOTV_INLINE A sum(int64_t channels, Value value) {
    typedef A Lanes __attribute__((vector_size(SIMD_WIDTH * sizeof(A))));
    Lanes lanes{};
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= channels; c += SIMD_WIDTH)
        lanes += value([c](const A* row) {
            Lanes values;
            std::memcpy(&values, row + c, sizeof values);
            return values;
        });
    for (int64_t lane = 0; c < channels; ++c, ++lane) lanes[lane] += value([c](const A* row) { return row[c]; });
    for (int64_t half = SIMD_WIDTH / 2; half > 0; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

// A row x as its LayerNorm sees it: (x - mean) * scale.
template <class A>
struct Normalised {
    GROOTV_INLINE Normalised(const A* row, int64_t channels, A eps) : row(row) {
        const A count = static_cast<A>(channels);
        const A center = sum<A>(channels, [=](auto at) { return at(row); }) / count;
        const A square = sum<A>(channels, [=](auto at) { return (at(row) - center) * (at(row) - center); });
        mean = center;
        scale = 1 / std::sqrt(square / count + eps);
    }

    GROOTV_INLINE A operator[](int64_t c) const { return (row[c] - mean) * scale; }

    template <class At>
    GROOTV_INLINE auto operator()(At at) const {
        return (at(row) - mean) * scale;
    }

    const A* row;
    A mean, scale;
};

// y = C LN(h) + D x of one vertex.
template <class A>
GROOTV_INLINE void combine(const ReadOutParameters<A>& in, const Normalised<A>& h, A C, const A* x, A* y) {
    const A *D = in.D, *weight = in.h_weight, *bias = in.h_bias;
    const int64_t channels = in.channels;
    GROOTV_IVDEP
    for (int64_t c = 0; c < channels; ++c) y[c] = D[c] * x[c] + C * (weight[c] * h[c] + bias[c]);
}

template <class A, class Z>
GROOTV_INLINE void read_out_rows(const ReadOutParameters<A>& in, int64_t rows, const A* h, const A* C, const A* x,
                                 const Z* z, Z* output, A* y) {
    const int64_t channels = in.channels;
    const A *weight = in.y_weight, *bias = in.y_bias;
    for (int64_t row = 0; row < rows; ++row, h += channels, x += channels, z += channels, output += channels) {
        combine(in, Normalised<A>(h, channels, in.eps), C[row], x, y);
        const Normalised<A> normed(y, channels, in.eps);
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const A gate = static_cast<A>(z[c]);
            y[c] = (weight[c] * normed[c] + bias[c]) * (gate * sigmoid(gate));
        }
        for (int64_t c = 0; c < channels; ++c) output[c] = static_cast<Z>(y[c]);  // rounding may not vectorise
    }
}

// From the gradient `grad` of a LayerNorm's normalised row to that of the row itself, in place or elsewhere.
template <class A>
GROOTV_INLINE void norm_backward(const Normalised<A>& normed, const A* grad, int64_t channels, A* grad_row) {
    const A count = static_cast<A>(channels);
    const A mean = sum<A>(channels, [=](auto at) { return at(grad); }) / count;
    const A slope = sum<A>(channels, [=](auto at) { return at(grad) * normed(at); }) / count;
    GROOTV_IVDEP
    for (int64_t c = 0; c < channels; ++c) grad_row[c] = normed.scale * (grad[c] - mean - normed[c] * slope);
}

template <class A, class Z>
GROOTV_INLINE void read_out_rows_backward(const ReadOutParameters<A>& in, int64_t rows, const Z* grad, const A* h,
                                          const A* C, const A* x, const Z* z, A* grad_h, A* grad_C, A* grad_x,
                                          Z* grad_z, ParameterSums<A> sums, A* y, A* wide) {
    const int64_t channels = in.channels;
    for (int64_t row = 0; row < rows; ++row) {
        const Normalised<A> state(h, channels, in.eps);
        combine(in, state, C[row], x, y);
        const Normalised<A> normed(y, channels, in.eps);
        const A read = C[row];
        A* grad_y = grad_h;  // free until the end
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const A from = static_cast<A>(grad[c]), gate = static_cast<A>(z[c]), open = sigmoid(gate);
            const A n = normed[c], from_norm = from * (gate * open);
            wide[c] = from * (in.y_weight[c] * n + in.y_bias[c]) * (open * (1 + gate * (1 - open)));
            sums.y_weight[c] += from_norm * n;
            sums.y_bias[c] += from_norm;
            grad_y[c] = from_norm * in.y_weight[c];
        }
        for (int64_t c = 0; c < channels; ++c) grad_z[c] = static_cast<Z>(wide[c]);
        norm_backward(normed, grad_y, channels, y);
        grad_C[row] = sum<A>(channels, [=](auto at) { return at(y) * (at(in.h_weight) * state(at) + at(in.h_bias)); });
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const A from_norm = y[c] * read;
            sums.D[c] += y[c] * x[c];
            sums.h_weight[c] += from_norm * state[c];
            sums.h_bias[c] += from_norm;
            grad_x[c] = y[c] * in.D[c];
            wide[c] = from_norm * in.h_weight[c];
        }
        norm_backward(state, wide, channels, grad_h);
        grad += channels, h += channels, x += channels, z += channels;
        grad_h += channels, grad_x += channels, grad_z += channels;
    }
}

#define GROOTV_INSTANTIATE(A, Z)                                                                                     \
    GROOTV_VECTORIZE void read_out(const ReadOutParameters<A>& in, int64_t rows, const A* h, const A* C, const A* x, \
                                   const Z* z, Z* output, A* y) {                                                    \
        read_out_rows(in, rows, h, C, x, z, output, y);                                                              \
    }                                                                                                                \
    GROOTV_VECTORIZE void read_out_backward(const ReadOutParameters<A>& in, int64_t rows, const Z* grad, const A* h, \
                                            const A* C, const A* x, const Z* z, A* grad_h, A* grad_C, A* grad_x,     \
                                            Z* grad_z, ParameterSums<A> sums, A* y, A* wide) {                       \
        read_out_rows_backward(in, rows, grad, h, C, x, z, grad_h, grad_C, grad_x, grad_z, sums, y, wide);           \
    }
GROOTV_INSTANTIATE(float, float)
GROOTV_INSTANTIATE(float, Half)
GROOTV_INSTANTIATE(float, BFloat16)
GROOTV_INSTANTIATE(double, double)
#undef GROOTV_INSTANTIATE

Tensor new_like(const Tensor& like) {
    Tensor made = torch::stable::new_empty(like, {like.size(0), like.size(1), like.size(2)});
    advise_huge_pages(made.mutable_data_ptr(), made.numel() * made.element_size());
    return made;
}

// Calls task(i, first row, its offset in a map, rows) for every ROWS vertices, in parallel.
template <class Task>
void for_each_task(const ScanSizes& sizes, Task task) {
    const int64_t rows = sizes.batch * sizes.vertices;
    parallel_for_each(sizes.function, (rows + ROWS - 1) / ROWS, [&](int64_t i) {
        task(i, i * ROWS, i * ROWS * sizes.channels, std::min(ROWS, rows - i * ROWS));
    });
}

Tensor gated_read_out(const Tensor& h, const Tensor& C, const Tensor& x, const Tensor& D, const Tensor& z,
                      const Tensor& h_weight, const Tensor& h_bias, const Tensor& y_weight, const Tensor& y_bias,
                      double eps) {
    ReadOutArguments in("gated_read_out", h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps);
    Tensor output = new_like(in.z);
    in.dispatch([&](auto wide, auto zero) {
        using A = decltype(wide);
        using Z = decltype(zero);
        const auto parameters = in.parameters<A>();
        const A *h_ptr = in.h.const_data_ptr<A>(), *C_ptr = in.C.const_data_ptr<A>(), *x_ptr = in.x.const_data_ptr<A>();
        const Z* z_ptr = in.z.const_data_ptr<Z>();
        Z* output_ptr = output.mutable_data_ptr<Z>();
        for_each_task(in, [&](int64_t, int64_t row, int64_t offset, int64_t rows) {
            Workspace workspace;
            read_out(parameters, rows, h_ptr + offset, C_ptr + row, x_ptr + offset, z_ptr + offset, output_ptr + offset,
                     workspace.take<A>(in.channels));
        });
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_read_out_backward(
    const Tensor& grad, const Tensor& h, const Tensor& C, const Tensor& x, const Tensor& D, const Tensor& z,
    const Tensor& h_weight, const Tensor& h_bias, const Tensor& y_weight, const Tensor& y_bias, double eps) {
    ReadOutArguments in("gated_read_out_backward", h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps);
    Tensor g = in.check_grad(grad), grad_h = new_like(in.h), grad_x = new_like(in.x), grad_z = new_like(in.z);
    Tensor grad_C = torch::stable::new_empty(C, {in.batch, in.vertices});
    auto new_vector = [&] { return torch::stable::new_empty(D, {in.channels}); };
    constexpr int PARAMETERS = 5;
    Tensor vectors[PARAMETERS] = {new_vector(), new_vector(), new_vector(), new_vector(), new_vector()};
    in.dispatch([&](auto wide, auto zero) {
        using A = decltype(wide);
        using Z = decltype(zero);
        const auto parameters = in.parameters<A>();
        const A *h_ptr = in.h.const_data_ptr<A>(), *C_ptr = in.C.const_data_ptr<A>(), *x_ptr = in.x.const_data_ptr<A>();
        const Z *z_ptr = in.z.const_data_ptr<Z>(), *grad_ptr = g.const_data_ptr<Z>();
        A *grad_h_ptr = grad_h.mutable_data_ptr<A>(), *grad_C_ptr = grad_C.mutable_data_ptr<A>();
        A* grad_x_ptr = grad_x.mutable_data_ptr<A>();
        Z* grad_z_ptr = grad_z.mutable_data_ptr<Z>();
        const int64_t tasks = (in.rows() + ROWS - 1) / ROWS, channels = in.channels;
        std::vector<A> parts(tasks * PARAMETERS * channels);  // the same for any number of threads
        for_each_task(in, [&](int64_t task, int64_t row, int64_t offset, int64_t rows) {
            Workspace workspace;
            A* part = parts.data() + task * PARAMETERS * channels;
            ParameterSums<A> sums{part, part + channels, part + 2 * channels, part + 3 * channels, part + 4 * channels};
            read_out_backward(parameters, rows, grad_ptr + offset, h_ptr + offset, C_ptr + row, x_ptr + offset,
                              z_ptr + offset, grad_h_ptr + offset, grad_C_ptr + row, grad_x_ptr + offset,
                              grad_z_ptr + offset, sums, workspace.take<A>(channels), workspace.take<A>(channels));
        });
        std::vector<double> total(PARAMETERS * channels);
        for (int64_t task = 0; task < tasks; ++task)
            for (int64_t i = 0; i < PARAMETERS * channels; ++i) total[i] += parts[task * PARAMETERS * channels + i];
        for (int64_t k = 0; k < PARAMETERS; ++k)
            std::copy_n(total.begin() + k * channels, channels, vectors[k].mutable_data_ptr<A>());
    });
    return {grad_h, grad_C, grad_x, vectors[0], grad_z, vectors[1], vectors[2], vectors[3], vectors[4]};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    m.impl("gated_read_out", TORCH_BOX(&grootv::gated_read_out));
    m.impl("gated_read_out_backward", TORCH_BOX(&grootv::gated_read_out_backward));
}
