/* The schedule, the windows, and what goes in and out. */
#include "hwp_internal.h"

typedef uint32_t __attribute__((may_alias)) word;

/* Windows begin at words, and most rows are whole words. */
static void move_down(hwp_value *to, const hwp_value *from, unsigned bytes) {
  if (!HWP_FLOAT && !(((uintptr_t)to | (uintptr_t)from) & 3u))
    for (; bytes >= 16; bytes -= 16, to += 16, from += 16) {
      word *a = (word *)(void *)to;
      const word *b = (const word *)(const void *)from;
      const word b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
      a[0] = b0, a[1] = b1, a[2] = b2, a[3] = b3;
    }
  for (; bytes; bytes--) *to++ = *from++;
}

/* Makes room in the window of a tensor for rows up to `end`: the oldest ones go. */
static void slide(const hwp_network *network, const hwp_tensor *tensor, unsigned done,
                  unsigned end) {
  uint16_t *first = network->first + tensor->window;
  const unsigned begin = *first;
  if (end - begin <= tensor->rows) return;
  const unsigned row_bytes = hwp_row_bytes(tensor), next = end - tensor->rows;
  hwp_value *base = network->arena + tensor->offset;
  if (done > next)
    move_down(base - tensor->gap, base - tensor->gap + (next - begin) * row_bytes,
              (done - next) * row_bytes + tensor->gap);
  *first = (uint16_t)next;
}

static void fill_gaps(const hwp_network *network, const hwp_tensor *tensor, unsigned first,
                      unsigned end) {
  if (!tensor->gap) return;
  hwp_value *at = hwp_row(network, tensor, (int)first) - tensor->gap;
  for (unsigned count = (end - first) * tensor->channels + 1; count; count--) {
    for (unsigned i = 0; i < tensor->gap; i++) at[i] = (hwp_value)tensor->zero;
    at += tensor->pitch;
  }
}

int hwp_run(const hwp_network *network, hwp_read_row *read, void *context) {
  network->source->read = read;
  network->source->context = context;
  for (unsigned i = 0; i < network->window_count; i++) network->first[i] = 0;
  for (unsigned i = 0; i < network->layer_count; i++) network->done[i] = 0;
  for (unsigned step = 0; step < network->steps; step++) {
    const unsigned index = network->schedule[step];
    const hwp_layer *layer = network->layers + index;
    const hwp_tensor *output = hwp_output_of(network, layer);
    const unsigned begin = network->done[index], left = layer->height - begin;
    const unsigned end = begin + (left < layer->rows ? left : layer->rows);
#ifdef HWP_TRACE
    hwp_trace_begin(index);
#endif
    const int sums = layer->height != output->height;
    if (!sums) slide(network, output, begin, end);
    const int status = layer->run(network, layer, begin, end);
    if (status != HWP_OK) return status;
    if (!sums)
      fill_gaps(network, output, begin, end);
    else if (end == layer->height)
      fill_gaps(network, output, 0, output->height);
    network->done[index] = (uint16_t)end;
#ifdef HWP_TRACE
    hwp_trace_end(network, index, begin, end);
#endif
  }
  return HWP_OK;
}

int hwp_input(const hwp_network *network, const hwp_layer *layer, unsigned first, unsigned end) {
  const hwp_tensor *output = hwp_output_of(network, layer);
  for (unsigned row = first; row < end; row++) {
    hwp_value *pixels = hwp_row(network, output, (int)row);
    network->source->read(network->source->context, row, (hwp_element *)pixels, output->pitch);
#if HWP_UNSIGNED
    for (unsigned i = 0; i < hwp_row_bytes(output) - output->gap; i++) pixels[i] ^= 0x80u;
#endif
  }
  return HWP_OK;
}

void hwp_read_array(void *context, unsigned row, hwp_element *pixels, unsigned pitch) {
  const hwp_array *array = context;
  const hwp_element *from = array->values + (uint32_t)row * array->width;
  for (unsigned channel = 0; channel < array->channels; channel++) {
    for (unsigned x = 0; x < array->width; x++) pixels[x] = from[x];
    from += (uint32_t)array->height * array->width;
    pixels += pitch;
  }
}

void hwp_copy_out(const hwp_network *network, unsigned index, hwp_element *values) {
  const hwp_tensor *tensor = network->tensors + index;
  for (unsigned channel = 0; channel < tensor->channels; channel++)
    for (unsigned row = 0; row < tensor->height; row++) {
      const hwp_value *from = hwp_row(network, tensor, (int)row) + channel * tensor->pitch;
      for (unsigned x = 0; x < tensor->width; x++) *values++ = (hwp_element)(from[x] - HWP_OFFSET);
    }
}
