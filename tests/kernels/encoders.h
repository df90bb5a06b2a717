// The encoders of hwprune/encoding in C++, for tests: positions -> index, values -> arrays.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "decode.h"

namespace hwprune::testing {

using Bytes = std::vector<uint8_t>;
using Random = std::mt19937;

inline int below(Random& random, int end) { return static_cast<int>(random() % static_cast<unsigned>(end)); }

template <typename T>
void append(Bytes& bytes, T value) {
  const size_t at = bytes.size();
  bytes.resize(at + sizeof(T));
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

inline Bytes from_bits(const std::vector<int>& bits) {
  Bytes bytes((bits.size() + 7) / 8, 0);
  for (size_t i = 0; i < bits.size(); ++i) bytes[i / 8] |= static_cast<uint8_t>(bits[i] << (i % 8));
  return bytes;
}

inline Bytes from_nibbles(const std::vector<unsigned>& nibbles) {
  Bytes bytes((nibbles.size() + 1) / 2, 0);
  for (size_t i = 0; i < nibbles.size(); ++i) bytes[i / 2] |= static_cast<uint8_t>(nibbles[i] << (i % 2 * 4));
  return bytes;
}

inline std::vector<unsigned> gap_entries(const std::vector<int64_t>& positions, int64_t reach) {
  std::vector<unsigned> entries;
  int64_t last = -1;
  for (const int64_t position : positions) {
    int64_t gap = position - last;
    for (; gap > reach; gap -= reach) entries.push_back(0);
    entries.push_back(static_cast<unsigned>(gap));
    last = position;
  }
  return entries;
}

inline Bytes encode_rice(const std::vector<int64_t>& positions, unsigned parameter) {
  if (positions.empty()) return {0};
  Bytes bytes{static_cast<uint8_t>(parameter)};
  std::vector<int64_t> gaps;
  int64_t last = -1;
  for (const int64_t position : positions) {
    gaps.push_back(position - last - 1);
    last = position;
  }
  for (unsigned p = 0; p < parameter; ++p) {
    std::vector<int> plane;
    for (const int64_t gap : gaps) plane.push_back(static_cast<int>(gap >> p & 1));
    for (const uint8_t byte : from_bits(plane)) bytes.push_back(byte);
  }
  std::vector<int> unary;
  for (const int64_t gap : gaps) {
    unary.insert(unary.end(), static_cast<size_t>(gap >> parameter), 0);
    unary.push_back(1);
  }
  for (const uint8_t byte : from_bits(unary)) bytes.push_back(byte);
  return bytes;
}

inline Bytes encode_index(Codec codec, const std::vector<int64_t>& positions, const std::vector<int64_t>& shape,
                          int64_t weights, unsigned rice_parameter) {
  Bytes bytes;
  switch (codec) {
    case Codec::gap4:
      return from_nibbles(gap_entries(positions, 15));
    case Codec::gap8:
      for (const unsigned entry : gap_entries(positions, 255)) append(bytes, static_cast<uint8_t>(entry));
      return bytes;
    case Codec::gap16:
      for (const unsigned entry : gap_entries(positions, 65535)) append(bytes, static_cast<uint16_t>(entry));
      return bytes;
    case Codec::cols8:
    case Codec::cols16: {
      const int64_t columns = weights / shape[0];
      size_t next = 0;
      const auto put = [&](int64_t entry) {
        if (codec == Codec::cols8) append(bytes, static_cast<uint8_t>(entry));
        else append(bytes, static_cast<uint16_t>(entry));
      };
      for (int64_t row = 0; row < shape[0]; ++row) {
        put(columns);
        for (; next < positions.size() && positions[next] < (row + 1) * columns; ++next) put(positions[next] - row * columns);
      }
      return bytes;
    }
    case Codec::bitmap: {
      std::vector<int> bits(static_cast<size_t>(weights), 0);
      for (const int64_t position : positions) bits[static_cast<size_t>(position)] = 1;
      return from_bits(bits);
    }
    case Codec::rice:
      return encode_rice(positions, rice_parameter);
    case Codec::dense:
      break;
  }
  return bytes;
}

// A packed weight that owns its arrays, each in memory of exactly its size.
struct Owned {
  PackedWeight packed;
  Bytes values, index, table;

  void connect() {
    packed.values.data = values.data();
    packed.index.data = index.data();
    packed.table.data = table.data();
  }
};

inline size_t element_size(int element) { return element == 1 ? 4 : element == 4 || element == 10 ? 2 : 1; }

constexpr Codec kCodecs[] = {Codec::gap4,   Codec::gap8,   Codec::gap16, Codec::cols8,
                             Codec::cols16, Codec::bitmap, Codec::rice,  Codec::dense};
constexpr ValueType kValueTypes[] = {ValueType::f32, ValueType::f16, ValueType::i8,
                                     ValueType::i4,  ValueType::c4,  ValueType::c8};

// Small whole numbers and scales of powers of two, so that what comes out is exact.
struct Sample {
  Owned owned;
  std::vector<int64_t> positions;
  std::vector<float> expected;  // per position
};

inline Sample sample(Random& random, Codec codec, ValueType type, std::vector<int64_t> shape, double density) {
  Sample result;
  PackedWeight& packed = result.owned.packed;
  packed.codec = codec;
  packed.value_type = type;
  packed.shape = shape;
  int64_t weights = 1;
  for (const int64_t size : shape) weights *= size;
  const bool dense = codec == Codec::dense;
  for (int64_t i = 0; i < weights; ++i) {
    if (dense || static_cast<double>(random() % 100000) < density * 100000) result.positions.push_back(i);
  }
  const size_t count = result.positions.size();
  const auto stored = static_cast<int64_t>(count);
  std::vector<float>& expected = result.expected;
  const int64_t inner = weights / shape[0];
  std::vector<unsigned> nibbles;
  Bytes& values = result.owned.values;
  constexpr uint16_t kHalf[] = {0x0000, 0x3C00, 0x4000, 0x4200, 0xBC00, 0xC000, 0x3800, 0x4400};
  constexpr float kHalfValue[] = {0, 1, 2, 3, -1, -2, 0.5f, 4};
  const bool codebook = type == ValueType::c4 || type == ValueType::c8;
  for (size_t i = 0; i < count; ++i) {
    const int pick = below(random, 8);
    const float scale = 1.0f / static_cast<float>(1 << result.positions[i] / inner % 8);
    switch (type) {
      case ValueType::f32:
        append(values, static_cast<float>(pick) - 3.5f);
        expected.push_back(static_cast<float>(pick) - 3.5f);
        break;
      case ValueType::f16:
        append(values, kHalf[pick]);
        expected.push_back(kHalfValue[pick]);
        break;
      case ValueType::i8:
        append(values, static_cast<int8_t>(pick * 30 - 110));
        expected.push_back(static_cast<float>(pick * 30 - 110) * scale);
        break;
      case ValueType::i4:
        nibbles.push_back(static_cast<unsigned>(pick + 4));
        expected.push_back(static_cast<float>(pick - 4) * scale);
        break;
      case ValueType::c4:
        nibbles.push_back(static_cast<unsigned>(pick));
        expected.push_back(kHalfValue[pick]);
        break;
      case ValueType::c8:
        append(values, static_cast<uint8_t>(pick));
        expected.push_back(kHalfValue[pick]);
        break;
    }
  }
  constexpr int kElements[] = {1, 10, 3, 2, 2, 2};
  packed.values.element = kElements[static_cast<int>(type)];
  packed.values.dims = dense ? shape : std::vector<int64_t>{stored};
  if (type == ValueType::i4 || type == ValueType::c4) {
    values = from_nibbles(nibbles);
    packed.count = stored;
    packed.values.dims = {static_cast<int64_t>(values.size())};
  }
  if (codebook) {
    for (const uint16_t bits : kHalf) append(result.owned.table, bits);
    if (type == ValueType::c4) result.owned.table.resize(32, 0);
    packed.table.element = 10;
    packed.table.dims = {static_cast<int64_t>(result.owned.table.size() / 2)};
  } else if (type == ValueType::i8 || type == ValueType::i4) {
    for (int64_t row = 0; row < shape[0]; ++row) append(result.owned.table, 1.0f / static_cast<float>(1 << row % 8));
    packed.table.element = 1;
    packed.table.dims.assign(shape.size(), 1);
    packed.table.dims[0] = shape[0];
  }
  if (!dense) {
    const unsigned parameter = static_cast<unsigned>(below(random, 8));
    result.owned.index = encode_index(codec, result.positions, shape, weights, parameter);
    packed.index.element = codec == Codec::gap16 || codec == Codec::cols16 ? 4 : 2;
    packed.index.dims = {static_cast<int64_t>(result.owned.index.size() / element_size(packed.index.element))};
  }
  result.owned.connect();
  return result;
}

inline bool storable(Codec codec, ValueType type) {
  return codec != Codec::dense || (type != ValueType::i4 && type != ValueType::c4);
}

}  // namespace hwprune::testing
