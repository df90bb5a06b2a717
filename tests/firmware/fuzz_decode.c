/* Decodes random streams of every length, each in memory of exactly its own size. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hwp.h"

static uint32_t state = 1;
static uint32_t next(uint32_t below) {
  state = state * 1664525u + 1013904223u;
  return (state >> 8) % below;
}

static void *random_bytes(uint32_t size, uint32_t small) {
  uint8_t *bytes = malloc(size ? size : 1);
  for (uint32_t i = 0; i < size; i++) bytes[i] = (uint8_t)(next(4) ? next(small) : next(256));
  return size ? realloc(bytes, size) : bytes;
}

int main(void) {
  static hwp_decoder *const decoders[] = {hwp_decode_rice, hwp_decode_gap8, hwp_decode_bitmap,
                                          hwp_decode_dense, hwp_decode_words};
  unsigned refused = 0, decoded = 0;
  for (unsigned round = 0; round < 20000; round++) {
    const unsigned width = 1 + next(4), channels = 1 + next(6), rows = 1 + next(4);
    hwp_filters filters = {0};
    filters.decode = decoders[round % 5];
    filters.index_bytes = next(60);
    filters.value_bytes = next(60);
    filters.count_bytes = next(8);
    uint8_t *index = random_bytes(filters.index_bytes, filters.decode == hwp_decode_words ? 2 : 12);
    int8_t *values = random_bytes(filters.value_bytes, 256);
    uint8_t *counts = random_bytes(filters.count_bytes, 8);
    filters.index = index;
    filters.values = values;
    filters.counts = counts;
    filters.reciprocal = (65536u + width - 1) / width;
    filters.columns = (uint16_t)(width * channels * rows);
    filters.row_columns = (uint16_t)(width * channels);
    filters.channel_skip = (int16_t)next(5);
    const unsigned pitch = width + (unsigned)filters.channel_skip;
    filters.row_step = (uint16_t)(channels * pitch);
    filters.dilation = 1;
    filters.rice = (uint8_t)next(16);
    filters.shift = (uint8_t)(16 + next(9));
    filters.most_taps = (uint16_t)(1 + next(filters.columns));
    uint32_t *taps = malloc(filters.most_taps * sizeof *taps);
    hwp_cursor cursor = {taps, filters.index, filters.values, filters.counts, 0, 0};
    const uint32_t most = (rows - 1) * filters.row_step + (channels - 1) * pitch + width - 1;
    filters.last = (uint16_t)most;
    for (unsigned filter = 0; filter < 4; filter++) {
      const uint32_t *end = filters.decode(&filters, &cursor, taps, 1);
      if (!end) {
        refused++;
        break;
      }
      decoded++;
      for (const uint32_t *tap = cursor.taps; tap != end; tap++)
        if ((*tap & 0xffffu) > most) return 1;
    }
    free(taps);
    free(index);
    free(values);
    free(counts);
  }
  printf("%u %u\n", refused, decoded);
  return 0;
}
