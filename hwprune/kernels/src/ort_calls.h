// ONNX Runtime's objects behind small C++ classes: statuses become exceptions and back.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "decode.h"
#include "kernel_api.h"
#include "ort_abi.h"

namespace hwprune::ort {

// A status that the runtime returned, on its way back to it.
class StatusException : public std::exception {
 public:
  explicit StatusException(Status* status) : status_(status) {}
  Status* status() const { return status_; }
  const char* what() const noexcept override { return "a status of ONNX Runtime"; }

 private:
  Status* status_;
};

inline void check(Status* status) {
  if (status != nullptr) throw StatusException(status);
}

// Runs `body`; whatever it throws becomes a status whose message begins with `name()`.
template <typename Name, typename Body>
Status* as_status(Api api, int code, Name name, Body body) noexcept {
  try {
    try {
      body();
      return nullptr;
    } catch (const StatusException& error) {
      return error.status();
    } catch (const std::exception& error) {
      return CreateStatus(api, code, (name() + ": " + error.what()).c_str());
    }
  } catch (...) {
    return CreateStatus(api, kFail, "hwprune: an error that could not be described");
  }
}

// What a kernel learns of its node when the session is made.
class NodeInfo {
 public:
  NodeInfo(Api api, const KernelInfo* info) : api_(api), info_(info) {}
  std::string node_name() const;
  // Attributes; the default where the node has none of that name.
  std::vector<int64_t> integers(const char* name, std::vector<int64_t> otherwise) const;
  int64_t integer(const char* name, int64_t otherwise) const;
  float real(const char* name, float otherwise) const;
  // An input that is a constant initializer. Throws std::runtime_error for any other; `what` names it.
  ArrayView constant(size_t input, const char* what) const;

 private:
  bool absent(Status* status, const char* name) const;
  Api api_;
  const KernelInfo* info_;
};

// One call of a kernel.
class Call {
 public:
  Call(Api api, KernelContext* context) : api_(api), context_(context) {}
  ArrayView input(size_t i) const;
  float* output(const std::vector<int64_t>& dims) const;
  Parallel parallel(int threads) const;

 private:
  Api api_;
  KernelContext* context_;
};

ArrayView view(Api api, const Value* value);

}  // namespace hwprune::ort
