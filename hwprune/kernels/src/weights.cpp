#include "weights.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace hwprune {

Weights::Weights(SparseMatrix matrix) : rows_(matrix.rows), columns_(matrix.columns) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("sparse matrix: ") + what);
  };
  require(rows_ >= 0 && columns_ >= 0 && columns_ <= UINT32_MAX, "extents out of range");
  require(matrix.row_start.size() == static_cast<size_t>(rows_) + 1, "row_start does not have rows + 1 entries");
  require(matrix.column.size() == matrix.value.size(), "as many columns as values are needed");
  require(matrix.row_start.front() == 0 && matrix.row_start.back() == matrix.value.size(),
          "row_start does not span the nonzeros");
  for (size_t row = 0; row < static_cast<size_t>(rows_); ++row) {
    const uint32_t begin = matrix.row_start[row], end = matrix.row_start[row + 1];
    require(begin <= end && end <= matrix.value.size(), "row_start must not fall");
    for (uint32_t i = begin; i < end; ++i) {
      require(matrix.column[i] < columns_, "a column lies outside the matrix");
      require(i == begin || matrix.column[i - 1] < matrix.column[i], "the columns of a row must ascend");
    }
  }
  row_start_ = std::move(matrix.row_start);
  values_ = std::move(matrix.value);
  values_.shrink_to_fit();
  if (columns_ <= UINT16_MAX + 1) {
    narrow_.assign(matrix.column.begin(), matrix.column.end());
  } else {
    wide_ = std::move(matrix.column);
    wide_.shrink_to_fit();
  }
}

size_t Weights::resident_bytes() const {
  return row_start_.capacity() * sizeof(uint32_t) + values_.capacity() * sizeof(float) +
         narrow_.capacity() * sizeof(uint16_t) + wide_.capacity() * sizeof(uint32_t);
}

}  // namespace hwprune
