// Values, scales and codebooks, and the way from positions to rows.

#include "decode.h"

#include <cstring>

namespace hwprune {
namespace {

[[noreturn]] void refuse(const std::string& reason) { throw MalformedWeight(reason); }

std::string text(const std::vector<int64_t>& dims) {
  std::string result = "[";
  for (size_t i = 0; i < dims.size(); ++i) result += (i ? ", " : "") + std::to_string(dims[i]);
  return result + "]";
}

template <typename T>
T load(const void* data, size_t i) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + i * sizeof(T), sizeof(T));
  return value;
}

int64_t weight_count(const std::vector<int64_t>& shape) {
  int64_t weights = 1;
  for (const int64_t size : shape) {
    // Before multiplying: neither factor is above 2^31, so the product cannot overflow.
    if (size < 1 || size > kMaxWeights || (weights *= size) > kMaxWeights) {
      refuse("shape " + text(shape) + " is not that of a weight");
    }
  }
  if (shape.empty()) refuse("a weight needs at least one axis");
  return weights;
}

Element expected_element(ValueType type) {
  switch (type) {
    case ValueType::f32:
      return Element::float32;
    case ValueType::f16:
      return Element::float16;
    case ValueType::i8:
      return Element::int8;
    default:
      return Element::uint8;
  }
}

bool has_scale(ValueType type) { return type == ValueType::i8 || type == ValueType::i4; }
bool has_codebook(ValueType type) { return type == ValueType::c4 || type == ValueType::c8; }
bool shares_bytes(ValueType type) { return type == ValueType::i4 || type == ValueType::c4; }

// How many values are stored, as the array of values says it.
size_t nonzero_count(const PackedWeight& packed, int64_t weights) {
  const ArrayView& values = packed.values;
  if (values.element != static_cast<int>(expected_element(packed.value_type))) {
    refuse("values: their type is not that of the operator's name");
  }
  const size_t size = values.count();
  if (packed.codec == Codec::dense) {
    if (shares_bytes(packed.value_type)) refuse("values: half bytes are not stored dense");
    if (size != static_cast<size_t>(weights)) {
      refuse("values: " + std::to_string(size) + " for " + std::to_string(weights) + " weights");
    }
    return size;
  }
  if (values.dims.size() != 1) refuse("values: expected one axis, given " + text(values.dims));
  if (!shares_bytes(packed.value_type)) {
    if (packed.count != -1) refuse("values: an attribute count belongs to half bytes only");
    if (size > static_cast<size_t>(weights)) refuse("values: more than weights");
    return size;
  }
  if (packed.count < 0 || packed.count > weights || size != static_cast<size_t>(packed.count + 1) / 2) {
    refuse("values: " + std::to_string(packed.count) + " half bytes in " + std::to_string(size) + " bytes");
  }
  if (packed.count % 2 != 0 && load<uint8_t>(values.data, size - 1) >> 4 != 0) {
    refuse("values: the last half byte is not 0");
  }
  return static_cast<size_t>(packed.count);
}

// Stored numbers as float: what the operator's function has after its first Cast or Gather.
std::vector<float> read_values(const PackedWeight& packed, size_t nonzeros) {
  std::vector<float> result(nonzeros), codebook;
  const void* data = packed.values.data;
  if (has_codebook(packed.value_type)) {
    if (packed.table.dims.size() != 1) refuse("codebook: expected one axis");
    codebook = as_floats(packed.table, "codebook");
    const bool small = packed.value_type == ValueType::c4;
    if (small ? codebook.size() != 16 : codebook.empty() || codebook.size() > 256) {
      refuse("codebook: it has " + std::to_string(codebook.size()) + " entries");
    }
    // The function looks pruned weights up in the same codebook.
    if (!small && codebook[0] != 0.0f) refuse("codebook: the first of 256 entries has to be 0");
  }
  const auto nibble = [data](size_t i) { return (load<uint8_t>(data, i / 2) >> (i % 2 * 4)) & 15; };
  switch (packed.value_type) {
    case ValueType::f32:
      if (nonzeros) std::memcpy(result.data(), data, nonzeros * sizeof(float));
      break;
    case ValueType::f16:
      for (size_t i = 0; i < nonzeros; ++i) result[i] = half_to_float(load<uint16_t>(data, i));
      break;
    case ValueType::i8:
      for (size_t i = 0; i < nonzeros; ++i) result[i] = load<int8_t>(data, i);
      break;
    case ValueType::i4:
      for (size_t i = 0; i < nonzeros; ++i) result[i] = static_cast<float>(nibble(i) - 8);
      break;
    case ValueType::c4:
      for (size_t i = 0; i < nonzeros; ++i) result[i] = codebook[static_cast<size_t>(nibble(i))];
      break;
    case ValueType::c8:
      for (size_t i = 0; i < nonzeros; ++i) {
        const size_t entry = load<uint8_t>(data, i);
        if (entry >= codebook.size()) refuse("values: entry " + std::to_string(entry) + " of the codebook");
        result[i] = codebook[entry];
      }
      break;
  }
  return result;
}

// Multiplies by the scales, which broadcast over the dense tensor as they would in ONNX.
void apply_scales(const PackedWeight& packed, const std::vector<uint32_t>& positions, std::vector<float>& values) {
  const std::vector<float> scales = as_floats(packed.table, "scale");
  const std::vector<int64_t>&shape = packed.shape, &dims = packed.table.dims;
  struct Axis {
    uint32_t inner, extent, step;
  };
  std::vector<Axis> axes;
  uint32_t inner = 1, step = 1;
  if (dims.size() > shape.size()) refuse("scale: " + text(dims) + " does not fit " + text(shape));
  for (size_t back = 1; back <= shape.size(); ++back) {
    const int64_t extent = shape[shape.size() - back];
    const int64_t given = back <= dims.size() ? dims[dims.size() - back] : 1;
    if (given != 1 && given != extent) refuse("scale: " + text(dims) + " does not fit " + text(shape));
    if (given != 1) {
      axes.push_back({inner, static_cast<uint32_t>(extent), step});
      step *= static_cast<uint32_t>(extent);
    }
    inner *= static_cast<uint32_t>(extent);
  }
  const bool dense = packed.codec == Codec::dense;
  if (axes.size() == 1 && axes[0].inner * uint64_t{axes[0].extent} == inner) {
    // One scale per slice of the first axis: positions ascend, so no division is needed.
    uint64_t end = axes[0].inner;
    size_t row = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const uint64_t position = dense ? i : positions[i];
      for (; position >= end; end += axes[0].inner) ++row;
      values[i] *= scales[row];
    }
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t position = dense ? static_cast<uint32_t>(i) : positions[i];
    uint32_t at = 0;
    for (const Axis& axis : axes) at += position / axis.inner % axis.extent * axis.step;
    values[i] *= scales[at];
  }
}

}  // namespace

size_t ArrayView::count() const {
  size_t product = 1;
  for (const int64_t size : dims) product *= static_cast<size_t>(size);
  return product;
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  uint32_t exponent = (bits >> 10) & 31u, mantissa = bits & 0x3FFu, wide;
  if (exponent == 31) {
    wide = 0x7F800000u | mantissa << 13;
  } else if (exponent != 0) {
    wide = (exponent + 112) << 23 | mantissa << 13;
  } else {
    // Subnormal: mantissa * 2^-24, exact in float.
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&wide, &value, sizeof wide);
  }
  wide |= sign;
  float result;
  std::memcpy(&result, &wide, sizeof result);
  return result;
}

std::vector<float> as_floats(const ArrayView& array, const std::string& what) {
  std::vector<float> result(array.count());
  if (array.element == static_cast<int>(Element::float32)) {
    if (!result.empty()) std::memcpy(result.data(), array.data, result.size() * sizeof(float));
  } else if (array.element == static_cast<int>(Element::float16)) {
    for (size_t i = 0; i < result.size(); ++i) result[i] = half_to_float(load<uint16_t>(array.data, i));
  } else {
    refuse(what + ": expected float32 or float16");
  }
  return result;
}

SparseMatrix decode(const PackedWeight& packed, size_t row_axes) {
  const int64_t weights = weight_count(packed.shape);
  const size_t nonzeros = nonzero_count(packed, weights);
  SparseMatrix matrix;
  matrix.rows = 1;
  for (size_t i = 0; i < row_axes && i < packed.shape.size(); ++i) matrix.rows *= packed.shape[i];
  matrix.columns = weights / matrix.rows;
  if (matrix.rows > kMaxRows || matrix.columns > kMaxWeights) {
    refuse("shape " + text(packed.shape) + ": that many rows are not supported");
  }
  const bool dense = packed.codec == Codec::dense;
  if (!dense) matrix.column = decode_positions(packed, weights, nonzeros);
  matrix.value = read_values(packed, nonzeros);
  if (has_scale(packed.value_type)) apply_scales(packed, matrix.column, matrix.value);
  matrix.row_start.resize(static_cast<size_t>(matrix.rows) + 1);
  const auto columns = static_cast<uint32_t>(matrix.columns);
  if (dense) {
    matrix.column.resize(nonzeros);
    for (size_t r = 0, i = 0; r < static_cast<size_t>(matrix.rows); ++r) {
      for (uint32_t c = 0; c < columns; ++c) matrix.column[i++] = c;
      matrix.row_start[r + 1] = static_cast<uint32_t>(i);
    }
    return matrix;
  }
  // Positions become columns, row after row.
  size_t row = 0;
  uint64_t begin = 0;
  for (size_t i = 0; i < nonzeros; ++i) {
    while (matrix.column[i] - begin >= columns) {
      matrix.row_start[++row] = static_cast<uint32_t>(i);
      begin += columns;
    }
    matrix.column[i] -= static_cast<uint32_t>(begin);
  }
  while (row < static_cast<size_t>(matrix.rows)) matrix.row_start[++row] = static_cast<uint32_t>(nonzeros);
  return matrix;
}

SparseMatrix transposed(const SparseMatrix& matrix) {
  if (matrix.columns > kMaxRows) refuse("that many columns are not supported");
  SparseMatrix result;
  result.rows = matrix.columns;
  result.columns = matrix.rows;
  result.row_start.assign(static_cast<size_t>(result.rows) + 1, 0);
  result.column.resize(matrix.column.size());
  result.value.resize(matrix.value.size());
  for (const uint32_t column : matrix.column) ++result.row_start[column + 1];
  for (size_t r = 0; r < static_cast<size_t>(result.rows); ++r) result.row_start[r + 1] += result.row_start[r];
  std::vector<uint32_t> next(result.row_start.begin(), result.row_start.end() - 1);
  for (size_t r = 0; r < static_cast<size_t>(matrix.rows); ++r) {
    for (uint32_t i = matrix.row_start[r]; i < matrix.row_start[r + 1]; ++i) {
      const uint32_t at = next[matrix.column[i]]++;
      result.column[at] = static_cast<uint32_t>(r);
      result.value[at] = matrix.value[i];
    }
  }
  return result;
}

SparseMatrix row_slice(const SparseMatrix& matrix, int64_t first, int64_t rows) {
  SparseMatrix result;
  result.rows = rows;
  result.columns = matrix.columns;
  const uint32_t* starts = matrix.row_start.data() + first;
  for (int64_t r = 0; r <= rows; ++r) result.row_start.push_back(starts[r] - starts[0]);
  result.column.assign(matrix.column.begin() + starts[0], matrix.column.begin() + starts[rows]);
  result.value.assign(matrix.value.begin() + starts[0], matrix.value.begin() + starts[rows]);
  return result;
}

}  // namespace hwprune
