/* Decodes streams of every length, each in memory of exactly its own size: a libFuzzer target with
 * Clang (HWPRUNE_LIBFUZZER); otherwise main() makes random ones, always the same. */
#include <stdio.h>
#include <stdlib.h>

#include "hwp.h"

static unsigned refused = 0, decoded = 0;
static const uint8_t *input;
static size_t input_left;

static uint32_t byte(void) {
  if (!input_left) return 0;
  input_left--;
  return *input++;
}

/* Memory of exactly that size, so that a read behind it is found. */
static void *stream(uint32_t size) {
  uint8_t *bytes = malloc(size ? size : 1);
  for (uint32_t i = 0; i < size; i++) bytes[i] = (uint8_t)byte();
  return bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static hwp_decoder *const decoders[] = {hwp_decode_rice, hwp_decode_gap8, hwp_decode_bitmap,
                                          hwp_decode_dense, hwp_decode_words};
  input = data;
  input_left = size;
  const unsigned width = 1 + byte() % 4, channels = 1 + byte() % 6, rows = 1 + byte() % 4;
  hwp_filters filters = {0};
  filters.decode = decoders[byte() % 5];
  filters.index_bytes = byte() % 60;
  filters.value_bytes = byte() % 60;
  filters.count_bytes = byte() % 8;
  filters.reciprocal = (65536u + width - 1) / width;
  filters.columns = (uint16_t)(width * channels * rows);
  filters.row_columns = (uint16_t)(width * channels);
  filters.channel_skip = (int16_t)(byte() % 5);
  const unsigned pitch = width + (unsigned)filters.channel_skip;
  filters.row_step = (uint16_t)(channels * pitch);
  filters.dilation = 1;
  filters.rice = (uint8_t)(byte() % 16);
  filters.shift = (uint8_t)(16 + byte() % 9);
  filters.most_taps = (uint16_t)(1 + byte() % filters.columns);
  uint8_t *index = stream(filters.index_bytes);
  int8_t *values = stream(filters.value_bytes);
  uint8_t *counts = stream(filters.count_bytes);
  filters.index = index;
  filters.values = values;
  filters.counts = counts;
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
      if ((*tap & 0xffffu) > most) abort();
  }
  free(taps);
  free(index);
  free(values);
  free(counts);
  return 0;
}

#ifndef HWPRUNE_LIBFUZZER
static uint32_t state = 1;
static uint32_t next(uint32_t below) {
  state = state * 1664525u + 1013904223u;
  return (state >> 8) % below;
}

int main(void) {
  for (unsigned round = 0; round < 20000; round++) {
    uint8_t bytes[160];
    for (unsigned i = 0; i < 11; i++) bytes[i] = (uint8_t)next(256);
    const unsigned words = bytes[3] % 5 == 4, index_end = 11 + bytes[4] % 60u;
    const unsigned values_end = index_end + bytes[5] % 60u;
    for (unsigned i = 11; i < sizeof bytes; i++) {
      const uint32_t small = i < index_end ? (words ? 2 : 12) : i < values_end ? 256 : 8;
      bytes[i] = (uint8_t)(next(4) ? next(small) : next(256));
    }
    LLVMFuzzerTestOneInput(bytes, sizeof bytes);
  }
  printf("%u %u\n", refused, decoded);
  return 0;
}
#endif
