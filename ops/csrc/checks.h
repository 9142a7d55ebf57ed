// Argument checks with one wording for all backends: function, rule, value found.
#pragma once

#include <initializer_list>
#include <iomanip>
#include <limits>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "tensor.h"

namespace grootv {

template <class... Parts>
void check(bool holds, const Parts&... message) {
    if (holds) return;
    std::ostringstream text;
    (text << ... << message);
    throw std::runtime_error(text.str());
}

template <class Sizes>
std::string format_shape(const Sizes& sizes) {
    std::ostringstream text;
    text << '(';
    const char* separator = "";
    for (int64_t size : sizes) {
        text << separator << size;
        separator = ", ";
    }
    text << ')';
    return text.str();
}

inline const char* dtype_name(ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Float: return "float32";
        case ScalarType::Double: return "float64";
        case ScalarType::Half: return "float16";
        case ScalarType::BFloat16: return "bfloat16";
        case ScalarType::Int: return "int32";
        case ScalarType::Long: return "int64";
        case ScalarType::Bool: return "bool";
        default: return "another dtype";
    }
}

inline void check_floating(const char* function, const char* name, const Tensor& tensor) {
    ScalarType dtype = tensor.scalar_type();
    check(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
              dtype == ScalarType::BFloat16,
          function, ": ", name, " must be float32, float64, float16 or bfloat16, got ", dtype_name(dtype));
}

inline void check_dtype(const char* function, const char* name, const Tensor& tensor, ScalarType expected) {
    check(tensor.scalar_type() == expected, function, ": ", name, " must be ", dtype_name(expected), ", got ",
          dtype_name(tensor.scalar_type()));
}

inline void check_dim(const char* function, const char* name, const Tensor& tensor, int64_t dim, const char* shape) {
    check(tensor.dim() == dim, function, ": ", name, " must have shape ", shape, ", got ",
          format_shape(tensor.sizes()));
}

inline void check_shape(const char* function, const char* name, const char* rule, const Tensor& tensor,
                        std::initializer_list<int64_t> expected) {
    bool equal = tensor.dim() == static_cast<int64_t>(expected.size());
    int64_t dim = 0;
    for (int64_t size : expected) equal = equal && tensor.size(dim++) == size;
    check(equal, function, ": ", name, " needs ", rule, ", shape ", format_shape(expected), ", got ",
          format_shape(tensor.sizes()));
}

inline void check_same_device(const char* function, const char* name, const Tensor& tensor, const Tensor& first) {
    bool same = tensor.is_cpu() == first.is_cpu() && tensor.is_cuda() == first.is_cuda() &&
                (tensor.is_cpu() || tensor.get_device_index() == first.get_device_index());
    check(same, function, ": all tensors must be on one device, but ", name, " is on another than the first");
}

// dtype, shape by a rule, and the device of the first tensor.
inline void check_tensor(const char* function, const char* name, const char* rule, const Tensor& tensor,
                         ScalarType dtype, std::initializer_list<int64_t> shape, const Tensor& first) {
    check_dtype(function, name, tensor, dtype);
    check_shape(function, name, rule, tensor, shape);
    check_same_device(function, name, tensor, first);
}

// Memory for a tensor that PyTorch did not get.
struct OutOfMemory : std::bad_alloc {
    explicit OutOfMemory(double bytes) : bytes(bytes) {}
    double bytes;  // may be more than an integer holds
};

inline int element_size(ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Double:
        case ScalarType::Long: return 8;
        case ScalarType::Half:
        case ScalarType::BFloat16: return 2;
        case ScalarType::Byte:
        case ScalarType::Bool: return 1;
        default: return 4;
    }
}

// Calls make(), which allocates a tensor; its error is lost in PyTorch's C interface.
template <class Sizes, class Make>
Tensor allocate(const Sizes& sizes, ScalarType dtype, const Make& make) {
    try {
        return make();
    } catch (const std::runtime_error&) {
        double bytes = element_size(dtype);
        for (int64_t size : sizes) bytes *= static_cast<double>(size);
        throw OutOfMemory(bytes);
    }
}

inline Tensor make_empty(const Tensor& like, std::initializer_list<int64_t> sizes,
                         std::optional<ScalarType> dtype = std::nullopt) {
    return allocate(sizes, dtype.value_or(like.scalar_type()),
                    [&] { return torch::stable::new_empty(like, sizes, dtype); });
}

inline Tensor make_zeros(const Tensor& like, std::initializer_list<int64_t> sizes,
                         std::optional<ScalarType> dtype = std::nullopt) {
    return allocate(sizes, dtype.value_or(like.scalar_type()),
                    [&] { return torch::stable::new_zeros(like, sizes, dtype); });
}

// The tensor itself if it is contiguous already: a call through the dispatcher costs as much as a small tree.
inline Tensor as_contiguous(const Tensor& tensor) {
    if (tensor.is_contiguous()) return tensor;
    return allocate(tensor.sizes(), tensor.scalar_type(), [&] { return torch::stable::contiguous(tensor); });
}

inline Tensor as_contiguous(const Tensor& tensor, ScalarType dtype) {
    if (tensor.scalar_type() == dtype) return as_contiguous(tensor);
    return as_contiguous(allocate(tensor.sizes(), dtype, [&] { return torch::stable::to(tensor, dtype); }));
}

inline Tensor as_contiguous_float32(const Tensor& tensor) {
    return as_contiguous(tensor, ScalarType::Float);
}

// A kernel that reports memory that ran out under the name of its operator.
template <class Operator, auto kernel>
struct Reporting;

template <class Operator, class Result, class... Types, Result (*kernel)(Types...)>
struct Reporting<Operator, kernel> {
    static Result call(Types... arguments) {
        std::string size;
        try {
            return kernel(arguments...);
        } catch (const OutOfMemory& error) {
            std::ostringstream text;
            text << std::fixed << std::setprecision(0) << ": cannot allocate " << error.bytes << " bytes";
            size = text.str();
        } catch (const std::bad_alloc&) {
        } catch (const std::length_error&) {  // of a vector
        }
        throw std::runtime_error(std::string(Operator::name()) + ": out of memory" + size);
    }
};

// Vertices and edges are counted in int32; a grid of L vertices has fewer than 2 L edges.
inline void check_grid(const char* function, int64_t height, int64_t width) {
    check(height >= 1 && width >= 1, function, ": the grid must have at least one row and one column, got ", height,
          " x ", width);
    check(height <= std::numeric_limits<int32_t>::max() / 2 / width, function,
          ": the grid must have at most 2^30 vertices, got ", height, " x ", width);
}

inline void check_num_vertices(const char* function, int64_t num_vertices) {
    check(num_vertices >= 1 && num_vertices <= 1 << 30, function, ": num_vertices must be 1 to 2^30, got ",
          num_vertices);
}

// Vertices are counted in int32.
inline void check_num_vertices(const char* function, const char* name, int64_t vertices) {
    check(vertices <= 1 << 30, function, ": ", name, " must have at most 2^30 vertices, got ", vertices);
}

inline void check_root(const char* function, int64_t root, int64_t vertices) {
    check(root >= 0 && root < vertices, function, ": root must be a vertex, 0 to ", vertices - 1, ", got ", root);
}

}  // namespace grootv

// Registers the kernel of the same name as its operator.
#define GROOTV_IMPL(m, operator_name)                                                                    \
    do {                                                                                                 \
        struct Operator {                                                                                \
            static const char* name() { return #operator_name; }                                         \
        };                                                                                               \
        m.impl(#operator_name, TORCH_BOX((&grootv::Reporting<Operator, &grootv::operator_name>::call))); \
    } while (false)
