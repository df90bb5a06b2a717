// The part of ONNX Runtime's C interface that hwprune uses, declared by hand so that building needs no
// headers of it. OrtApi is a struct of function pointers to which versions only ever append, so a
// function is its index: those of version 17 (onnxruntime 1.17) hold for every later one.
// Names are those of onnxruntime_c_api.h without the prefix Ort.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hwprune::ort {

constexpr uint32_t kApiVersion = 17;
constexpr const char* kOldestRuntime = "1.17";

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct Value;
struct TensorInfo;  // OrtTensorTypeAndShapeInfo

using Function = void (*)();
using Api = const Function*;  // const OrtApi*

struct ApiBase {
  Api (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtErrorCode
constexpr int kFail = 1;
constexpr int kInvalidArgument = 2;
constexpr int kInvalidGraph = 10;

// ONNXTensorElementDataType: the numbers of onnx.TensorProto.DataType
constexpr int kUndefined = 0;
constexpr int kFloat = 1;
constexpr int kUint8 = 2;
constexpr int kInt8 = 3;
constexpr int kUint16 = 4;
constexpr int kFloat16 = 10;

template <typename Signature>
struct Slot;

template <typename Result, typename... Arguments>
struct Slot<Result(Arguments...)> {
  int index;
  Result operator()(Api api, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(api[index])(arguments...);
  }
};

inline constexpr Slot<Status*(int, const char*)> CreateStatus{0};
inline constexpr Slot<Status*(const char*, CustomOpDomain**)> CreateCustomOpDomain{26};
inline constexpr Slot<Status*(CustomOpDomain*, const struct CustomOp*)> CustomOpDomain_Add{27};
inline constexpr Slot<Status*(SessionOptions*, CustomOpDomain*)> AddCustomOpDomain{28};
inline constexpr Slot<Status*(Value*, void**)> GetTensorMutableData{51};
inline constexpr Slot<Status*(const TensorInfo*, int*)> GetTensorElementType{60};
inline constexpr Slot<Status*(const TensorInfo*, size_t*)> GetDimensionsCount{61};
inline constexpr Slot<Status*(const TensorInfo*, int64_t*, size_t)> GetDimensions{62};
inline constexpr Slot<Status*(const Value*, TensorInfo**)> GetTensorTypeAndShape{65};
inline constexpr Slot<Status*(const KernelInfo*, const char*, float*)> KernelInfoGetAttribute_float{85};
inline constexpr Slot<Status*(const KernelInfo*, const char*, int64_t*)> KernelInfoGetAttribute_int64{86};
inline constexpr Slot<Status*(const KernelInfo*, const char*, char*, size_t*)> KernelInfoGetAttribute_string{87};
inline constexpr Slot<Status*(const KernelContext*, size_t, const Value**)> KernelContext_GetInput{90};
inline constexpr Slot<Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)> KernelContext_GetOutput{91};
inline constexpr Slot<void(Status*)> ReleaseStatus{93};
inline constexpr Slot<void(TensorInfo*)> ReleaseTensorTypeAndShapeInfo{99};
inline constexpr Slot<void(CustomOpDomain*)> ReleaseCustomOpDomain{101};
inline constexpr Slot<Status*(const KernelInfo*, const char*, float*, size_t*)> KernelInfoGetAttributeArray_float{162};
inline constexpr Slot<Status*(const KernelInfo*, const char*, int64_t*, size_t*)> KernelInfoGetAttributeArray_int64{163};
inline constexpr Slot<Status*(const KernelInfo*, char*, size_t*)> KernelInfo_GetNodeName{244};
inline constexpr Slot<Status*(const KernelInfo*, size_t, int*, const Value**)> KernelInfoGetConstantInput_tensor{249};
inline constexpr Slot<Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>
    KernelContext_ParallelFor{274};

// OrtCustomOp as of version 17. Later versions append members, which a runtime reads only where
// `version` says that they are there.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, Api, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const CustomOp*, size_t);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, Api, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShape)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
};

}  // namespace hwprune::ort
