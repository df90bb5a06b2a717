// Convolution over any number of axes, by its definition. ONNX Runtime runs such nodes, so they have to
// be right here too; nothing was done to make them fast.

#include <algorithm>
#include <cmath>

#include "node.h"

namespace hwprune {
namespace {

class AnyConv : public ConvKernel {
 public:
  AnyConv(const ConvSpec& spec, SparseMatrix weights, Epilogue epilogue)
      : spec_(spec), weights_(std::move(weights)), epilogue_(std::move(epilogue)) {}

  size_t resident_bytes() const override {
    return weights_.row_start.size() * 4 + weights_.column.size() * 8 + epilogue_.bias.size() * 4;
  }

  void run(const float* x, int64_t batch, const int64_t* spatial, float* y, const float* residual,
           const Parallel&) const override {
    const size_t axes = spec_.kernel.size();
    const std::vector<int64_t> out = output_extents(spec_, spatial);
    const int64_t out_count = product(out, 0, axes);
    const int64_t in_count = product(std::vector<int64_t>(spatial, spatial + axes), 0, axes);
    const int64_t in_group = spec_.in_channels / spec_.group, out_group = spec_.out_channels / spec_.group;
    std::vector<int64_t> at(axes);
    for (int64_t i = 0, total = batch * spec_.out_channels * out_count; i < total; ++i) {
      const int64_t channel = i / out_count % spec_.out_channels;
      const int64_t image = i / out_count / spec_.out_channels;
      int64_t rest = i % out_count;
      for (size_t axis = axes; axis-- > 0; rest /= out[axis]) at[axis] = rest % out[axis];
      const float* input = x + (image * spec_.in_channels + channel / out_group * in_group) * in_count;
      double sum = 0;
      for (uint32_t n = weights_.row_start[channel]; n < weights_.row_start[channel + 1]; ++n) {
        const int64_t place = offset(weights_.column[n], at, spatial);
        if (place >= 0) sum += double{weights_.value[n]} * double{input[place]};
      }
      if (!epilogue_.bias.empty()) sum += epilogue_.bias[channel];
      if (residual != nullptr) sum += residual[i];
      y[i] = activate(static_cast<float>(sum), epilogue_);
    }
  }

 private:
  // Where the weight in `column` meets the input of its group, or -1 in the padding.
  int64_t offset(int64_t column, const std::vector<int64_t>& at, const int64_t* spatial) const {
    int64_t place = 0, step = 1;
    for (size_t axis = spec_.kernel.size(); axis-- > 0;) {
      const int64_t tap = column % spec_.kernel[axis];
      column /= spec_.kernel[axis];
      const int64_t position = at[axis] * spec_.strides[axis] - spec_.pads[axis] + tap * spec_.dilations[axis];
      if (position < 0 || position >= spatial[axis]) return -1;
      place += position * step;
      step *= spatial[axis];
    }
    return place + column * step;
  }

  ConvSpec spec_;
  SparseMatrix weights_;
  Epilogue epilogue_;
};

}  // namespace

std::vector<int64_t> output_extents(const ConvSpec& spec, const int64_t* spatial) {
  std::vector<int64_t> out;
  for (size_t i = 0, axes = spec.kernel.size(); i < axes; ++i) {
    const int64_t reach = (spec.kernel[i] - 1) * spec.dilations[i];
    const int64_t last = spatial[i] + spec.pads[i] + spec.pads[i + axes] - 1 - reach;
    out.push_back(last < 0 ? 0 : last / spec.strides[i] + 1);
  }
  return out;
}

float activate(float value, const Epilogue& epilogue) {
  switch (epilogue.activation) {
    case Activation::none:
      return value;
    case Activation::relu:
      return std::max(value, 0.0f);
    case Activation::relu6:
      return std::min(std::max(value, 0.0f), 6.0f);
    case Activation::hard_swish:
      return value * std::min(std::max(value / 6.0f + 0.5f, 0.0f), 1.0f);
    case Activation::silu:
      return value / (1.0f + std::exp(-value));
    case Activation::leaky_relu:
      return value < 0 ? epilogue.alpha * value : value;
  }
  return value;
}

std::unique_ptr<ConvKernel> make_any_conv(const ConvSpec& spec, SparseMatrix weights, Epilogue epilogue) {
  return std::make_unique<AnyConv>(spec, std::move(weights), std::move(epilogue));
}

}  // namespace hwprune
