// What ONNX Runtime sees: RegisterCustomOps and one OrtCustomOp per operator name; and the few
// functions of the library that the Python side calls.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <thread>

#include "export.h"
#include "node.h"

namespace hwprune {
namespace {

constexpr const char* kDomain = "hwprune";

// Set by the caller's thread for the next RegisterCustomOps on it.
thread_local bool select_all = true;
thread_local std::string selected;
thread_local int requested_threads = 0;

// An OrtCustomOp and what its callbacks need.
struct NamedOperator : ort::CustomOp {
  NamedOperator(const ort::CustomOp& callbacks, const Operator& which, ort::Api version, int thread_count)
      : ort::CustomOp(callbacks), op(which), name(which.name()), api(version), threads(thread_count) {}
  Operator op;
  std::string name;
  ort::Api api;
  int threads;
};

const NamedOperator& named(const ort::CustomOp* op) { return *static_cast<const NamedOperator*>(op); }

// -- living kernels ------------------------------------------------------------------------------

struct LivingKernel {
  const NamedOperator* op;
  std::string node_name;
  std::unique_ptr<Node> node;
  std::string describe() const { return "hwprune." + op->name + " '" + node_name + "'"; }
};

std::mutex living_mutex;

// Never destroyed: sessions may outlive the library's own static objects at exit.
std::set<const LivingKernel*>& living() {
  static auto* kernels = new std::set<const LivingKernel*>;
  return *kernels;
}

// -- callbacks -----------------------------------------------------------------------------------

ort::Status* create(const ort::CustomOp* self, ort::Api api, const ort::KernelInfo* raw, void** out) {
  const NamedOperator& op = named(self);
  auto kernel = std::make_unique<LivingKernel>();
  kernel->op = &op;
  return ort::as_status(
      api, ort::kInvalidGraph, [&] { return kernel->describe(); },
      [&] {
        const ort::NodeInfo info(api, raw);
        kernel->node_name = info.node_name();
        const bool convolution = op.op.kind == Kind::conv || op.op.kind == Kind::depthwise;
        kernel->node = (convolution ? make_conv_node : make_product_node)(op.op, info);
        const std::lock_guard<std::mutex> lock(living_mutex);
        living().insert(kernel.get());
        *out = kernel.release();
      });
}

ort::Status* compute(void* self, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const LivingKernel*>(self);
  const ort::Api api = kernel.op->api;
  return ort::as_status(
      api, ort::kInvalidArgument, [&] { return kernel.describe(); },
      [&] {
        const ort::Call call(api, context);
        kernel.node->run(call, call.parallel(kernel.op->threads));
      });
}

void destroy(void* self) {
  auto* kernel = static_cast<LivingKernel*>(self);
  {
    const std::lock_guard<std::mutex> lock(living_mutex);
    living().erase(kernel);
  }
  delete kernel;
}

int input_type(const ort::CustomOp* self, size_t i) {
  const Operator& op = named(self).op;
  // The others have a type that the name alone does not tell, or are checked with a better message.
  return i == 0 || (op.residual && i == op.residual_input()) ? ort::kFloat : ort::kUndefined;
}

int one(const ort::CustomOp*) { return 1; }
int zero(const ort::CustomOp*, size_t) { return 0; }

ort::CustomOp callbacks() {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const ort::CustomOp* self) { return named(self).name.c_str(); };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const ort::CustomOp* self) { return named(self).op.inputs(); };
  op.GetOutputType = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
  op.KernelDestroy = destroy;
  op.GetInputCharacteristic = zero;  // required
  op.GetOutputCharacteristic = zero;
  op.GetInputMemoryType = zero;
  op.GetVariadicInputMinArity = one;
  op.GetVariadicInputHomogeneity = one;
  op.GetVariadicOutputMinArity = one;
  op.GetVariadicOutputHomogeneity = one;
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.GetStartVersion = one;
  op.GetEndVersion = one;
  return op;
}

// -- registration --------------------------------------------------------------------------------

std::vector<Operator> selection() {
  std::vector<Operator> operators;
  if (select_all) {
    // Layers that are stored dense are hardly pruned: the runtime's own operators are faster there, but
    // for depthwise ones, where nothing is gained by the layout that the runtime brings its inputs to.
    for (const Operator& op : all_operators()) {
      if (op.codec != Codec::dense || op.kind == Kind::depthwise) operators.push_back(op);
    }
    return operators;
  }
  std::stringstream names(selected);
  for (std::string name; std::getline(names, name, ',');) {
    if (const auto op = parse_operator(name)) operators.push_back(*op);
  }
  return operators;
}

int thread_count() {
  if (requested_threads > 0) return requested_threads;
  const unsigned processors = std::thread::hardware_concurrency();
  return processors == 0 ? 1 : static_cast<int>(processors);
}

// The domain with these operators. A session keeps pointers to it, and nobody says when the last one
// is gone: so domains stay for good, and equal ones are shared.
ort::CustomOpDomain* domain_of(ort::Api api, const std::vector<Operator>& operators, int threads) {
  static std::mutex mutex;
  static auto* domains = new std::map<std::pair<ort::Api, std::string>, ort::CustomOpDomain*>;
  static auto* objects = new std::vector<std::unique_ptr<NamedOperator>>;
  std::string key = std::to_string(threads);
  for (const Operator& op : operators) key += "," + op.name();
  const std::lock_guard<std::mutex> lock(mutex);
  ort::CustomOpDomain*& domain = (*domains)[{api, key}];
  if (domain != nullptr) return domain;
  ort::CustomOpDomain* fresh = nullptr;
  ort::check(ort::CreateCustomOpDomain(api, kDomain, &fresh));
  for (const Operator& op : operators) {
    objects->push_back(std::make_unique<NamedOperator>(callbacks(), op, api, threads));
    ort::check(ort::CustomOpDomain_Add(api, fresh, objects->back().get()));
  }
  return domain = fresh;
}

// Without a status there is no way to return an error that the runtime would not take for success.
[[noreturn]] void give_up(const char* reason) {
  std::fprintf(stderr, "hwprune: %s; refusing to go on as if kernels were registered\n", reason);
  std::abort();
}

ort::Status* refuse_version(const ort::ApiBase* base) {
  // The functions that make a status are those of every version since the first.
  const ort::Api first = base->GetApi(1);
  if (first == nullptr) give_up("this ONNX Runtime offers neither C API version 17 nor version 1");
  const char* version = base->GetVersionString ? base->GetVersionString() : nullptr;
  const std::string message = std::string("hwprune: onnxruntime ") + (version ? version : "of unknown version") +
                              " refuses C API version " + std::to_string(ort::kApiVersion) +
                              "; hwprune's kernels need onnxruntime " + ort::kOldestRuntime +
                              " or newer. Without them the file runs as it is";
  return ort::CreateStatus(first, ort::kFail, message.c_str());
}

}  // namespace
}  // namespace hwprune

using namespace hwprune;

HWPRUNE_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  if (base == nullptr || base->GetApi == nullptr) give_up("RegisterCustomOps was called without an OrtApiBase");
  const ort::Api api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) return refuse_version(base);
  return ort::as_status(
      api, ort::kFail, [] { return std::string("hwprune: registering kernels"); },
      [&] {
        const std::vector<Operator> operators = selection();
        select_all = true;
        // A domain without operators would hide the functions of the file for nothing.
        if (operators.empty()) return;
        ort::check(ort::AddCustomOpDomain(api, options, domain_of(api, operators, thread_count())));
      });
}

// The next RegisterCustomOps on this thread registers only these names; for null (the default) all but
// those of dense layers that are not depthwise. Names that are not known are passed over: their nodes run the file's functions.
HWPRUNE_EXPORT void hwprune_select(const char* names) {
  select_all = names == nullptr;
  selected = names == nullptr ? "" : names;
}

// How many threads the sessions have that register on this thread from now on; 0: not known.
HWPRUNE_EXPORT void hwprune_threads(int threads) { requested_threads = threads; }

// Whether a node of this name would run a kernel.
HWPRUNE_EXPORT int hwprune_knows(const char* name) { return parse_operator(name).has_value(); }

HWPRUNE_EXPORT size_t hwprune_resident_bytes() {
  const std::lock_guard<std::mutex> lock(living_mutex);
  size_t bytes = 0;
  for (const LivingKernel* kernel : living()) bytes += kernel->node->resident_bytes();
  return bytes;
}

HWPRUNE_EXPORT const char* hwprune_simd() { return simd_name(); }

HWPRUNE_EXPORT int hwprune_abi_version() { return static_cast<int>(ort::kApiVersion); }
