// The interface between reading a model (operator registration, decoding of packed weights)
// and computing with it. Nothing in this header knows about ONNX Runtime, files or SIMD.
//
// Layouts: every tensor is dense, row-major float32. Activations of a convolution are
// [batch, channels, spatial...] ("NCHW" for two spatial axes), those of a linear layer [rows, features].
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace hwprune {

enum class Activation { none, relu, relu6, hard_swish, silu, leaky_relu };

// Weights in compressed sparse rows. A weight that is not stored is an exact zero and takes no part in
// the computation: an infinity in the activations is only met by stored weights. A stored 0.0 is a weight.
struct SparseMatrix {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<uint32_t> row_start;  // rows + 1 entries, first 0, last the number of nonzeros
  std::vector<uint32_t> column;     // per nonzero, ascending inside a row, below `columns`
  std::vector<float> value;         // per nonzero, scale or codebook already applied
};

// What follows the linear part: y = activation(linear + bias[row] + residual).
struct Epilogue {
  std::vector<float> bias;  // empty, or one per row of the weight matrix
  Activation activation = Activation::none;
  float alpha = 0.01f;  // slope of leaky_relu for negative inputs
};

// A convolution over one, two or three spatial axes. All vectors have one entry per axis, but `pads`
// has two as in ONNX: the paddings at the begin of every axis, then those at the end of every axis.
struct ConvSpec {
  int64_t in_channels = 0;
  int64_t out_channels = 0;
  int64_t group = 1;
  std::vector<int64_t> kernel;
  std::vector<int64_t> strides;
  std::vector<int64_t> dilations;
  std::vector<int64_t> pads;
};

// Runs body(i) for every i in [0, count), perhaps on several threads, and returns when all are done.
// `threads` is how many may run at once; with threads <= 1 or an empty `run` the kernels loop themselves, and so
// they do with work that is estimated to take one thread less than `least_ns`: handing it out would take longer.
struct Parallel {
  int threads = 1;
  double least_ns = 0;
  std::function<void(size_t count, const std::function<void(size_t)>& body)> run;
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  // Bytes held for the weights between runs: packed weights, bias, cached plans of input shapes.
  virtual size_t resident_bytes() const = 0;
};

class ConvKernel : public Kernel {
 public:
  // x [batch, in_channels, spatial...], y [batch, out_channels, out_spatial...]; `residual` has the
  // shape of y or is null, and must not overlap y: edges of y are computed twice. Any output extent may be zero. Thread-safe: several
  // runs of one kernel at once are allowed.
  virtual void run(const float* x, int64_t batch, const int64_t* spatial, float* y,
                   const float* residual, const Parallel& parallel) const = 0;
};

class GemmKernel : public Kernel {
 public:
  // y [rows_x, out] = activation(x [rows_x, in] * W^T + bias + residual) with W the matrix [out, in].
  // Thread-safe as above.
  virtual void run(const float* x, int64_t rows_x, float* y, const float* residual,
                   const Parallel& parallel) const = 0;
};

// The weight matrix has out_channels rows and in_channels / group * prod(kernel) columns, a column
// being the position in the flattened [in_channels / group, kernel...] block of one output channel.
// Throws std::invalid_argument when specification, matrix and epilogue do not fit one another.
std::unique_ptr<ConvKernel> make_conv(const ConvSpec& spec, SparseMatrix weights, Epilogue epilogue);
std::unique_ptr<GemmKernel> make_gemm(SparseMatrix weights, Epilogue epilogue);

// The instruction set in use: "avx512", "avx2", "neon" or "scalar". The environment variable
// HWPRUNE_SIMD with one of these names lowers it (never raises it); read once, at the first call.
const char* simd_name();

// Output extents for input extents `spatial`: one number per spatial axis, never negative.
void output_shape(const ConvSpec& spec, const int64_t* spatial, int64_t* out);

}  // namespace hwprune
