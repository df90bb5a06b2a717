// Weights, and numbers, made of the bytes that a fuzzer gives.
#pragma once

#include <algorithm>

#include "encoders.h"

namespace hwprune::testing {

// Takes numbers from the begin of the input.
struct Reader {
  const uint8_t* data;
  size_t size;
  unsigned byte() {
    if (size == 0) return 0;
    --size;
    return *data++;
  }
  // Small, or now and then as hostile as a file can say it.
  int64_t extent() {
    const unsigned first = byte();
    if (first < 0xF8) return first;
    const auto high = static_cast<int64_t>(byte() << 8 | byte());
    return first == 0xFF ? -high : static_cast<int64_t>(static_cast<uint64_t>(high) << (first - 0xF8) * 8);
  }
  void array(ArrayView& view, Bytes& bytes, size_t axes) {
    constexpr int kElements[] = {1, 2, 3, 4, 10, 7};
    view.element = kElements[byte() % 6];
    size_t count = 1;
    for (size_t i = 0; i < axes; ++i) {
      view.dims.push_back(byte() % 64);
      count *= static_cast<size_t>(view.dims.back());
    }
    const size_t wanted = std::min<size_t>(count, 4096) * (view.element == 7 ? 8 : element_size(view.element));
    if (count > 4096) view.dims.assign(1, 0);
    else bytes.resize(wanted);
    for (uint8_t& each : bytes) each = static_cast<uint8_t>(byte());
  }
};

inline Owned read_owned(Reader& reader) {
  Owned owned;
  owned.packed.codec = kCodecs[reader.byte() % 8];
  owned.packed.value_type = kValueTypes[reader.byte() % 6];
  for (unsigned rank = reader.byte() % 5; rank > 0; --rank) owned.packed.shape.push_back(reader.extent());
  if (reader.byte() % 2) owned.packed.count = reader.extent();
  reader.array(owned.packed.table, owned.table, reader.byte() % 4);
  reader.array(owned.packed.values, owned.values, reader.byte() % 8 == 0 ? 2 : 1);
  reader.array(owned.packed.index, owned.index, reader.byte() % 16 == 0 ? 2 : 1);
  owned.connect();
  return owned;
}

}  // namespace hwprune::testing
