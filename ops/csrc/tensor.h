// Tensors, the functions on them that kernels call, and the registration of kernels, by the names of torch's stable C++
// interface. The library for ONNX Runtime is linked without torch: two headers in onnxruntime/ define these names for
// it.
#pragma once

#include <torch/headeronly/core/ScalarType.h>  // torch's headers of this folder need no library
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#ifdef GROOTV_ONNXRUNTIME
#include "onnxruntime/kernels.h"
#else
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#endif

namespace grootv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

}  // namespace grootv
