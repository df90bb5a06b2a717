#include "ort_calls.h"

#include <atomic>
#include <mutex>
#include <stdexcept>

namespace hwprune::ort {

ArrayView view(Api api, const Value* value) {
  ArrayView array;
  TensorInfo* info = nullptr;
  check(GetTensorTypeAndShape(api, value, &info));
  size_t rank = 0;
  Status* status = GetTensorElementType(api, info, &array.element);
  if (status == nullptr) status = GetDimensionsCount(api, info, &rank);
  if (status == nullptr) {
    array.dims.resize(rank);
    status = GetDimensions(api, info, array.dims.data(), rank);
  }
  ReleaseTensorTypeAndShapeInfo(api, info);
  check(status);
  void* data = nullptr;
  check(GetTensorMutableData(api, const_cast<Value*>(value), &data));
  array.data = data;
  return array;
}

std::string NodeInfo::node_name() const {
  size_t size = 0;
  Status* status = KernelInfo_GetNodeName(api_, info_, nullptr, &size);
  if (status == nullptr && size > 1) {
    std::string name(size, '\0');
    status = KernelInfo_GetNodeName(api_, info_, name.data(), &size);
    if (status == nullptr) return name.substr(0, size - 1);
  }
  if (status != nullptr) ReleaseStatus(api_, status);
  return "";
}

// The interface does not tell a missing attribute from one of another type; so the others are tried.
bool NodeInfo::absent(Status* status, const char* name) const {
  if (status == nullptr) return false;
  ReleaseStatus(api_, status);
  size_t size = 0;
  float real = 0;
  int64_t integer = 0;
  const auto there = [this](Status* answer) {
    if (answer != nullptr) ReleaseStatus(api_, answer);
    return answer == nullptr;
  };
  if (there(KernelInfoGetAttributeArray_int64(api_, info_, name, nullptr, &size)) ||
      there(KernelInfoGetAttributeArray_float(api_, info_, name, nullptr, &size)) ||
      there(KernelInfoGetAttribute_int64(api_, info_, name, &integer)) ||
      there(KernelInfoGetAttribute_float(api_, info_, name, &real)) ||
      there(KernelInfoGetAttribute_string(api_, info_, name, nullptr, &size))) {
    throw std::runtime_error("attribute " + std::string(name) + " is of another type");
  }
  return true;
}

std::vector<int64_t> NodeInfo::integers(const char* name, std::vector<int64_t> otherwise) const {
  size_t size = 0;
  if (absent(KernelInfoGetAttributeArray_int64(api_, info_, name, nullptr, &size), name)) return otherwise;
  // A list of another type reads as an empty one.
  if (size == 0) throw std::runtime_error("attribute " + std::string(name) + " is empty or of another type");
  std::vector<int64_t> values(size);
  check(KernelInfoGetAttributeArray_int64(api_, info_, name, values.data(), &size));
  return values;
}

int64_t NodeInfo::integer(const char* name, int64_t otherwise) const {
  int64_t value = 0;
  return absent(KernelInfoGetAttribute_int64(api_, info_, name, &value), name) ? otherwise : value;
}

float NodeInfo::real(const char* name, float otherwise) const {
  float value = 0;
  return absent(KernelInfoGetAttribute_float(api_, info_, name, &value), name) ? otherwise : value;
}

ArrayView NodeInfo::constant(size_t input, const char* what) const {
  int is_constant = 0;
  const Value* value = nullptr;
  check(KernelInfoGetConstantInput_tensor(api_, info_, input, &is_constant, &value));
  if (!is_constant || value == nullptr) {
    throw std::runtime_error("input " + std::to_string(input) + " (" + what +
                             ") is not a constant initializer; without hwprune's kernels the file runs as it is");
  }
  return view(api_, value);
}

ArrayView Call::input(size_t i) const {
  const Value* value = nullptr;
  check(KernelContext_GetInput(api_, context_, i, &value));
  if (value == nullptr) throw std::runtime_error("input " + std::to_string(i) + " is missing");
  ArrayView array = view(api_, value);
  if (array.element != kFloat) throw std::runtime_error("input " + std::to_string(i) + " is not float32");
  return array;
}

float* Call::output(const std::vector<int64_t>& dims) const {
  Value* value = nullptr;
  check(KernelContext_GetOutput(api_, context_, 0, dims.data(), dims.size(), &value));
  void* data = nullptr;
  check(GetTensorMutableData(api_, value, &data));
  return static_cast<float*>(data);
}

namespace {

// No exception may cross the runtime's threads: the first one is kept and thrown by the caller.
struct Tasks {
  explicit Tasks(const std::function<void(size_t)>* each) : body(each) {}
  const std::function<void(size_t)>* body;
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::exception_ptr error;

  static void one(void* self, size_t i) {
    auto* tasks = static_cast<Tasks*>(self);
    if (tasks->failed.load(std::memory_order_relaxed)) return;
    try {
      (*tasks->body)(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(tasks->mutex);
      if (!tasks->error) tasks->error = std::current_exception();
      tasks->failed = true;
    }
  }
};

}  // namespace

// To hand a part of a layer to a second thread of the runtime's pool and to wait for it takes 35 to 50 microseconds
// (docs/latency.md), and more where the machine is busy: two threads save half of a layer's time.
constexpr double kLeastSharedNanoseconds = 100e3;

Parallel Call::parallel(int threads) const {
  Parallel parallel;
  parallel.threads = threads;
  parallel.least_ns = kLeastSharedNanoseconds;
  parallel.run = [api = api_, context = context_](size_t count, const std::function<void(size_t)>& body) {
    Tasks tasks(&body);
    // 0 batches: the runtime's own thread pool hands out one index after the other.
    check(KernelContext_ParallelFor(api, context, Tasks::one, count, 0, &tasks));
    if (tasks.error) std::rethrow_exception(tasks.error);
  };
  return parallel;
}

}  // namespace hwprune::ort
