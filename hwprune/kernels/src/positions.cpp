// The codecs: index array -> positions over the flattened tensor.

#include <cstring>

#include "decode.h"

namespace hwprune {
namespace {

using Positions = std::vector<uint32_t>;

[[noreturn]] void refuse(const std::string& reason) { throw MalformedWeight("index: " + reason); }

[[noreturn]] void refuse_count(size_t nonzeros) {
  refuse("the number of its positions is not that of the values, " + std::to_string(nonzeros));
}

// Entries of one or two bytes at any address.
template <typename Entry>
struct Entries {
  const uint8_t* bytes;
  size_t count;
  unsigned operator[](size_t i) const {
    Entry entry;
    std::memcpy(&entry, bytes + i * sizeof(Entry), sizeof(Entry));
    return entry;
  }
};

// Two entries a byte, the low half first. An odd number of them leaves a last half of zero.
struct Nibbles {
  const uint8_t* bytes;
  size_t count;
  unsigned operator[](size_t i) const { return (bytes[i / 2] >> (i % 2 * 4)) & 15u; }
};

// Distances to the previous nonzero; 0 skips `reach` weights and stores nothing.
template <typename Source>
Positions from_gaps(const Source& entries, unsigned reach, int64_t weights, size_t nonzeros) {
  Positions positions(nonzeros);
  size_t found = 0;
  int64_t position = -1;
  for (size_t i = 0; i < entries.count; ++i) {
    const unsigned entry = entries[i];
    if (entry == 0) {
      position += reach;
      continue;
    }
    position += entry;
    if (found == nonzeros) refuse_count(nonzeros);
    // Too large a position may wrap here; the last one is the largest and is checked below.
    positions[found++] = static_cast<uint32_t>(position);
  }
  if (found != nonzeros) refuse_count(nonzeros);
  if (entries.count != 0 && entries[entries.count - 1] == 0) refuse("it ends in a skip");
  if (position >= weights) {
    refuse("position " + std::to_string(position) + " in a tensor of " + std::to_string(weights) + " weights");
  }
  return positions;
}

// Columns, each row opened by the number of columns.
template <typename Entry>
Positions from_columns(const Entries<Entry>& entries, const PackedWeight& packed, int64_t weights,
                       size_t nonzeros) {
  const int64_t rows = packed.shape[0], columns = weights / rows;
  if (columns >= int64_t{1} << (8 * sizeof(Entry)) || rows * (columns + 1) > kMaxWeights) {
    refuse(std::to_string(columns) + " columns are too many for this layout");
  }
  if (entries.count != nonzeros + static_cast<size_t>(rows)) refuse_count(nonzeros);
  Positions positions(nonzeros);
  size_t found = 0;
  int64_t row = -1, last = -1;
  for (size_t i = 0; i < entries.count; ++i) {
    const int64_t entry = entries[i];
    if (entry == columns) {
      if (++row == rows) refuse("more than " + std::to_string(rows) + " rows are marked");
      last = -1;
      continue;
    }
    if (row < 0) refuse("no row is open at its begin");
    if (entry > columns) refuse("column " + std::to_string(entry) + " in rows of " + std::to_string(columns));
    if (entry <= last) refuse("the columns of a row are not in order");
    if (found == nonzeros) refuse_count(nonzeros);
    last = entry;
    positions[found++] = static_cast<uint32_t>(row * columns + entry);
  }
  // Fewer values than promised would mean more marks than rows.
  if (row + 1 != rows || found != nonzeros) refuse("not every row is marked");
  return positions;
}

bool padding_is_zero(const uint8_t* bytes, size_t bits) {
  return bits % 8 == 0 || (bytes[bits / 8] >> (bits % 8)) == 0;
}

Positions from_bitmap(const Entries<uint8_t>& bytes, int64_t weights, size_t nonzeros) {
  const size_t bits = static_cast<size_t>(weights);
  if (bytes.count != (bits + 7) / 8) {
    refuse(std::to_string(bytes.count) + " bytes for " + std::to_string(weights) + " bits");
  }
  if (!padding_is_zero(bytes.bytes, bits)) refuse("bits after the last weight are set");
  Positions positions(nonzeros);
  size_t found = 0;
  for (size_t i = 0; i < bytes.count; ++i) {
    for (unsigned byte = bytes[i]; byte != 0; byte &= byte - 1) {
      if (found == nonzeros) refuse_count(nonzeros);
      positions[found++] = static_cast<uint32_t>(8 * i + static_cast<unsigned>(__builtin_ctz(byte)));
    }
  }
  if (found != nonzeros) refuse_count(nonzeros);
  return positions;
}

// Golomb-Rice: a byte r, r planes of low bits, then the quotients in unary, each ended by a one.
Positions from_rice(const Entries<uint8_t>& bytes, int64_t weights, size_t nonzeros) {
  constexpr unsigned kMaxParameter = 24;
  if (bytes.count == 0) refuse("it is empty");
  const unsigned parameter = bytes[0];
  if (parameter > kMaxParameter) refuse("parameter " + std::to_string(parameter) + " is above 24");
  if (nonzeros == 0) {
    if (parameter != 0 || bytes.count != 1) refuse("it is not the single 0 of an empty tensor");
    return {};
  }
  const size_t plane = (nonzeros + 7) / 8;
  if ((bytes.count - 1) / plane < parameter) refuse("it ends before its bit planes do");
  Positions remainders(nonzeros);
  const uint8_t* at = bytes.bytes + 1;
  for (unsigned p = 0; p < parameter; ++p, at += plane) {
    if (!padding_is_zero(at, nonzeros)) refuse("bits after the last of a plane are set");
    for (size_t e = 0; e < nonzeros; ++e) {
      remainders[e] |= static_cast<uint32_t>((at[e / 8] >> (e % 8)) & 1u) << p;
    }
  }
  const uint8_t* const end = bytes.bytes + bytes.count;
  Positions& positions = remainders;
  size_t found = 0;
  int64_t position = -1, quotient = 0;
  for (; at != end; ++at) {
    if (found == nonzeros) refuse("there are bytes after its last position");
    unsigned byte = *at;
    int used = 0;
    for (; byte != 0; byte &= byte - 1) {
      if (found == nonzeros) refuse("bits after its last position are set");
      const int bit = __builtin_ctz(byte);
      quotient += bit - used;
      used = bit + 1;
      // The quotient is at most eight per byte of the array: this stays far below 2^63.
      position += (quotient << parameter) + positions[found] + 1;
      if (position >= weights) {
        refuse("position " + std::to_string(position) + " in a tensor of " + std::to_string(weights) + " weights");
      }
      positions[found++] = static_cast<uint32_t>(position);
      quotient = 0;
    }
    quotient += 8 - used;
  }
  if (found != nonzeros) refuse_count(nonzeros);
  return positions;
}

}  // namespace

Positions decode_positions(const PackedWeight& packed, int64_t weights, size_t nonzeros) {
  const bool wide = packed.codec == Codec::gap16 || packed.codec == Codec::cols16;
  const Element element = wide ? Element::uint16 : Element::uint8;
  if (packed.index.element != static_cast<int>(element) || packed.index.dims.size() != 1) {
    refuse(std::string("expected one axis of ") + (wide ? "uint16" : "uint8"));
  }
  const auto* bytes = static_cast<const uint8_t*>(packed.index.data);
  const size_t count = packed.index.count();
  const Entries<uint8_t> narrow_entries{bytes, count};
  const Entries<uint16_t> wide_entries{bytes, count};
  switch (packed.codec) {
    case Codec::gap4: {
      size_t entries = 2 * count;
      if (entries != 0 && bytes[count - 1] >> 4 == 0) --entries;
      return from_gaps(Nibbles{bytes, entries}, 15, weights, nonzeros);
    }
    case Codec::gap8:
      return from_gaps(narrow_entries, 255, weights, nonzeros);
    case Codec::gap16:
      return from_gaps(wide_entries, 65535, weights, nonzeros);
    case Codec::cols8:
      return from_columns(narrow_entries, packed, weights, nonzeros);
    case Codec::cols16:
      return from_columns(wide_entries, packed, weights, nonzeros);
    case Codec::bitmap:
      return from_bitmap(narrow_entries, weights, nonzeros);
    case Codec::rice:
      return from_rice(narrow_entries, weights, nonzeros);
    case Codec::dense:
      break;
  }
  refuse("a dense tensor has none");
}

}  // namespace hwprune
