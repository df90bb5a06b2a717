// Packed weights as they lie in the file -> SparseMatrix. Everything is checked before it is believed:
// the arrays come from a file that anybody may have written. The layouts are those of hwprune's Python
// package (hwprune/encoding); the two refuse the same files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel_api.h"

namespace hwprune {

enum class Codec { gap4, gap8, gap16, cols8, cols16, bitmap, rice, dense };
enum class ValueType { f32, f16, i8, i4, c4, c8 };

// Element types by their ONNX numbers.
enum class Element { float32 = 1, uint8 = 2, int8 = 3, uint16 = 4, float16 = 10 };

// An array of the file: not owned, and not necessarily aligned.
struct ArrayView {
  int element = 0;  // an Element, or any other number of ONNX
  std::vector<int64_t> dims;
  const void* data = nullptr;
  size_t count() const;
};

struct PackedWeight {
  Codec codec = Codec::dense;
  ValueType value_type = ValueType::f32;
  std::vector<int64_t> shape;  // of the dense tensor
  int64_t count = -1;          // stored values, where two share a byte; else -1
  ArrayView values;
  ArrayView index;  // not for Codec::dense
  ArrayView table;  // scales (int8, int4) or codebook
};

// Says which array is broken and how.
class MalformedWeight : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Standard operators decode positions in int32.
constexpr int64_t kMaxWeights = (int64_t{1} << 31) - 2;
// A matrix costs four bytes a row even when it is empty; no layer comes near this many.
constexpr int64_t kMaxRows = int64_t{1} << 24;

// The tensor read as a matrix: its first `row_axes` axes by all others.
SparseMatrix decode(const PackedWeight& packed, size_t row_axes = 1);

SparseMatrix transposed(const SparseMatrix& matrix);

// Rows [first, first + rows).
SparseMatrix row_slice(const SparseMatrix& matrix, int64_t first, int64_t rows);

// float32 or float16 -> float. Throws MalformedWeight for other types; `what` names the array.
std::vector<float> as_floats(const ArrayView& array, const std::string& what);

float half_to_float(uint16_t bits);

// Sorted row-major positions of `nonzeros` values; see positions.cpp. For every codec but dense.
std::vector<uint32_t> decode_positions(const PackedWeight& packed, int64_t weights, size_t nonzeros);

}  // namespace hwprune
