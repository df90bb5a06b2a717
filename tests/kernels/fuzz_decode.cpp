// Fuzzing the decoder: whatever the arrays hold, it gives a well-formed matrix or refuses. The reading
// of memory beyond an array is the sanitizers' to find: each lies in memory of exactly its size.
//
// With Clang this is a libFuzzer target. Otherwise main() mutates well-formed weights, always the same way.

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "fuzz_input.h"

namespace hwprune::testing {
namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not well-formed: %s\n", what);
  std::abort();
}

void check_matrix(const SparseMatrix& matrix) {
  require(matrix.rows >= 1 && matrix.columns >= 1, "extents");
  require(matrix.row_start.size() == static_cast<size_t>(matrix.rows) + 1, "row table");
  require(matrix.row_start.front() == 0 && matrix.row_start.back() == matrix.column.size(), "nonzeros");
  require(matrix.value.size() == matrix.column.size(), "values");
  for (size_t row = 0; row < static_cast<size_t>(matrix.rows); ++row) {
    require(matrix.row_start[row] <= matrix.row_start[row + 1], "rows in order");
    for (uint32_t n = matrix.row_start[row]; n < matrix.row_start[row + 1]; ++n) {
      require(matrix.column[n] < matrix.columns, "columns in range");
      require(n == matrix.row_start[row] || matrix.column[n - 1] < matrix.column[n], "columns in order");
    }
  }
}

// Returns whether it was accepted.
bool try_decode(const Owned& owned) {
  // A row table is as large as the shape says; bounded here so that runs are quick.
  int64_t rows = owned.packed.shape.empty() ? 1 : owned.packed.shape[0];
  if (rows > 1 << 16 && rows <= kMaxRows) return false;
  try {
    const SparseMatrix matrix = decode(owned.packed);
    check_matrix(matrix);
    if (matrix.columns < 1 << 16) check_matrix(transposed(matrix));
    check_matrix(row_slice(matrix, matrix.rows - 1, 1));
    return true;
  } catch (const MalformedWeight&) {
    return false;
  }
}

}  // namespace
}  // namespace hwprune::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hwprune;
  using namespace hwprune::testing;
  Reader reader{data, size};
  Owned owned = read_owned(reader);
  try_decode(owned);
  return 0;
}

#ifndef HWPRUNE_LIBFUZZER
namespace hwprune::testing {
namespace {

void mutate_bytes(Random& random, Bytes& bytes) {
  if (bytes.empty()) return;
  for (int changes = 1 + below(random, 3); changes > 0; --changes) {
    uint8_t& byte = bytes[static_cast<size_t>(below(random, static_cast<int>(bytes.size())))];
    switch (below(random, 4)) {
      case 0:
        byte ^= static_cast<uint8_t>(1u << below(random, 8));
        break;
      case 1:
        byte = static_cast<uint8_t>(random());
        break;
      case 2:
        byte = 0;
        break;
      default:
        byte = 0xFF;
    }
  }
}

void mutate_length(Random& random, ArrayView& view, Bytes& bytes) {
  if (view.dims.size() != 1) return;
  const int64_t length = std::max<int64_t>(0, view.dims[0] + below(random, 5) - 2);
  view.dims[0] = length;
  bytes.resize(static_cast<size_t>(length) * element_size(view.element), static_cast<uint8_t>(random()));
}

int run(int rounds) {
  Random random(20240229);
  int accepted = 0, refused = 0;
  for (int round = 0; round < rounds; ++round) {
    const Codec codec = kCodecs[below(random, 8)];
    const ValueType type = kValueTypes[below(random, 6)];
    if (!storable(codec, type)) continue;
    std::vector<int64_t> shape;
    for (int rank = 1 + below(random, 4); rank > 0; --rank) shape.push_back(1 + below(random, 9));
    int64_t columns = 1;
    for (size_t axis = 1; axis < shape.size(); ++axis) columns *= shape[axis];
    if (codec == Codec::cols8 && columns > 255) continue;
    const double densities[] = {0, 0.01, 0.1, 0.5, 1};
    Sample made = sample(random, codec, type, shape, densities[below(random, 5)]);
    require(try_decode(made.owned), "a sample that was not changed is refused");
    Owned& owned = made.owned;
    switch (below(random, 7)) {
      case 0:
        mutate_bytes(random, owned.values);
        break;
      case 1:
        mutate_bytes(random, owned.table);
        break;
      case 2:
        mutate_length(random, owned.packed.values, owned.values);
        break;
      case 3:
        mutate_length(random, owned.packed.index, owned.index);
        break;
      case 4:
        owned.packed.shape[static_cast<size_t>(below(random, static_cast<int>(shape.size())))] += below(random, 5) - 2;
        break;
      default:
        mutate_bytes(random, owned.index);
    }
    owned.connect();
    ++(try_decode(owned) ? accepted : refused);
    // Bytes without any sense, too.
    Bytes noise(static_cast<size_t>(below(random, 200)));
    for (uint8_t& byte : noise) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(noise.data(), noise.size());
  }
  std::printf("%d accepted, %d refused\n", accepted, refused);
  // Mutations that are all refused, or none, would test nothing.
  return accepted == 0 || refused == 0;
}

}  // namespace
}  // namespace hwprune::testing

int main(int count, char** arguments) { return hwprune::testing::run(count > 1 ? std::atoi(arguments[1]) : 60000); }
#endif
