/* Decoders: the nonzeros of one filter after the other, as taps. Each bounds all that it reads. */
#include "hwp_internal.h"

/* Turns columns, which only grow within a filter, into offsets. */
typedef struct {
  uint32_t row; /* the first column of the kernel row */
  uint32_t row_offset;
} hwp_columns;

HWP_INLINE uint32_t offset_of(const hwp_filters *filters, hwp_columns *columns, uint32_t column) {
  while (column - columns->row >= filters->row_columns) {
    columns->row += filters->row_columns;
    columns->row_offset += filters->row_step;
  }
  const uint32_t in_row = column - columns->row;
  const uint32_t channel = in_row * filters->reciprocal >> 16;
  const uint32_t x = in_row - channel * filters->kernel_width;
  return channel * filters->pitch + x * filters->dilation + columns->row_offset;
}

HWP_INLINE uint32_t tap_of(int weight, uint32_t offset) {
  return (uint32_t)weight << 16 | offset;
}

/* How many nonzeros the next filter has; more than columns where the stream is corrupt. */
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

uint32_t *hwp_decode_rice(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps) {
  const uint8_t *end = filters->index + filters->index_bytes;
  hwp_columns columns = {0, 0};
  uint32_t column = 0, bits = cursor->bits;
  unsigned held = cursor->held, count = next_count(filters, cursor);
  const unsigned rice = filters->rice;
  if (!has_values(filters, cursor, count)) return NULL;
  for (; count; count--) {
    for (;;) { /* the quotient: as many zeros as it says, then a one */
      if (!held) {
        if (cursor->index == end) return NULL;
        bits = (uint32_t)*cursor->index++ << 24;
        held = 8;
      }
      held--;
      const uint32_t before = bits;
      bits <<= 1;
      if (before >> 31) break;
      column += 1u << rice;
      if (column >= filters->columns) return NULL;
    }
    if (rice) {
      while (held < rice) {
        if (cursor->index == end) return NULL;
        bits |= (uint32_t)*cursor->index++ << (24 - held);
        held += 8;
      }
      column += bits >> (32 - rice);
      bits <<= rice;
      held -= rice;
    }
    if (column >= filters->columns) return NULL;
    *taps++ = tap_of(*cursor->value++, offset_of(filters, &columns, column));
    column++;
  }
  cursor->bits = bits;
  cursor->held = held;
  return taps;
}

uint32_t *hwp_decode_gap8(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps) {
  const uint8_t *end = filters->index + filters->index_bytes;
  hwp_columns columns = {0, 0};
  uint32_t column = 0;
  unsigned count = next_count(filters, cursor);
  if (!has_values(filters, cursor, count)) return NULL;
  while (count) {
    if (cursor->index == end) return NULL;
    const unsigned gap = *cursor->index++;
    column += gap;
    if (gap == 255) continue;
    if (column >= filters->columns) return NULL;
    *taps++ = tap_of(*cursor->value++, offset_of(filters, &columns, column));
    column++;
    count--;
  }
  return taps;
}

uint32_t *hwp_decode_bitmap(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps) {
  const int8_t *values_end = filters->values + filters->value_bytes;
  const uint32_t *last = taps + filters->most_taps;
  hwp_columns columns = {0, 0};
  const uint32_t bytes = (filters->columns + 7u) >> 3;
  if (filters->index_bytes - (uint32_t)(cursor->index - filters->index) < bytes) return NULL;
  for (uint32_t first = 0; first < filters->columns; first += 8) {
    uint32_t column = first;
    for (unsigned mask = *cursor->index++; mask; mask >>= 1, column++) {
      if (!(mask & 1)) continue;
      if (cursor->value == values_end || column >= filters->columns || taps == last) return NULL;
      *taps++ = tap_of(*cursor->value++, offset_of(filters, &columns, column));
    }
  }
  return taps;
}

uint32_t *hwp_decode_dense(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps) {
  const int8_t *values_end = filters->values + filters->value_bytes;
  const uint32_t *last = taps + filters->most_taps;
  hwp_columns columns = {0, 0};
  if (values_end - cursor->value < filters->columns) return NULL;
  for (uint32_t column = 0; column < filters->columns; column++) {
    const int weight = *cursor->value++;
    if (!weight) continue;
    if (taps == last) return NULL;
    *taps++ = tap_of(weight, offset_of(filters, &columns, column));
  }
  return taps;
}

uint32_t *hwp_decode_words(const hwp_filters *filters, hwp_cursor *cursor, uint32_t *taps) {
  hwp_columns columns = {0, 0};
  const uint32_t most = offset_of(filters, &columns, filters->columns - 1u);
  const unsigned count = next_count(filters, cursor);
  if (count > filters->most_taps ||
      count > (filters->index_bytes - (uint32_t)(cursor->index - filters->index)) / 4)
    return NULL;
  for (unsigned i = 0; i < count; i++) {
    const uint8_t *at = cursor->index;
    const uint32_t tap = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
                         (uint32_t)at[3] << 24;
    if ((tap & 0xffffu) > most) return NULL;
    *taps++ = tap;
    cursor->index += 4;
  }
  return taps;
}
