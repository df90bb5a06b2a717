/* Decoders: the nonzeros of one filter after the other, as taps. Each bounds all that it reads.
 *
 * In two loops, each of which a core has registers for: the first one writes weights and columns,
 * the second one puts offsets in the columns' place. */
#include "hwp_internal.h"

HWP_INLINE uint32_t tap_of(int weight, unsigned shift, uint32_t place) {
  return (uint32_t)weight << shift | place;
}

/* Turns columns, which only grow within a filter, into offsets. Returns the end. */
static uint32_t *placed(const hwp_filters *filters, uint32_t *taps, uint32_t *end) {
  const uint32_t reciprocal = filters->reciprocal, row_columns = filters->row_columns;
  const uint32_t skip = (uint32_t)filters->channel_skip, dilation = filters->dilation;
  uint32_t row = 0, row_offset = 0; /* the kernel row's first column, and where that lies */
  for (; taps != end; taps++) {
    const uint32_t tap = *taps;
    uint32_t column = (tap & 0xffffu) - row;
    for (; column >= row_columns; column -= row_columns) {
      row += row_columns;
      row_offset += filters->row_step;
    }
    const uint32_t channel = column * reciprocal >> 16;
    *taps = (tap & 0xffff0000u) | (column * dilation + channel * skip + row_offset);
  }
  return end;
}

/* How many nonzeros the next filter has; too many where the stream is corrupt. */
static unsigned next_count(const hwp_filters *filters, hwp_cursor *cursor) {
  const uint8_t *end = filters->counts + filters->count_bytes;
  unsigned count = 0, part;
  do {
    if (cursor->count == end) return UINT16_MAX + 1u;
    part = *cursor->count++;
    count += part;
  } while (part == 255 && count <= UINT16_MAX);
  return count;
}

/* As many values as that are there to be read. */
static int has_values(const hwp_filters *filters, const hwp_cursor *cursor, unsigned count) {
  return count <= filters->most_taps &&
         count <= filters->value_bytes - (uint32_t)(cursor->value - filters->values);
}

/* Zeros before the highest one of a word that is not 0. */
HWP_INLINE unsigned leading_zeros(uint32_t bits) {
#if defined(__ARM_FEATURE_CLZ) || !(defined(__arm__) || defined(__riscv))
  return (unsigned)__builtin_clz(bits);
#else /* codes are short: no table, no library */
  unsigned count = 0;
  for (; !(bits >> 31); bits <<= 1) count++;
  return count;
#endif
}

const uint32_t *hwp_decode_rice(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps,
                                int first) {
  (void)first;
  const unsigned count = next_count(filters, cursor), rice = filters->rice, shift = filters->shift;
  if (!has_values(filters, cursor, count)) return NULL;
  const uint8_t *index = cursor->index, *index_end = filters->index + filters->index_bytes;
  const int8_t *value = cursor->value;
  const uint32_t columns = filters->columns;
  uint32_t column = 0, bits = cursor->bits, *at = taps, *end = taps + count;
  unsigned held = cursor->held;
  while (at != end) {
    for (; held <= 24 && index != index_end; held += 8) bits |= (uint32_t)*index++ << (24 - held);
    /* The quotient: as many zeros as it says, then a one. A long one fills the word with zeros. */
    if (!bits) {
      if (index == index_end) return NULL;
      column += held << rice;
      held = 0;
      if (column >= columns) return NULL;
      continue;
    }
    const unsigned zeros = leading_zeros(bits);
    bits = bits << zeros << 1;
    held -= zeros + 1;
    column += zeros << rice;
    if (held < rice) {
      for (; held <= 24 && index != index_end; held += 8) bits |= (uint32_t)*index++ << (24 - held);
      if (held < rice) return NULL;
    }
    column += bits >> 1 >> (31 - rice);
    bits <<= rice;
    held -= rice;
    if (column >= columns) return NULL;
    *at++ = tap_of(*value++, shift, column++);
  }
  cursor->value = value;
  cursor->index = index;
  cursor->bits = bits;
  cursor->held = held;
  return placed(filters, taps, end);
}

const uint32_t *hwp_decode_gap8(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps,
                                int first) {
  const unsigned count = next_count(filters, cursor), shift = filters->shift;
  if (!has_values(filters, cursor, count)) return NULL;
  const uint8_t *index = cursor->index, *index_end = filters->index + filters->index_bytes;
  const int8_t *value = cursor->value;
  const uint32_t last = filters->last;
  uint32_t offset = 0, *at = taps, *end = taps + count;
  (void)first;
  while (at != end) {
    if (index == index_end) return NULL;
    const unsigned gap = *index++;
    offset += gap;
    if (gap == 255) continue;
    if (offset > last) return NULL;
    *at++ = tap_of(*value++, shift, offset++);
  }
  cursor->value = value;
  cursor->index = index;
  return end;
}

const uint32_t *hwp_decode_bitmap(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps,
                                  int first) {
  (void)first;
  const int8_t *value = cursor->value, *values_end = filters->values + filters->value_bytes;
  const uint32_t *last = taps + filters->most_taps;
  const uint32_t bytes = (filters->columns + 7u) >> 3;
  const unsigned shift = filters->shift;
  uint32_t *at = taps;
  if (filters->index_bytes - (uint32_t)(cursor->index - filters->index) < bytes) return NULL;
  for (uint32_t begin = 0; begin < filters->columns; begin += 8) {
    uint32_t column = begin;
    for (unsigned mask = *cursor->index++; mask; mask >>= 1, column++) {
      if (!(mask & 1)) continue;
      if (value == values_end || column >= filters->columns || at == last) return NULL;
      *at++ = tap_of(*value++, shift, column);
    }
  }
  cursor->value = value;
  return placed(filters, taps, at);
}

const uint32_t *hwp_decode_dense(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps,
                                 int first) {
  (void)first;
  const int8_t *values_end = filters->values + filters->value_bytes;
  const uint32_t *last = taps + filters->most_taps;
  const unsigned shift = filters->shift;
  uint32_t *at = taps;
  if (values_end - cursor->value < filters->columns) return NULL;
  for (uint32_t column = 0; column < filters->columns; column++) {
    const int weight = *cursor->value++;
    if (!weight) continue;
    if (at == last) return NULL;
    *at++ = tap_of(weight, shift, column);
  }
  return placed(filters, taps, at);
}

const uint32_t *hwp_decode_words(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps,
                                 int first) {
  const unsigned count = next_count(filters, cursor);
  const uint32_t *at = (const uint32_t *)(const void *)cursor->index, *end = at + count;
  (void)taps;
  if (count >= (filters->index_bytes - (uint32_t)(cursor->index - filters->index)) / 4) return NULL;
  if (first) {
    if (!count || count > filters->most_taps || *end) return NULL;
    for (const uint32_t *tap = at; tap != end; tap++)
      if ((*tap & 0xffffu) > filters->last) return NULL;
  }
  cursor->taps = at;
  cursor->index = (const uint8_t *)(end + 1);
  return end;
}
