// The kernels' entry functions behind one signature.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "torch/csrc/stable/tensor.h"

namespace grootv::onnxruntime {

using torch::stable::Tensor;

using Attribute = std::variant<int64_t, double, std::string>;

// The arguments of a call: inputs and attributes apart, each in the order of the function's arguments.
struct Arguments {
    std::vector<std::optional<Tensor>> inputs;
    std::span<const Attribute> attributes;
};

enum class Kind { input, optional_input, integer, real, text };

struct Kernel {
    std::vector<Kind> arguments;
    std::vector<Tensor> (*call)(const Arguments&);
};

template <class T>
constexpr Kind kind_of() {
    if constexpr (std::is_same_v<T, Tensor>) return Kind::input;
    if constexpr (std::is_same_v<T, std::optional<Tensor>>) return Kind::optional_input;
    if constexpr (std::is_same_v<T, std::string>) return Kind::text;
    if constexpr (std::is_same_v<T, double>) return Kind::real;
    return Kind::integer;
}

class ArgumentReader {
public:
    explicit ArgumentReader(const Arguments& arguments) : arguments_(arguments) {}

    template <class T>
    T next() {
        if constexpr (kind_of<T>() == Kind::input) return *arguments_.inputs[input_++];
        if constexpr (kind_of<T>() == Kind::optional_input) return arguments_.inputs[input_++];
        if constexpr (kind_of<T>() == Kind::text) return std::get<std::string>(arguments_.attributes[attribute_++]);
        if constexpr (kind_of<T>() == Kind::real) return std::get<double>(arguments_.attributes[attribute_++]);
        if constexpr (kind_of<T>() == Kind::integer)
            return static_cast<T>(std::get<int64_t>(arguments_.attributes[attribute_++]));
    }

private:
    const Arguments& arguments_;
    size_t input_ = 0, attribute_ = 0;
};

template <auto function, class Result, class... Types>
std::vector<Tensor> call(const Arguments& arguments) {
    ArgumentReader reader(arguments);
    std::tuple<std::decay_t<Types>...> values{reader.next<std::decay_t<Types>>()...};  // braces keep the order
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
class Kernels {
public:
    static Kernels& all() {
        static Kernels kernels;
        return kernels;
    }

    void impl(const char* name, Kernel kernel) { by_name_[name] = std::move(kernel); }
    const Kernel& at(const std::string& name) const { return by_name_.at(name); }

private:
    std::map<std::string, Kernel> by_name_;
};

}  // namespace grootv::onnxruntime
