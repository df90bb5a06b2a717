/* Convolutions of every kind with sparse weights; a linear layer is one whose window is its input. */
#include "hwp_taps.h"

typedef void row_maker(hwp_row_job *job);

/* Pixels one by one: where there is one, or they lie far apart. */
static void make_pixels(hwp_row_job *job) {
  for (unsigned i = job->width; i; i--, job->x += job->stride)
    *job->y++ = hwp_requantize(hwp_sum_one(job, job->x), job->multiplier, job->rounding);
}

#ifndef HWP_ROW_HELIUM
/* Passes of HWP_PIXELS pixels, and a last one of which a part is stored. That reads beyond the row:
 * memory goes on behind it. */
static void make_passes(hwp_row_job *job) {
  const unsigned rest = job->width % HWP_PIXELS;
  row_maker *const passes = job->stride == 1 ? hwp_passes_next : hwp_passes_second;
  if (job->x != job->x_end) passes(job);
  hwp_value *const y = job->y;
  hwp_value made[HWP_PIXELS];
  job->y = made;
  job->x_end += HWP_PIXELS * job->stride;
  passes(job);
  for (unsigned i = 0; i < rest; i++) y[i] = made[i];
}
#endif

/* Makes a list ready to be read: a word of 0 is behind it. */
static void take_list(hwp_row_job *job, const uint32_t *taps, const uint32_t *end) {
  job->taps = taps;
  job->end = end;
  job->odd = (uint32_t)(end - taps) & 1u;
  job->list = taps + job->odd;
}

/* Makes a row of which some taps meet what is above the image's first row or below its last one,
 * where the zero point would be. Offsets rise, so they are the first and the last of the list, and
 * those between them go to `room`, which may be where the list is. */
static __attribute__((noinline)) void make_edge(hwp_row_job *job, int32_t top, uint32_t *room,
                                                const hwp_tensor *input, row_maker *make) {
  const int32_t row_bytes = (int32_t)hwp_row_bytes(input);
  const int32_t least = -top * row_bytes, limit = ((int32_t)input->height - top) * row_bytes;
  const uint32_t *const taps = job->taps, *const end = job->end, *from = taps, *to = end;
  const hwp_sum bias = job->bias;
  for (; from != to && (int32_t)(*from & 0xffffu) < least; from++)
    job->bias += (hwp_sum)(((int32_t)*from >> 16) * input->zero);
  for (; to != from && (int32_t)(to[-1] & 0xffffu) >= limit; to--)
    job->bias += (hwp_sum)(((int32_t)to[-1] >> 16) * input->zero);
  uint32_t *begin = room + (taps == room ? from - taps : 0), *mark = begin + (to - from);
  for (uint32_t *at = begin; taps != room && at != mark;) *at++ = *from++;
  const uint32_t behind = *mark;
  *mark = 0;
  take_list(job, begin, mark);
  (begin == mark ? make_pixels : make)(job);
  *mark = behind;
  take_list(job, taps, end);
  job->bias = bias;
}

static void clamp_row(hwp_value *y, unsigned width, const hwp_conv2d_parameters *conv) {
  for (unsigned i = 0; i < width; i++)
    y[i] = hwp_clamp(y[i], conv->low + HWP_OFFSET, conv->high + HWP_OFFSET);
}

static row_maker *maker_for(const hwp_row_job *job) {
#ifdef HWP_ROW_HELIUM
  if (job->width > 1) return job->stride == 1 ? hwp_row_next : hwp_row_apart;
  return make_pixels;
#else
  if (job->width == 1 || job->stride > 2) return make_pixels;
  if (job->width % HWP_PIXELS) return make_passes;
  return job->stride == 1 ? hwp_passes_next : hwp_passes_second;
#endif
}

int hwp_conv2d(const hwp_network *network, const hwp_layer *layer, unsigned first, unsigned end) {
  const hwp_conv2d_parameters *conv = layer->parameters;
  const hwp_filters *filters = &conv->filters;
  const hwp_tensor *input = hwp_input_of(network, layer), *output = hwp_output_of(network, layer);
  const int clamps = conv->low > HWP_LOWEST || conv->high < HWP_HIGHEST;
  const int32_t first_top = (int32_t)(first * conv->stride_rows) - conv->pad_top;
  const int32_t last_top = (int32_t)input->height - conv->kernel_reach;
  const unsigned x_step = conv->stride_rows * hwp_row_bytes(input);
  const unsigned y_step = hwp_row_bytes(output);
  const unsigned passes_bytes = output->width / HWP_PIXELS * HWP_PIXELS * conv->stride_columns;
  const hwp_value *x_first = hwp_row(network, input, first_top) - conv->pad_left;
  hwp_value *y_first = hwp_row(network, output, (int)first);
  uint32_t *const room = network->taps;
  hwp_cursor cursor = {room, filters->index, filters->values, filters->counts, 0, 0};
  unsigned in_group = 0;
  hwp_row_job job;
  job.rounding = hwp_rounding(output->zero);
  job.width = output->width;
  job.stride = conv->stride_columns;
  row_maker *make = maker_for(&job);
  for (unsigned filter = 0; filter < output->channels; filter++) {
    const uint32_t *list_end = filters->decode(filters, &cursor, room, first == 0);
    if (!list_end) return HWP_CORRUPT;
    if (cursor.taps == room) {
      uint32_t *mark = room + (list_end - room);
      if (mark == room) *mark++ = 0; /* a list has a tap, if only of weight 0 */
      *mark = 0;
      list_end = mark;
    }
    take_list(&job, cursor.taps, list_end);
    job.bias = conv->bias[filter];
    job.multiplier = conv->multiplier[filter];
    const hwp_value *x = x_first;
    hwp_value *y = y_first;
    int32_t top = first_top;
    for (unsigned row = first; row < end; row++) {
      job.x = x;
      job.y = y;
      job.x_end = x + passes_bytes;
      if (top < 0 || top > last_top)
        make_edge(&job, top, room, input, make);
      else
        make(&job);
      if (clamps) clamp_row(y, output->width, conv);
      x += x_step;
      y += y_step;
      top += conv->stride_rows;
    }
    y_first += output->pitch;
    if (++in_group == conv->filters_per_group) {
      in_group = 0;
      x_first += (unsigned)conv->group_channels * input->pitch;
    }
  }
  return HWP_OK;
}
