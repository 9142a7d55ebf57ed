// The part of ONNX Runtime's C interface that a library of operators needs: ONNX Runtime's Python package comes without
// a header. The interface only ever grows at its end, so members of version 17 have the same places in all later
// ones; names and places are those of onnxruntime_c_api.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace grootv::onnxruntime {

struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtStatus;  // null: success
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;
struct OrtCustomOp;

enum OrtErrorCode : int { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum ElementType : int { FLOAT32 = 1, INT32 = 6 };
enum Characteristic : int { REQUIRED = 0, OPTIONAL = 1 };

constexpr uint32_t API_VERSION = 17;  // ONNX Runtime 1.17

struct OrtApi {
    OrtStatus* (*CreateStatus)(OrtErrorCode code, const char* message);
    void* other_1[25];
    OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** domain);
    OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);
    OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
    void* other_29[22];
    OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** data);
    void* other_52[9];
    OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* count);
    OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* sizes, size_t count);
    void* other_63[2];
    OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** info);
    void* other_66[19];
    OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo* info, const char* name, float* value);
    OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* value);
    OrtStatus* (*KernelInfoGetAttribute_string)(const OrtKernelInfo* info, const char* name, char* text, size_t* size);
    OrtStatus* (*KernelContext_GetInputCount)(const OrtKernelContext* context, size_t* count);
    void* other_89[1];
    OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** value);
    OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* sizes, size_t count,
                                          OrtValue** value);
    void* other_92[7];
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
    void* other_100[174];
    OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*task)(void* data, size_t index),
                                            size_t count, size_t batches, void* data);
};

static_assert(offsetof(OrtApi, AddCustomOpDomain) == 28 * sizeof(void*));
static_assert(offsetof(OrtApi, GetTensorMutableData) == 51 * sizeof(void*));
static_assert(offsetof(OrtApi, GetDimensions) == 62 * sizeof(void*));
static_assert(offsetof(OrtApi, GetTensorTypeAndShape) == 65 * sizeof(void*));
static_assert(offsetof(OrtApi, KernelInfoGetAttribute_float) == 85 * sizeof(void*));
static_assert(offsetof(OrtApi, KernelContext_GetOutput) == 91 * sizeof(void*));
static_assert(offsetof(OrtApi, ReleaseTensorTypeAndShapeInfo) == 99 * sizeof(void*));
static_assert(offsetof(OrtApi, KernelContext_ParallelFor) == 274 * sizeof(void*));

struct OrtApiBase {
    const OrtApi* (*GetApi)(uint32_t version);  // null if it is older than that
    const char* (*GetVersionString)();
};

// An operator as of version 16, the first one whose kernels return a status. ONNX Runtime calls the functions that the
// version has; those it does not call are null.
struct OrtCustomOp {
    uint32_t version;
    void* CreateKernel;
    const char* (*GetName)(const OrtCustomOp* op);
    const char* (*GetExecutionProviderType)(const OrtCustomOp* op);
    ElementType (*GetInputType)(const OrtCustomOp* op, size_t index);
    size_t (*GetInputTypeCount)(const OrtCustomOp* op);
    ElementType (*GetOutputType)(const OrtCustomOp* op, size_t index);
    size_t (*GetOutputTypeCount)(const OrtCustomOp* op);
    void* KernelCompute;
    void (*KernelDestroy)(void* kernel);
    Characteristic (*GetInputCharacteristic)(const OrtCustomOp* op, size_t index);
    Characteristic (*GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
    int (*GetInputMemoryType)(const OrtCustomOp* op, size_t index);
    void* GetVariadicInputMinArity;
    void* GetVariadicInputHomogeneity;
    void* GetVariadicOutputMinArity;
    void* GetVariadicOutputHomogeneity;
    OrtStatus* (*CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel);
    OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
};

}  // namespace grootv::onnxruntime
