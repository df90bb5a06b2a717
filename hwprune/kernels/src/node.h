// A node of the graph: its weight decoded, its kernel made, its inputs checked at every call.
#pragma once

#include <memory>

#include "kernel_api.h"
#include "operator_name.h"
#include "ort_calls.h"

namespace hwprune {

class Node {
 public:
  virtual ~Node() = default;
  virtual void run(const ort::Call& call, const Parallel& parallel) const = 0;
  virtual size_t resident_bytes() const = 0;
};

// Throws std::exception for whatever the node's attributes and constants get wrong.
std::unique_ptr<Node> make_conv_node(const Operator& op, const ort::NodeInfo& info);
// Gemm, MatMul and Linear.
std::unique_ptr<Node> make_product_node(const Operator& op, const ort::NodeInfo& info);

// -- shared by both ------------------------------------------------------------------------------

PackedWeight read_weight(const Operator& op, const ort::NodeInfo& info);

std::string text(const std::vector<int64_t>& dims);
int64_t product(const std::vector<int64_t>& dims, size_t first, size_t last);

// Adds `source` to `target` as ONNX's Add does; `dims` must broadcast to `target_dims`.
void add_broadcast(float* target, const std::vector<int64_t>& target_dims, const float* source,
                   const std::vector<int64_t>& dims, const char* what);

// A convolution over any number of axes by its definition: for those that make_conv does not know.
// output_shape goes with make_conv; this one is for any number of axes too.
std::vector<int64_t> output_extents(const ConvSpec& spec, const int64_t* spatial);
std::unique_ptr<ConvKernel> make_any_conv(const ConvSpec& spec, SparseMatrix weights, Epilogue epilogue);
float activate(float value, const Epilogue& epilogue);

}  // namespace hwprune
