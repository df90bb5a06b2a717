// Conv: attributes and shapes as in ONNX.

#include <cstring>
#include <stdexcept>

#include "node.h"

namespace hwprune {
namespace {

// Beyond this an extent is a mistake; sums and products of two extents do not overflow.
constexpr int64_t kMaxExtent = int64_t{1} << 31;
// Of an output: beyond it not even sizes in bytes can be relied on.
constexpr double kMaxElements = 1e12;

[[noreturn]] void refuse(const std::string& reason) { throw std::runtime_error(reason); }

std::vector<int64_t> attribute(const ort::NodeInfo& info, const char* name, size_t size, int64_t otherwise) {
  std::vector<int64_t> values = info.integers(name, {});
  if (values.empty()) values.assign(size, otherwise);
  if (values.size() != size) refuse(std::string(name) + " " + text(values) + " has not " + std::to_string(size) + " entries");
  for (const int64_t value : values) {
    if (value < otherwise || value > kMaxExtent) refuse(std::string(name) + " " + text(values) + " is out of range");
  }
  return values;
}

class ConvNode : public Node {
 public:
  ConvNode(const Operator& op, const ort::NodeInfo& info) : op_(op) {
    const PackedWeight packed = read_weight(op, info);
    SparseMatrix weights = decode(packed);
    const std::vector<int64_t>& shape = packed.shape;
    if (shape.size() < 2) refuse("shape " + text(shape) + " is not that of a convolution");
    const size_t axes = shape.size() - 2;
    spec_.group = info.integer("group", 1);
    if (spec_.group < 1 || shape[0] % spec_.group != 0) {
      refuse(std::to_string(shape[0]) + " output channels in " + std::to_string(spec_.group) + " groups");
    }
    spec_.out_channels = shape[0];
    // Both factors are below 2^31.
    spec_.in_channels = shape[1] * spec_.group;
    spec_.kernel.assign(shape.begin() + 2, shape.end());
    spec_.strides = attribute(info, "strides", axes, 1);
    spec_.dilations = attribute(info, "dilations", axes, 1);
    spec_.pads = attribute(info, "pads", 2 * axes, 0);
    for (size_t i = 0; i < axes; ++i) {
      if (spec_.kernel[i] * spec_.dilations[i] > kMaxExtent) refuse("dilations are out of range");
    }
    Epilogue epilogue;
    epilogue.activation = op.activation;
    if (op.activation == Activation::leaky_relu) epilogue.alpha = info.real("alpha", 0.01f);
    if (op.bias) {
      const ArrayView bias = info.constant(op.bias_input(), "bias");
      if (bias.dims != std::vector<int64_t>{shape[0]}) refuse("bias of shape " + text(bias.dims));
      epilogue.bias = as_floats(bias, "bias");
    }
    const bool known = axes >= 1 && axes <= 3;
    kernel_ = (known ? make_conv : make_any_conv)(spec_, std::move(weights), std::move(epilogue));
  }

  void run(const ort::Call& call, const Parallel& parallel) const override {
    const ArrayView x = call.input(0);
    const size_t axes = spec_.kernel.size();
    if (x.dims.size() != axes + 2 || x.dims[1] != spec_.in_channels) {
      refuse("input of shape " + text(x.dims) + ", expected " + std::to_string(spec_.in_channels) +
             " channels and " + std::to_string(axes) + " spatial axes");
    }
    std::vector<int64_t> dims{x.dims[0], spec_.out_channels};
    for (const int64_t extent : output_extents(spec_, x.dims.data() + 2)) dims.push_back(extent);
    double elements = 1;
    for (const int64_t extent : dims) elements *= static_cast<double>(extent);
    if (elements > kMaxElements) {
      refuse("input of shape " + text(x.dims) + " with pads " + text(spec_.pads) + " makes an output of shape " + text(dims));
    }
    const float* residual = nullptr;
    std::vector<float> expanded;
    if (op_.residual) {
      const ArrayView given = call.input(op_.residual_input());
      residual = static_cast<const float*>(given.data);
      if (given.dims != dims) {
        expanded.assign(static_cast<size_t>(product(dims, 0, dims.size())), 0.0f);
        add_broadcast(expanded.data(), dims, residual, given.dims, "residual");
        residual = expanded.data();
      }
    }
    float* y = call.output(dims);
    if (product(dims, 0, dims.size()) == 0) return;
    kernel_->run(static_cast<const float*>(x.data), x.dims[0], x.dims.data() + 2, y, residual, parallel);
  }

  size_t resident_bytes() const override { return kernel_->resident_bytes(); }

 private:
  Operator op_;
  ConvSpec spec_;
  std::unique_ptr<ConvKernel> kernel_;
};

}  // namespace

std::unique_ptr<Node> make_conv_node(const Operator& op, const ort::NodeInfo& info) {
  return std::make_unique<ConvNode>(op, info);
}

}  // namespace hwprune
