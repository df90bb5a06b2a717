#include "node.h"

#include <stdexcept>

namespace hwprune {

std::string text(const std::vector<int64_t>& dims) {
  std::string result = "[";
  for (size_t i = 0; i < dims.size(); ++i) result += (i ? ", " : "") + std::to_string(dims[i]);
  return result + "]";
}

int64_t product(const std::vector<int64_t>& dims, size_t first, size_t last) {
  int64_t result = 1;
  for (size_t i = first; i < last; ++i) result *= dims[i];
  return result;
}

PackedWeight read_weight(const Operator& op, const ort::NodeInfo& info) {
  PackedWeight packed;
  packed.codec = op.codec;
  packed.value_type = op.value_type;
  packed.values = info.constant(1, "values");
  packed.shape = info.integers("shape", op.has_index() ? std::vector<int64_t>{} : packed.values.dims);
  packed.count = info.integer("count", -1);
  if (op.has_index()) packed.index = info.constant(2, "index");
  if (op.has_table()) {
    const bool scale = op.value_type == ValueType::i8 || op.value_type == ValueType::i4;
    packed.table = info.constant(op.table_input(), scale ? "scale" : "codebook");
  }
  return packed;
}

void add_broadcast(float* target, const std::vector<int64_t>& target_dims, const float* source,
                   const std::vector<int64_t>& dims, const char* what) {
  const size_t rank = target_dims.size();
  std::vector<int64_t> steps(rank, 0), at(rank, 0);
  bool fits = dims.size() <= rank;
  int64_t step = 1;
  for (size_t back = 1; fits && back <= dims.size(); ++back) {
    const int64_t given = dims[dims.size() - back], wanted = target_dims[rank - back];
    fits = given == 1 || given == wanted;
    if (given != 1) steps[rank - back] = step;
    step *= given;
  }
  if (!fits) {
    throw std::runtime_error(std::string(what) + " of shape " + text(dims) + " does not broadcast to " + text(target_dims));
  }
  const int64_t total = product(target_dims, 0, rank);
  int64_t offset = 0;
  for (int64_t i = 0; i < total; ++i) {
    target[i] += source[offset];
    for (size_t axis = rank; axis-- > 0;) {
      offset += steps[axis];
      if (++at[axis] < target_dims[axis]) break;
      offset -= steps[axis] * target_dims[axis];
      at[axis] = 0;
    }
  }
}

}  // namespace hwprune
