// What Python calls of the library beside onnxruntime: weights made dense. Each array lies in memory of exactly its size,
// so that the sanitizers see what is read or written beyond it.

#include <cstdio>
#include <memory>

#include "encoders.h"
#include "operator_name.h"

struct hwprune_array {
  int element;
  size_t rank;
  const int64_t* dims;
  const void* data;
};

extern "C" int hwprune_unpack(const char* name, const int64_t* shape, size_t rank, int64_t count, const hwprune_array* arrays,
                              size_t array_count, float* dense);

namespace hwprune::testing {
namespace {

int failures = 0;

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);           \
      ++failures;                                                           \
    }                                                                       \
  } while (false)

int unpack(const PackedWeight& packed, std::vector<float>& dense) {
  const Operator op{Kind::conv, packed.codec, packed.value_type, false, false, Activation::none};
  std::vector<hwprune_array> arrays;
  const auto add = [&](const ArrayView& view) { arrays.push_back({view.element, view.dims.size(), view.dims.data(), view.data}); };
  add(packed.values);
  if (op.has_index()) add(packed.index);
  if (op.has_table()) add(packed.table);
  return hwprune_unpack(op.name().c_str(), packed.shape.data(), packed.shape.size(), packed.count, arrays.data(), arrays.size(), dense.data());
}

void weights() {
  Random random(3);
  for (const Codec codec : kCodecs) {
    for (const ValueType type : kValueTypes) {
      if (!storable(codec, type)) continue;
      for (const double density : {0.0, 0.3, 1.0}) {
        Sample made = sample(random, codec, type, {4, 3, 5}, density);
        std::vector<float> dense(60, -1.0f), right(60, 0.0f);
        for (size_t i = 0; i < made.positions.size(); ++i) right[static_cast<size_t>(made.positions[i])] = made.expected[i];
        CHECK(unpack(made.owned.packed, dense) == 0);
        CHECK(dense == right);
        made.owned.packed.shape = {4, 3, 6};
        if (codec == Codec::dense) CHECK(unpack(made.owned.packed, dense) != 0);
        made.owned.packed.shape = {-4, 3, 5};
        CHECK(unpack(made.owned.packed, dense) != 0);
      }
    }
  }
  const int64_t shape[] = {1};
  CHECK(hwprune_unpack("CsrNothing", shape, 1, -1, nullptr, 0, nullptr) != 0);
  CHECK(hwprune_unpack("CsrConvGap8F32", shape, 1, -1, nullptr, 0, nullptr) != 0);
}

}  // namespace
}  // namespace hwprune::testing

int main() {
  hwprune::testing::weights();
  if (hwprune::testing::failures == 0) std::printf("all well\n");
  return hwprune::testing::failures != 0;
}
