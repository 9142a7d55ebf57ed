// Operators of the domain `grootv` for ONNX Runtime: the CPU kernels under the names and arguments that they have in
// torch, whose tensors are inputs and outputs here and whose other arguments are attributes. They compute in float32.
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.h"

namespace grootv::onnxruntime {

thread_local Call* Call::current_ = nullptr;

namespace {

ScalarType scalar_type(ElementType type) {
    return type == FLOAT32 ? ScalarType::Float : ScalarType::Int;
}

}  // namespace

std::optional<Tensor> Call::input(size_t index, ElementType type) const {
    size_t given = 0;
    require(api_.KernelContext_GetInputCount(context_, &given));
    const OrtValue* value = nullptr;
    if (index < given) require(api_.KernelContext_GetInput(context_, index, &value));
    if (!value) return std::nullopt;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    require(api_.GetTensorTypeAndShape(value, &info));
    std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
        info, api_.ReleaseTensorTypeAndShapeInfo);
    size_t dim = 0;
    require(api_.GetDimensionsCount(info, &dim));
    std::vector<int64_t> sizes(dim);
    require(api_.GetDimensions(info, sizes.data(), dim));
    void* data = nullptr;
    require(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    return Tensor(data, scalar_type(type), std::move(sizes));
}

Tensor Call::next_output(std::vector<int64_t> sizes, ScalarType dtype) {
    OrtValue* value = nullptr;
    void* data = nullptr;
    check(outputs_.size() < count_, "more results than the operator declares");
    require(api_.KernelContext_GetOutput(context_, outputs_.size(), sizes.data(), sizes.size(), &value));
    require(api_.GetTensorMutableData(value, &data));
    outputs_.push_back(data);
    return Tensor(data, dtype, std::move(sizes));
}

void Call::check_output(size_t index, const Tensor& result) const {
    check(index < outputs_.size() && outputs_[index] == result.mutable_data_ptr(), "result ", index,
          " was not allocated as output ", index);
}

namespace {

struct Definition {
    const char* name;
    std::vector<ElementType> inputs;
    std::vector<const char*> attributes;
    std::vector<ElementType> outputs;
    std::vector<size_t> places = {};  // the input that each tensor of the kernel is, unless they have one order

    size_t place(size_t tensor) const { return places.empty() ? tensor : places[tensor]; }
};

const std::vector<Definition>& definitions() {
    static const std::vector<Definition> all = {
        {"build_tree", {FLOAT32}, {"metric", "root"}, {INT32, INT32}},
        {"tree_edge_distance", {FLOAT32, INT32, INT32}, {"metric"}, {FLOAT32}},
        // The last input, the decomposition, serves other devices.
        {"tree_scan", {FLOAT32, FLOAT32, INT32, INT32, INT32}, {"direction"}, {FLOAT32}},
        {"selective_tree_scan",
         {FLOAT32, FLOAT32, FLOAT32, FLOAT32, FLOAT32, INT32, INT32, INT32, FLOAT32, FLOAT32},
         {"delta_softplus"},
         {FLOAT32},
         // distance and scale come last: models from before they came to the operator have the other inputs.
         {0, 1, 2, 3, 4, 8, 9, 5, 6, 7}},
        {"gated_read_out",
         {FLOAT32, FLOAT32, FLOAT32, FLOAT32, FLOAT32, FLOAT32, FLOAT32, FLOAT32, FLOAT32},
         {"eps"},
         {FLOAT32}},
    };
    return all;
}

bool is_input(Kind kind) {
    return kind == Kind::input || kind == Kind::optional_input;
}

struct Operator : OrtCustomOp {
    explicit Operator(const Definition& definition);

    const Definition& definition;
    const Kernel& kernel;
    std::vector<Kind> inputs, attributes;  // in the order of the definition
};

const Operator& self(const OrtCustomOp* op) {
    return *static_cast<const Operator*>(op);
}

// An operator of a model, with its attributes.
struct Node {
    const Operator& op;
    const OrtApi& api;
    std::vector<Argument> attributes;
};

// Runs `body`; no exception may reach ONNX Runtime.
template <class Body>
OrtStatus* guard(const OrtApi& api, const Body& body) {
    try {
        body();
        return nullptr;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::bad_alloc&) {
        return api.CreateStatus(ORT_FAIL, "grootv: out of memory");
    } catch (const std::exception& error) {
        return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
    }
}

Argument read_attribute(const OrtApi& api, const OrtKernelInfo* info, const char* name, Kind kind) {
    if (kind == Kind::integer) {
        int64_t value = 0;
        require(api.KernelInfoGetAttribute_int64(info, name, &value));
        return value;
    }
    if (kind == Kind::real) {
        float value = 0;
        require(api.KernelInfoGetAttribute_float(info, name, &value));
        return double{value};
    }
    size_t size = 0;
    require(api.KernelInfoGetAttribute_string(info, name, nullptr, &size));
    std::string text(size, '\0');
    require(api.KernelInfoGetAttribute_string(info, name, text.data(), &size));
    text.resize(std::strlen(text.c_str()));
    return text;
}

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guard(*api, [&] {
        auto node = std::make_unique<Node>(Node{self(op), *api, {}});
        for (size_t i = 0; i < node->op.attributes.size(); ++i)
            node->attributes.push_back(
                read_attribute(*api, info, node->op.definition.attributes[i], node->op.attributes[i]));
        *kernel = node.release();
    });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
    const Node& node = *static_cast<const Node*>(kernel);
    return guard(node.api, [&] {
        const Definition& definition = node.op.definition;
        Call call(node.api, context, definition.outputs.size());
        std::vector<Argument> arguments;
        size_t tensor = 0, attribute = 0;
        for (Kind kind : node.op.kernel.arguments) {
            if (is_input(kind)) {
                const size_t place = definition.place(tensor++);
                arguments.push_back(call.input(place, definition.inputs[place]));
            } else {
                arguments.push_back(node.attributes[attribute++]);
            }
        }
        const std::vector<Tensor> results = node.op.kernel.call(arguments);
        for (size_t i = 0; i < results.size(); ++i) call.check_output(i, results[i]);
    });
}

Operator::Operator(const Definition& definition)
    : OrtCustomOp{}, definition(definition), kernel(Kernels::all().by_name.at(definition.name)) {
    for (Kind kind : kernel.arguments) (is_input(kind) ? inputs : attributes).push_back(kind);
    check(inputs.size() == definition.inputs.size() && attributes.size() == definition.attributes.size(),
          definition.name, ": the definition does not fit the kernel");
    const std::vector<Kind> tensors = inputs;
    for (size_t i = 0; i < tensors.size(); ++i) inputs[definition.place(i)] = tensors[i];
    version = 16;
    GetName = [](const OrtCustomOp* op) { return self(op).definition.name; };
    GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
    GetInputType = [](const OrtCustomOp* op, size_t index) { return self(op).definition.inputs[index]; };
    GetInputTypeCount = [](const OrtCustomOp* op) { return self(op).definition.inputs.size(); };
    GetOutputType = [](const OrtCustomOp* op, size_t index) { return self(op).definition.outputs[index]; };
    GetOutputTypeCount = [](const OrtCustomOp* op) { return self(op).definition.outputs.size(); };
    KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
    GetInputCharacteristic = [](const OrtCustomOp* op, size_t index) {
        return self(op).inputs[index] == Kind::optional_input ? OPTIONAL : REQUIRED;
    };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return REQUIRED; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };  // the memory of the execution provider
    CreateKernelV2 = create_kernel;
    KernelComputeV2 = compute;
}

// The domain with its operators, made once; sessions refer to it as long as the library is loaded.
OrtCustomOpDomain* domain(const OrtApi& api) {
    static std::vector<std::unique_ptr<Operator>> operators;
    static OrtCustomOpDomain* const made = [&] {
        OrtCustomOpDomain* domain = nullptr;
        require(api.CreateCustomOpDomain("grootv", &domain));
        for (const Definition& definition : definitions()) {
            operators.push_back(std::make_unique<Operator>(definition));
            require(api.CustomOpDomain_Add(domain, operators.back().get()));
        }
        return domain;
    }();
    return made;
}

}  // namespace
}  // namespace grootv::onnxruntime

extern "C" __attribute__((visibility("default"))) grootv::onnxruntime::OrtStatus* RegisterCustomOps(
    grootv::onnxruntime::OrtSessionOptions* options, const grootv::onnxruntime::OrtApiBase* base) {
    using namespace grootv::onnxruntime;
    const OrtApi* api = base->GetApi(API_VERSION);
    if (!api) {
        const std::string found = base->GetVersionString();
        return base->GetApi(1)->CreateStatus(ORT_FAIL,
                                             ("grootv needs ONNX Runtime 1.17 or later, this is " + found).c_str());
    }
    return guard(*api, [&] { require(api->AddCustomOpDomain(options, domain(*api))); });
}
