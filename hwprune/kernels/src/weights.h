// The nonzeros as the kernels keep them: values, and columns in the narrowest integers that hold them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel_api.h"

namespace hwprune {

class Weights {
 public:
  // Throws std::invalid_argument for a matrix that contradicts itself.
  explicit Weights(SparseMatrix matrix);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  size_t nonzeros() const { return values_.size(); }
  const float* values() const { return values_.data(); }
  const std::vector<uint32_t>& row_start() const { return row_start_; }
  uint32_t column(size_t i) const { return wide_.empty() ? narrow_[i] : wide_[i]; }
  // All columns as 16-bit numbers, or null when the matrix is too wide for them.
  const uint16_t* narrow_columns() const { return wide_.empty() ? narrow_.data() : nullptr; }
  size_t resident_bytes() const;

 private:
  int64_t rows_, columns_;
  std::vector<uint32_t> row_start_;
  std::vector<float> values_;
  std::vector<uint16_t> narrow_;
  std::vector<uint32_t> wide_;
};

}  // namespace hwprune
