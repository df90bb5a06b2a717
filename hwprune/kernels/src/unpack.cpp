// A packed weight as the dense tensor it stands for, for layers that run a dense operator.
#include <algorithm>
#include <exception>

#include "export.h"
#include "operator_name.h"

using namespace hwprune;

// An array of the file as Python hands it over: ONNX's number of its element type, its axes, its data.
struct hwprune_array {
  int element;
  size_t rank;
  const int64_t* dims;
  const void* data;
};

// Writes the tensor of `shape` that `arrays` hold to `dense`. `arrays`: values, index, table, as many as the operator of this
// name has of them. 0, or another number where these are no arrays of this operator.
HWPRUNE_EXPORT int hwprune_unpack(const char* name, const int64_t* shape, size_t rank, int64_t count,
                                  const hwprune_array* arrays, size_t array_count, float* dense) {
  try {
    const auto op = parse_operator(name);
    if (!op || array_count != 1u + op->has_index() + op->has_table()) return 1;
    const auto view = [&](size_t i) {
      return ArrayView{arrays[i].element, {arrays[i].dims, arrays[i].dims + arrays[i].rank}, arrays[i].data};
    };
    PackedWeight packed;
    packed.codec = op->codec;
    packed.value_type = op->value_type;
    packed.shape.assign(shape, shape + rank);
    packed.count = count;
    packed.values = view(0);
    if (op->has_index()) packed.index = view(1);
    if (op->has_table()) packed.table = view(array_count - 1);
    const SparseMatrix matrix = decode(packed);
    std::fill_n(dense, matrix.rows * matrix.columns, 0.0f);
    for (int64_t row = 0; row < matrix.rows; ++row) {
      for (uint32_t i = matrix.row_start[row]; i < matrix.row_start[row + 1]; ++i) dense[row * matrix.columns + matrix.column[i]] = matrix.value[i];
    }
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}
