// Registration of kernels as torch::stable has it, into the list that library.cpp makes operators of.
#pragma once

#include "kernels.h"

#define TORCH_BOX(function) (grootv::onnxruntime::box<(function)>())

#define STABLE_TORCH_LIBRARY_IMPL(domain, device, m)                                                               \
    static void register_kernels(grootv::onnxruntime::Kernels&);                                                   \
    [[maybe_unused]] static const bool registered = (register_kernels(grootv::onnxruntime::Kernels::all()), true); \
    static void register_kernels(grootv::onnxruntime::Kernels& m)
