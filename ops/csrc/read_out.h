// The gated read-out LN(C LN(h) + D x) silu(z) of states h. Arguments and element types of all backends.
#pragma once

#include "tree_scan.h"

namespace grootv {

// The parameters, one value per channel.
template <class acc_t>
struct ReadOutParameters {
    const acc_t *D, *h_weight, *h_bias, *y_weight, *y_bias;
    acc_t eps;
    int64_t channels;
};

// The arguments, checked and made contiguous; the backward pass calls check_grad as well. h, C, x and the parameters
// have the type that is computed in; z, the result and their gradients may be narrower.
struct ReadOutArguments : ScanSizes {
    ReadOutArguments(const char* function, const Tensor& h, const Tensor& C, const Tensor& x, const Tensor& D,
                     const Tensor& z, const Tensor& h_weight, const Tensor& h_bias, const Tensor& y_weight,
                     const Tensor& y_bias, double eps)
        : ScanSizes(check_state(function, h), "h", h),
          h(as_contiguous(h)),
          C(per_vertex("C", C)),
          x(per_element("x", x)),
          D(per_channel("D", D)),
          z(check_gate(z)),
          h_weight(per_channel("h_weight", h_weight)),
          h_bias(per_channel("h_bias", h_bias)),
          y_weight(per_channel("y_weight", y_weight)),
          y_bias(per_channel("y_bias", y_bias)),
          eps(eps) {}

    Tensor check_grad(const Tensor& grad) const {
        check_per_element("grad", grad, z);
        return as_contiguous(grad);
    }

    int64_t rows() const { return batch * vertices; }

    template <class acc_t>
    ReadOutParameters<acc_t> parameters() const {
        return {D.const_data_ptr<acc_t>(),
                h_weight.const_data_ptr<acc_t>(),
                h_bias.const_data_ptr<acc_t>(),
                y_weight.const_data_ptr<acc_t>(),
                y_bias.const_data_ptr<acc_t>(),
                static_cast<acc_t>(eps),
                channels};
    }

    // Calls function(acc_t{}, scalar_t{}) for the element types of h and z.
    template <class Function>
    void dispatch(Function function) const {
        dispatch_floating(z, [&](auto zero) { function(acc_type<decltype(zero)>{}, zero); });
    }

    Tensor h, C, x, D, z, h_weight, h_bias, y_weight, y_bias;
    double eps;

private:
    static const char* check_state(const char* function, const Tensor& h) {
        check(h.scalar_type() == ScalarType::Float || h.scalar_type() == ScalarType::Double, function,
              ": h must be float32 or float64, got ", dtype_name(h.scalar_type()));
        return function;
    }

    Tensor per_element(const char* name, const Tensor& tensor) const {
        check_per_element(name, tensor, h);
        return as_contiguous(tensor);
    }

    Tensor per_vertex(const char* name, const Tensor& tensor) const {
        check_per_vertex(name, tensor, h);
        return as_contiguous(tensor);
    }

    Tensor per_channel(const char* name, const Tensor& tensor) const {
        check_per_channel(name, tensor, h);
        return as_contiguous(tensor);
    }

    Tensor check_gate(const Tensor& gate) const {
        check_floating(function, "z", gate);
        check(acc_dtype_of(gate.scalar_type()) == h.scalar_type(), function, ": z must be ",
              h.scalar_type() == ScalarType::Double ? "float64" : "float32, float16 or bfloat16", ", got ",
              dtype_name(gate.scalar_type()));
        check_tensor(function, "z", "one value per vertex and channel", gate, gate.scalar_type(),
                     {batch, vertices, channels}, h);
        return as_contiguous(gate);
    }
};

}  // namespace grootv
