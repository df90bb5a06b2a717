// Gemm, MatMul and Linear: products with a constant matrix, shapes as in ONNX.

#include <algorithm>
#include <stdexcept>

#include "node.h"

namespace hwprune {
namespace {

[[noreturn]] void refuse(const std::string& reason) { throw std::runtime_error(reason); }

class ProductNode : public Node {
 public:
  ProductNode(const Operator& op, const ort::NodeInfo& info) : op_(op) {
    const PackedWeight packed = read_weight(op, info);
    const std::vector<int64_t>& shape = packed.shape;
    const size_t rank = shape.size();
    if (op.kind != Kind::matmul && rank != 2) refuse("shape " + text(shape) + " is not that of a matrix");
    // Kernels want [out, in]; MatMul's weight is [..., in, out], or [in] with an output of no axis.
    const bool as_stored = op.kind == Kind::linear || (op.kind == Kind::gemm && info.integer("transB", 0) != 0);
    vector_weight_ = rank == 1;
    SparseMatrix weights = decode(packed, rank < 2 ? 0 : rank - 1);
    out_ = rank < 2 ? 1 : as_stored ? shape[0] : shape[rank - 1];
    in_ = rank < 2 ? shape[0] : as_stored ? shape[1] : shape[rank - 2];
    if (rank > 2) weight_batch_.assign(shape.begin(), shape.end() - 2);
    Epilogue epilogue;
    epilogue.activation = op.activation;
    if (op.activation == Activation::leaky_relu) epilogue.alpha = info.real("alpha", 0.01f);
    if (op.bias) read_bias(info, epilogue);
    const int64_t matrices = product(weight_batch_, 0, weight_batch_.size());
    for (int64_t i = 0; i < matrices; ++i) {
      SparseMatrix one = matrices == 1 ? std::move(weights) : row_slice(weights, i * in_, in_);
      if (!as_stored && rank >= 2) one = transposed(one);
      kernels_.push_back(make_gemm(std::move(one), epilogue));
    }
  }

  void run(const ort::Call& call, const Parallel& parallel) const override {
    const ArrayView x = call.input(0);
    const auto* data = static_cast<const float*>(x.data);
    if (x.dims.empty() || x.dims.back() != in_ || (op_.kind == Kind::gemm && x.dims.size() != 2)) {
      refuse("input of shape " + text(x.dims) + ", expected " + std::to_string(in_) + " features");
    }
    // As numpy's matmul: a vector becomes a matrix of one row, which the output does not have.
    const bool vector_input = x.dims.size() == 1;
    std::vector<int64_t> dims(x.dims.begin(), x.dims.end() - 1);
    const int64_t rows = vector_input ? 1 : dims.back();
    std::vector<int64_t> x_batch(dims.begin(), vector_input ? dims.begin() : dims.end() - 1);
    const std::vector<int64_t> batch = broadcast(x_batch);
    dims = batch;
    if (!vector_input) dims.push_back(rows);
    if (!vector_weight_) dims.push_back(out_);
    const int64_t total = product(dims, 0, dims.size());

    std::vector<float> sum;  // what is added and is not simply one array of the output's shape
    const float* residual = nullptr;
    if (op_.residual) {
      const ArrayView given = call.input(op_.residual_input());
      if (given.dims == dims && wide_bias_.empty()) {
        residual = static_cast<const float*>(given.data);
      } else {
        sum.assign(static_cast<size_t>(total), 0.0f);
        add_broadcast(sum.data(), dims, static_cast<const float*>(given.data), given.dims, "residual");
      }
    }
    if (!wide_bias_.empty()) {
      sum.resize(static_cast<size_t>(total), 0.0f);
      add_broadcast(sum.data(), dims, wide_bias_.data(), bias_dims_, "bias");
    }
    if (!sum.empty()) residual = sum.data();
    float* y = call.output(dims);
    if (total == 0) return;
    if (kernels_.size() == 1) {
      kernels_[0]->run(data, total / out_, y, residual, parallel);
      return;
    }
    for (int64_t i = 0, count = product(batch, 0, batch.size()); i < count; ++i) {
      const float* part = data + source(i, batch, x_batch) * rows * in_;
      const int64_t at = i * rows * out_;
      kernels_[static_cast<size_t>(source(i, batch, weight_batch_))]->run(
          part, rows, y + at, residual ? residual + at : nullptr, parallel);
    }
  }

  size_t resident_bytes() const override {
    size_t bytes = wide_bias_.size() * sizeof(float);
    for (const auto& kernel : kernels_) bytes += kernel->resident_bytes();
    return bytes;
  }

 private:
  // A bias per output feature goes into the kernels, any other is broadcast at each run.
  void read_bias(const ort::NodeInfo& info, Epilogue& epilogue) {
    const ArrayView array = info.constant(op_.bias_input(), "bias");
    std::vector<float> bias = as_floats(array, "bias");
    const size_t rank = array.dims.size();
    const size_t limit = op_.kind == Kind::gemm ? 2 : SIZE_MAX;
    if (rank > limit) refuse("bias of shape " + text(array.dims));
    const bool one_row = rank <= 1 || (rank == 2 && array.dims[0] == 1);
    const int64_t last = rank == 0 ? 1 : array.dims.back();
    // A leading axis of one would add an axis to the output of a vector.
    const bool plain = rank <= 1 || op_.kind == Kind::gemm;
    if (one_row && plain && !vector_weight_ && (last == out_ || last == 1)) {
      if (last == 1) bias.assign(static_cast<size_t>(out_), bias[0]);
      epilogue.bias = std::move(bias);
      return;
    }
    if (bias.empty()) refuse("bias of shape " + text(array.dims));
    wide_bias_ = std::move(bias);
    bias_dims_ = array.dims;
  }

  std::vector<int64_t> broadcast(const std::vector<int64_t>& x_batch) const {
    const size_t rank = std::max(x_batch.size(), weight_batch_.size());
    std::vector<int64_t> result(rank, 1);
    for (size_t back = 1; back <= rank; ++back) {
      const int64_t a = back <= x_batch.size() ? x_batch[x_batch.size() - back] : 1;
      const int64_t b = back <= weight_batch_.size() ? weight_batch_[weight_batch_.size() - back] : 1;
      if (a != b && a != 1 && b != 1) refuse("batches " + text(x_batch) + " and " + text(weight_batch_));
      result[rank - back] = a == 1 ? b : a;
    }
    return result;
  }

  // The matrix that number `i` of the broadcast `batch` takes from an operand with batch axes `own`.
  static int64_t source(int64_t i, const std::vector<int64_t>& batch, const std::vector<int64_t>& own) {
    int64_t result = 0, step = 1;
    for (size_t back = 1; back <= own.size(); ++back) {
      const int64_t extent = batch[batch.size() - back], mine = own[own.size() - back];
      if (mine != 1) result += i % extent * step;
      i /= extent;
      step *= mine;
    }
    return result;
  }

  Operator op_;
  int64_t in_ = 0, out_ = 0;
  bool vector_weight_ = false;
  std::vector<int64_t> weight_batch_;
  std::vector<float> wide_bias_;
  std::vector<int64_t> bias_dims_;
  std::vector<std::unique_ptr<GemmKernel>> kernels_;
};

}  // namespace

std::unique_ptr<Node> make_product_node(const Operator& op, const ort::NodeInfo& info) {
  return std::make_unique<ProductNode>(op, info);
}

}  // namespace hwprune
