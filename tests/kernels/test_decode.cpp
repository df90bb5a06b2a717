// Decoding gives what was encoded, and refuses what no encoder writes.

#include <cmath>
#include <cstdio>

#include "encoders.h"
#include "operator_name.h"

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

bool refused(const Owned& owned) {
  try {
    decode(owned.packed);
  } catch (const MalformedWeight&) {
    return true;
  }
  return false;
}

bool same(const SparseMatrix& matrix, const Sample& sample) {
  size_t i = 0;
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (uint32_t n = matrix.row_start[row]; n < matrix.row_start[row + 1]; ++n, ++i) {
      if (row * matrix.columns + matrix.column[n] != sample.positions[i]) return false;
      if (matrix.value[n] != sample.expected[i]) return false;
    }
  }
  return i == sample.positions.size() && matrix.value.size() == i;
}

void round_trips() {
  Random random(1);
  const std::vector<std::vector<int64_t>> shapes = {{1}, {5, 7}, {4, 3, 3, 3}, {2, 600}, {300, 2}, {3, 1, 1}, {1, 251}};
  for (const Codec codec : kCodecs) {
    for (const ValueType type : kValueTypes) {
      if (!storable(codec, type)) continue;
      for (const auto& shape : shapes) {
        for (const double density : {0.0, 0.003, 0.1, 0.5, 1.0}) {
          if (codec == Codec::cols8 && shape.back() > 255) continue;
          const Sample made = sample(random, codec, type, shape, density);
          CHECK(same(decode(made.owned.packed), made));
          CHECK(same(decode(made.owned.packed, shape.size() - 1), made));
          const SparseMatrix matrix = decode(made.owned.packed);
          const SparseMatrix twice = transposed(transposed(matrix));
          CHECK(twice.column == matrix.column && twice.value == matrix.value && twice.row_start == matrix.row_start);
        }
      }
    }
  }
}

Sample small(Codec codec, ValueType type = ValueType::f32) {
  Random random(7);
  return sample(random, codec, type, {4, 3, 3, 3}, 0.2);
}

void resize(Owned& owned, Bytes Owned::*bytes, ArrayView PackedWeight::*array, int change) {
  (owned.*bytes).resize((owned.*bytes).size() + change * element_size((owned.packed.*array).element), 1);
  (owned.packed.*array).dims[0] += change;
  owned.connect();
}

void malformed() {
  for (const Codec codec : kCodecs) {
    for (const ValueType type : kValueTypes) {
      if (!storable(codec, type)) continue;
      // Counts that do not add up, in all arrays.
      for (const int change : {-1, 1, 2}) {
        Sample made = small(codec, type);
        resize(made.owned, &Owned::values, &PackedWeight::values, change);
        CHECK(refused(made.owned));
        if (codec != Codec::dense) {
          made = small(codec, type);
          resize(made.owned, &Owned::index, &PackedWeight::index, change);
          CHECK(refused(made.owned));
        }
        // A codebook of another length still is one, but for one of exactly 16 entries.
        if (made.owned.table.empty() || type == ValueType::c8) continue;
        made = small(codec, type);
        resize(made.owned, &Owned::table, &PackedWeight::table, change);
        CHECK(refused(made.owned));
      }
      // Wrong types.
      for (ArrayView PackedWeight::*array : {&PackedWeight::values, &PackedWeight::index, &PackedWeight::table}) {
        Sample made = small(codec, type);
        if ((made.owned.packed.*array).dims.empty()) continue;
        (made.owned.packed.*array).element = 7;  // int64
        CHECK(refused(made.owned));
      }
      // Shapes that are none, or beyond every size.
      for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
               {}, {0}, {-1, 5}, {4, 3, 3, 0}, {int64_t{1} << 62, int64_t{1} << 62, 16}, {int64_t{1} << 31}, {2, 2}}) {
        Sample made = small(codec, type);
        made.owned.packed.shape = shape;
        CHECK(refused(made.owned));
      }
      Sample made = small(codec, type);
      made.owned.packed.count = made.owned.packed.count < 0 ? 3 : made.owned.packed.count + 2;
      CHECK(refused(made.owned) || codec == Codec::dense);
    }
  }
}

void set_index(Owned& owned, const Bytes& index, size_t values) {
  owned.index = index;
  owned.packed.index.dims = {static_cast<int64_t>(index.size() / element_size(owned.packed.index.element))};
  owned.values.assign(4 * values, 0);
  owned.packed.values.dims = {static_cast<int64_t>(values)};
  owned.connect();
}

// [index bytes, values]: refused in a tensor of 4 x 27 weights.
void malformed_indices() {
  struct Case {
    Codec codec;
    Bytes index;
    size_t values;
    bool good;
  };
  const Bytes full_map(13, 0xFF);
  Bytes map = full_map;
  map.push_back(0x0F);
  Bytes padded = full_map;
  padded.push_back(0x1F);
  const std::vector<Case> cases = {
      {Codec::gap8, {108}, 1, true},
      {Codec::gap8, {109}, 1, false},             // past the end
      {Codec::gap8, {1, 0}, 1, false},            // ends in a skip
      {Codec::gap8, {0, 1}, 1, false},            // skips past the end
      {Codec::gap8, {0}, 0, false},
      {Codec::gap8, {}, 0, true},
      {Codec::gap4, {0x01}, 1, true},             // the other half is padding
      {Codec::gap4, {0x10}, 1, true},
      {Codec::gap4, {0x00}, 0, false},
      {Codec::gap4, {0x01, 0x00}, 1, false},
      {Codec::gap4, {0x00, 0x00, 0x00, 0x40}, 1, false},
      {Codec::gap4, {0x00, 0x00, 0x00, 0x30}, 1, true},
      {Codec::gap16, {108, 0}, 1, true},
      {Codec::gap16, {109, 0}, 1, false},
      {Codec::gap16, {0, 0, 1, 0}, 1, false},
      {Codec::cols8, {27, 0, 27, 27, 27, 26}, 2, true},
      {Codec::cols8, {0, 27, 27, 27, 27, 26}, 2, false},  // no row open
      {Codec::cols8, {27, 28, 27, 27, 27, 26}, 2, false}, // column past the row
      {Codec::cols8, {27, 1, 1, 27, 27, 27}, 2, false},   // the same column twice
      {Codec::cols8, {27, 2, 1, 27, 27, 27}, 2, false},   // out of order
      {Codec::cols8, {27, 27, 27, 27, 27, 26}, 2, false}, // a row too many
      {Codec::cols8, {27, 1, 2, 27, 27, 3}, 2, false},    // a row too few
      {Codec::bitmap, map, 108, true},
      {Codec::bitmap, padded, 108, false},        // padding is set
      {Codec::bitmap, padded, 109, false},
      {Codec::bitmap, full_map, 104, false},      // too short
      {Codec::rice, {0}, 0, true},
      {Codec::rice, {1}, 0, false},
      {Codec::rice, {0, 0}, 0, false},
      {Codec::rice, {}, 0, false},
      {Codec::rice, {0, 0x01}, 1, true},
      {Codec::rice, {0, 0x03}, 1, false},         // a position too many
      {Codec::rice, {0, 0x01, 0x00}, 1, false},   // a byte too many
      {Codec::rice, {0, 0x00}, 1, false},         // no end
      {Codec::rice, {25, 0x01}, 1, false},
      {Codec::rice, {24, 0x01}, 1, false},        // planes are missing
      {Codec::rice, {1, 0x01, 0x01}, 1, true},
      {Codec::rice, {1, 0x03, 0x01}, 1, false},   // padding of a plane is set
      {Codec::rice, {7, 1, 1, 0, 1, 0, 1, 1, 1}, 1, true},    // 107
      {Codec::rice, {7, 0, 0, 1, 1, 0, 1, 1, 1}, 1, false},   // 108
      {Codec::rice, {7, 1, 1, 1, 1, 1, 1, 1, 2}, 1, false},
  };
  for (const Case& each : cases) {
    Sample made = small(each.codec);
    set_index(made.owned, each.index, each.values);
    if (refused(made.owned) == each.good) {
      std::printf("case %td is %s\n", &each - cases.data(), each.good ? "refused" : "accepted");
      ++failures;
    }
  }
}

void scales_broadcast() {
  Random random(3);
  // A scale per column of a matrix [in, out], and one for all.
  Sample made = sample(random, Codec::gap8, ValueType::i8, {3, 2}, 1.0);
  made.owned.table.clear();
  append(made.owned.table, 0.5f);
  append(made.owned.table, 2.0f);
  made.owned.packed.table.dims = {1, 2};
  made.owned.connect();
  const SparseMatrix matrix = decode(made.owned.packed);
  for (size_t i = 0; i < 6; ++i) {
    const auto level = static_cast<float>(static_cast<int8_t>(made.owned.values[i]));
    CHECK(matrix.value[i] == level * (i % 2 ? 2.0f : 0.5f));
  }
  made.owned.packed.table.dims = {2, 1};
  CHECK(refused(made.owned));
  made.owned.packed.table.dims = {1, 1, 2};
  CHECK(refused(made.owned));
  made.owned.packed.table.dims = {2};
  CHECK(!refused(made.owned));
}

void half_floats() {
  CHECK(half_to_float(0x3C00) == 1.0f);
  CHECK(half_to_float(0x0001) == 0x1p-24f);
  CHECK(half_to_float(0x83FF) == -1023 * 0x1p-24f);
  CHECK(half_to_float(0x7BFF) == 65504.0f);
  CHECK(std::isinf(half_to_float(0xFC00)) && half_to_float(0xFC00) < 0);
  CHECK(std::isnan(half_to_float(0x7E00)));
  CHECK(half_to_float(0x8000) == 0.0f && std::signbit(half_to_float(0x8000)));
}

void names() {
  const std::vector<Operator> all = all_operators();
  for (const Operator& op : all) {
    const auto parsed = parse_operator(op.name());
    CHECK(parsed.has_value() && parsed->name() == op.name() && parsed->inputs() == op.inputs());
  }
  CHECK(all.size() > 3000);
  for (const char* name : {"", "Csr", "CsrConv", "CsrConvGap8", "CsrConvGap8I8Bia", "CsrConvGap8I8Relu7", "DenseConvI4",
                           "CsrConvTransposeGap8I8", "CsrConvI8", "DenseConvGap8I8", "CsrMatMulGap8I8Relu", "CsrMatMulGap8I8Bias",
                           "CsrConvGap8I8AddBias", "CsrConvGap8I8 ", "XCsrConvGap8I8"}) {
    CHECK(!parse_operator(name).has_value());
  }
  const auto full = parse_operator("CsrConvRiceC4BiasAddHardSwish");
  CHECK(full && full->bias && full->residual && full->activation == Activation::hard_swish && full->inputs() == 6);
  const auto depthwise = parse_operator("DenseDepthwiseF32BiasRelu6");
  CHECK(depthwise && depthwise->kind == Kind::depthwise && depthwise->codec == Codec::dense && depthwise->inputs() == 3);
  CHECK(parse_operator("CsrLinearCols16F32Relu6")->activation == Activation::relu6);
}

}  // namespace
}  // namespace hwprune::testing

int main() {
  using namespace hwprune::testing;
  round_trips();
  malformed();
  malformed_indices();
  scales_broadcast();
  half_floats();
  names();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
