// Registration of kernels as torch's stable C++ interface has it, in a list that library.cpp makes operators of.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "onnxruntime/stable.h"

namespace grootv::onnxruntime {

// An input, or an attribute.
using Argument = std::variant<std::optional<Tensor>, int64_t, double, std::string>;
enum class Kind { input, optional_input, integer, real, text };

struct Kernel {
    std::vector<Kind> arguments;
    std::vector<Tensor> (*call)(const std::vector<Argument>&);
};

template <class T>
constexpr Kind kind_of() {
    if constexpr (std::is_same_v<T, Tensor>) return Kind::input;
    if constexpr (std::is_same_v<T, std::optional<Tensor>>) return Kind::optional_input;
    if constexpr (std::is_same_v<T, std::string>) return Kind::text;
    if constexpr (std::is_same_v<T, double>) return Kind::real;
    return Kind::integer;
}

template <class T>
T value(const Argument& argument) {
    if constexpr (kind_of<T>() == Kind::input)
        return *std::get<std::optional<Tensor>>(argument);
    else if constexpr (kind_of<T>() == Kind::integer)
        return static_cast<T>(std::get<int64_t>(argument));
    else
        return std::get<T>(argument);
}

template <auto function, class Result, class... Types>
std::vector<Tensor> call(const std::vector<Argument>& arguments) {
    auto next = arguments.begin();
    std::tuple<std::decay_t<Types>...> values{value<std::decay_t<Types>>(*next++)...};  // braces keep the order
    Result result = std::apply(function, values);
    if constexpr (std::is_same_v<Result, Tensor>)
        return {result};
    else
        return std::apply([](const auto&... tensors) { return std::vector<Tensor>{tensors...}; }, result);
}

template <auto function>
Kernel box() {
    return []<class Result, class... Types>(Result (*)(Types...)) {
        return Kernel{{kind_of<std::decay_t<Types>>()...}, &call<function, Result, Types...>};
    }(function);
}

// Every registered kernel by name.
struct Kernels {
    static Kernels& all() {
        static Kernels kernels;
        return kernels;
    }

    void impl(const char* name, Kernel kernel) { by_name[name] = std::move(kernel); }

    std::map<std::string, Kernel> by_name;
};

}  // namespace grootv::onnxruntime

#define TORCH_BOX(function) (grootv::onnxruntime::box<(function)>())

#define STABLE_TORCH_LIBRARY_IMPL(domain, device, m)                                                               \
    static void register_kernels(grootv::onnxruntime::Kernels&);                                                   \
    [[maybe_unused]] static const bool registered = (register_kernels(grootv::onnxruntime::Kernels::all()), true); \
    static void register_kernels(grootv::onnxruntime::Kernels& m)
