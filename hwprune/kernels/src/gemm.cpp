// Linear layers: a pointwise convolution over a map of one position, with the rows of x as images.
#include <memory>
#include <stdexcept>
#include <utility>

#include "conv.h"

namespace hwprune {
namespace {

ConvSpec pointwise(const SparseMatrix& weights) {
  ConvSpec spec;
  spec.in_channels = weights.columns;
  spec.out_channels = weights.rows;
  spec.kernel = spec.strides = spec.dilations = {1};
  spec.pads = {0, 0};
  return spec;
}

class SparseGemm final : public GemmKernel {
 public:
  SparseGemm(SparseMatrix weights, Epilogue epilogue) : conv_(pointwise(weights), std::move(weights), std::move(epilogue)) {}

  size_t resident_bytes() const override { return conv_.resident_bytes(); }

  void run(const float* x, int64_t rows_x, float* y, const float* residual, const Parallel& parallel) const override {
    const int64_t spatial[] = {1};
    conv_.run(x, rows_x, spatial, y, residual, parallel);
  }

 private:
  SparseConv conv_;
};

}  // namespace

std::unique_ptr<GemmKernel> make_gemm(SparseMatrix weights, Epilogue epilogue) {
  return std::make_unique<SparseGemm>(std::move(weights), std::move(epilogue));
}

}  // namespace hwprune
