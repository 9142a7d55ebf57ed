// Norm, multiply-add, norm and gate of a vertex while its row is in the cache.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/elementary.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/workspace.h"
#include "read_out.h"

namespace grootv {
namespace {

constexpr int64_t TASK_VERTICES = 64;  // their share of a parameter's gradient is one partial sum

template <class acc_t>
struct ParameterSums {
    acc_t *D, *h_weight, *h_bias, *y_weight, *y_bias;
};

// The sum over all channels of value(at), where at(row) is a SIMD vector of the row or a single element.
template <class acc_t, class Value>
GROOTV_INLINE acc_t sum_channels(int64_t channels, Value value) {
    Simd<acc_t> sums{};
    int64_t c = 0;
    for (; c + SIMD_WIDTH <= channels; c += SIMD_WIDTH) sums += value([c](const acc_t* row) { return load(row + c); });
    for (int64_t i = 0; c < channels; ++c, ++i) sums[i] += value([c](const acc_t* row) { return row[c]; });
    return sum<acc_t>(sums);
}

// A row x as LayerNorm normalises it: (x - mean) * scale.
template <class acc_t>
struct Normalised {
    GROOTV_INLINE Normalised(const acc_t* row, int64_t channels, acc_t eps) : row(row) {
        const acc_t count = static_cast<acc_t>(channels);
        const acc_t center = sum_channels<acc_t>(channels, [=](auto at) { return at(row); }) / count;
        const acc_t square =
            sum_channels<acc_t>(channels, [=](auto at) { return (at(row) - center) * (at(row) - center); });
        mean = center;
        scale = 1 / std::sqrt(square / count + eps);
    }

    GROOTV_INLINE acc_t operator[](int64_t c) const { return (row[c] - mean) * scale; }

    template <class At>
    GROOTV_INLINE auto operator()(At at) const {
        return (at(row) - mean) * scale;
    }

    const acc_t* row;
    acc_t mean, scale;
};

// y = C LN(h) + D x of one vertex.
template <class acc_t>
GROOTV_INLINE void combine(const ReadOutParameters<acc_t>& in, const Normalised<acc_t>& h, acc_t C, const acc_t* x,
                           acc_t* y) {
    const acc_t *D = in.D, *weight = in.h_weight, *bias = in.h_bias;
    const int64_t channels = in.channels;
    GROOTV_IVDEP
    for (int64_t c = 0; c < channels; ++c) y[c] = D[c] * x[c] + C * (weight[c] * h[c] + bias[c]);
}

template <class acc_t, class scalar_t>
GROOTV_VECTORIZE void read_out(const ReadOutParameters<acc_t>& in, int64_t rows, const acc_t* h, const acc_t* C,
                               const acc_t* x, const scalar_t* z, scalar_t* output, acc_t* y) {
    const int64_t channels = in.channels;
    const acc_t *weight = in.y_weight, *bias = in.y_bias;
    for (int64_t row = 0; row < rows; ++row, h += channels, x += channels, z += channels, output += channels) {
        combine(in, Normalised<acc_t>(h, channels, in.eps), C[row], x, y);
        const Normalised<acc_t> normed(y, channels, in.eps);
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const acc_t gate = static_cast<acc_t>(z[c]);
            y[c] = (weight[c] * normed[c] + bias[c]) * (gate * sigmoid(gate));
        }
        for (int64_t c = 0; c < channels; ++c) output[c] = static_cast<scalar_t>(y[c]);  // rounding may not vectorise
    }
}

// From the gradient `grad` of a LayerNorm's normalised row to that of the row itself, in place or elsewhere.
template <class acc_t>
GROOTV_INLINE void norm_backward(const Normalised<acc_t>& normed, const acc_t* grad, int64_t channels,
                                 acc_t* grad_row) {
    const acc_t count = static_cast<acc_t>(channels);
    const acc_t mean = sum_channels<acc_t>(channels, [=](auto at) { return at(grad); }) / count;
    const acc_t slope = sum_channels<acc_t>(channels, [=](auto at) { return at(grad) * normed(at); }) / count;
    GROOTV_IVDEP
    for (int64_t c = 0; c < channels; ++c) grad_row[c] = normed.scale * (grad[c] - mean - normed[c] * slope);
}

template <class acc_t, class scalar_t>
GROOTV_VECTORIZE void read_out_backward(const ReadOutParameters<acc_t>& in, int64_t rows, const scalar_t* grad,
                                        const acc_t* h, const acc_t* C, const acc_t* x, const scalar_t* z,
                                        acc_t* grad_h, acc_t* grad_C, acc_t* grad_x, scalar_t* grad_z,
                                        ParameterSums<acc_t> sums, acc_t* y, acc_t* wide) {
    const int64_t channels = in.channels;
    for (int64_t row = 0; row < rows; ++row) {
        const acc_t C_row = C[row];
        const Normalised<acc_t> state(h, channels, in.eps);
        combine(in, state, C_row, x, y);
        const Normalised<acc_t> normed(y, channels, in.eps);
        acc_t* grad_y = grad_h;  // free until the end
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const acc_t grad_output = static_cast<acc_t>(grad[c]);
            const acc_t gate = static_cast<acc_t>(z[c]), open = sigmoid(gate);
            const acc_t n = normed[c], grad_norm = grad_output * (gate * open);
            wide[c] = grad_output * (in.y_weight[c] * n + in.y_bias[c]) * (open * (1 + gate * (1 - open)));
            sums.y_weight[c] += grad_norm * n;
            sums.y_bias[c] += grad_norm;
            grad_y[c] = grad_norm * in.y_weight[c];
        }
        for (int64_t c = 0; c < channels; ++c) grad_z[c] = static_cast<scalar_t>(wide[c]);
        norm_backward(normed, grad_y, channels, y);
        grad_C[row] = sum_channels<acc_t>(
            channels, [=](auto at) { return at(y) * (at(in.h_weight) * state(at) + at(in.h_bias)); });
        GROOTV_IVDEP
        for (int64_t c = 0; c < channels; ++c) {
            const acc_t grad_norm = y[c] * C_row;
            sums.D[c] += y[c] * x[c];
            sums.h_weight[c] += grad_norm * state[c];
            sums.h_bias[c] += grad_norm;
            grad_x[c] = y[c] * in.D[c];
            wide[c] = grad_norm * in.h_weight[c];
        }
        norm_backward(state, wide, channels, grad_h);
        grad += channels, h += channels, x += channels, z += channels;
        grad_h += channels, grad_x += channels, grad_z += channels;
    }
}

// Calls task(i, first row, its offset in a map, rows) for every TASK_VERTICES vertices, in parallel.
template <class Task>
void for_each_task(const ScanSizes& sizes, Task task) {
    const int64_t rows = sizes.batch * sizes.vertices;
    parallel_for_each(sizes.function, (rows + TASK_VERTICES - 1) / TASK_VERTICES, [&](int64_t i) {
        task(i, i * TASK_VERTICES, i * TASK_VERTICES * sizes.channels,
             std::min(TASK_VERTICES, rows - i * TASK_VERTICES));
    });
}

Tensor gated_read_out(const Tensor& h, const Tensor& C, const Tensor& x, const Tensor& D, const Tensor& z,
                      const Tensor& h_weight, const Tensor& h_bias, const Tensor& y_weight, const Tensor& y_bias,
                      double eps) {
    ReadOutArguments in("gated_read_out", h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps);
    Tensor output = empty_map(in.z);
    in.dispatch([&]<class acc_t, class scalar_t>(acc_t, scalar_t) {
        for_each_task(in, [&](int64_t, int64_t row, int64_t offset, int64_t rows) {
            Workspace workspace;
            read_out(in.parameters<acc_t>(), rows, in.h.const_data_ptr<acc_t>() + offset,
                     in.C.const_data_ptr<acc_t>() + row, in.x.const_data_ptr<acc_t>() + offset,
                     in.z.const_data_ptr<scalar_t>() + offset, output.mutable_data_ptr<scalar_t>() + offset,
                     workspace.take<acc_t>(in.channels));
        });
    });
    return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_read_out_backward(
    const Tensor& grad, const Tensor& h, const Tensor& C, const Tensor& x, const Tensor& D, const Tensor& z,
    const Tensor& h_weight, const Tensor& h_bias, const Tensor& y_weight, const Tensor& y_bias, double eps) {
    ReadOutArguments in("gated_read_out_backward", h, C, x, D, z, h_weight, h_bias, y_weight, y_bias, eps);
    Tensor g = in.check_grad(grad), grad_h = empty_map(in.h), grad_x = empty_map(in.x), grad_z = empty_map(in.z);
    Tensor grad_C = make_empty(C, {in.batch, in.vertices});
    auto new_vector = [&] { return make_empty(D, {in.channels}); };
    constexpr int PARAMETERS = 5;
    Tensor vectors[PARAMETERS] = {new_vector(), new_vector(), new_vector(), new_vector(), new_vector()};
    in.dispatch([&]<class acc_t, class scalar_t>(acc_t, scalar_t) {
        const int64_t tasks = (in.rows() + TASK_VERTICES - 1) / TASK_VERTICES, channels = in.channels;
        std::vector<acc_t> parts(tasks * PARAMETERS * channels);
        for_each_task(in, [&](int64_t task, int64_t row, int64_t offset, int64_t rows) {
            Workspace workspace;
            acc_t* part = parts.data() + task * PARAMETERS * channels;
            ParameterSums<acc_t> sums{part, part + channels, part + 2 * channels, part + 3 * channels,
                                      part + 4 * channels};
            read_out_backward(in.parameters<acc_t>(), rows, g.const_data_ptr<scalar_t>() + offset,
                              in.h.const_data_ptr<acc_t>() + offset, in.C.const_data_ptr<acc_t>() + row,
                              in.x.const_data_ptr<acc_t>() + offset, in.z.const_data_ptr<scalar_t>() + offset,
                              grad_h.mutable_data_ptr<acc_t>() + offset, grad_C.mutable_data_ptr<acc_t>() + row,
                              grad_x.mutable_data_ptr<acc_t>() + offset, grad_z.mutable_data_ptr<scalar_t>() + offset,
                              sums, workspace.take<acc_t>(channels), workspace.take<acc_t>(channels));
        });
        for (int64_t k = 0; k < PARAMETERS; ++k)
            add_parts<double>(parts.data() + k * channels, tasks, PARAMETERS * channels, channels,
                              vectors[k].mutable_data_ptr<acc_t>());
    });
    return {grad_h, grad_C, grad_x, vectors[0], grad_z, vectors[1], vectors[2], vectors[3], vectors[4]};
}

}  // namespace
}  // namespace grootv

STABLE_TORCH_LIBRARY_IMPL(grootv, CPU, m) {
    GROOTV_IMPL(m, gated_read_out);
    GROOTV_IMPL(m, gated_read_out_backward);
}
