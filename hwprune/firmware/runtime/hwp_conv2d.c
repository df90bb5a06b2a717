/* Convolutions of every kind with sparse weights; a linear layer is one whose window is its input. */
#include "hwp_taps.h"

/* One row of one filter's output. */
typedef struct {
  const uint32_t *taps, *end;
  const hwp_value *x; /* the window's corner for the first pixel */
  hwp_value *y;
  unsigned width;
  unsigned stride;
  int32_t bias;
  int32_t zero;
} row_job;

static void make_row(const row_job *job, const hwp_scale *scale) {
  const hwp_value *x = job->x;
  hwp_value *y = job->y;
  unsigned left = job->width;
  if (left == 1) {
    *y = hwp_requantize(hwp_sum_one(job->taps, job->end, x, job->bias), scale, job->zero);
    return;
  }
  while (left >= HWP_PIXELS) {
    int32_t sums[HWP_PIXELS];
    hwp_sum_pixels(job->taps, job->end, x, job->stride, job->bias, sums);
    for (unsigned i = 0; i < HWP_PIXELS; i++) y[i] = hwp_requantize(sums[i], scale, job->zero);
    x += HWP_PIXELS * job->stride;
    y += HWP_PIXELS;
    left -= HWP_PIXELS;
  }
  if (left) { /* all pixels are summed, beyond the row too: memory goes on, and those are dropped */
    int32_t sums[HWP_PIXELS];
    hwp_sum_pixels(job->taps, job->end, x, job->stride, job->bias, sums);
    for (unsigned i = 0; i < left; i++) y[i] = hwp_requantize(sums[i], scale, job->zero);
  }
}

/* Leaves out the taps above the image's first row and below its last one, whose pixels would be the
 * zero point. Offsets rise, so they are the first and the last of the list. */
static void trim(row_job *job, int32_t top, const hwp_tensor *input) {
  const int32_t row_bytes = (int32_t)hwp_row_bytes(input);
  const int32_t least = -top * row_bytes, limit = ((int32_t)input->height - top) * row_bytes;
  int32_t dropped = 0;
  while (job->taps != job->end && (int32_t)(*job->taps & 0xffffu) < least)
    dropped += (int32_t)*job->taps++ >> 16;
  while (job->taps != job->end && (int32_t)(job->end[-1] & 0xffffu) >= limit)
    dropped += (int32_t)*--job->end >> 16;
  job->bias += dropped * input->zero;
}

static void clamp_row(const row_job *job, const hwp_conv2d_parameters *conv) {
  for (unsigned i = 0; i < job->width; i++)
    job->y[i] = hwp_clamp(job->y[i], conv->low + HWP_OFFSET, conv->high + HWP_OFFSET);
}

int hwp_conv2d(const hwp_network *network, const hwp_layer *layer, unsigned first, unsigned end) {
  const hwp_conv2d_parameters *conv = layer->parameters;
  const hwp_filters *filters = &conv->filters;
  const hwp_tensor *input = hwp_input_of(network, layer), *output = hwp_output_of(network, layer);
  const int clamps = conv->low > -128 || conv->high < 127;
  hwp_cursor cursor = {filters->index, filters->values, filters->counts, 0, 0};
  unsigned in_group = 0, group_offset = 0;
  row_job job;
  job.width = output->width;
  job.stride = conv->stride_columns;
  job.zero = output->zero;
  for (unsigned filter = 0; filter < output->channels; filter++) {
    uint32_t *taps_end = filters->decode(filters, &cursor, network->taps);
    hwp_scale scale;
    if (!taps_end) return HWP_CORRUPT;
    hwp_prepare(&scale, conv->scale[filter]);
    for (unsigned row = first; row < end; row++) {
      const int32_t top = (int32_t)(row * conv->stride_rows) - conv->pad_top;
      job.taps = network->taps;
      job.end = taps_end;
      job.bias = conv->bias[filter];
      if (top < 0 || top + conv->kernel_reach > input->height) trim(&job, top, input);
      job.x = hwp_row(network, input, top) + group_offset - conv->pad_left;
      job.y = hwp_row(network, output, (int)row) + filter * output->pitch;
      make_row(&job, &scale);
      if (clamps) clamp_row(&job, conv);
    }
    if (++in_group == conv->filters_per_group) {
      in_group = 0;
      group_offset += (unsigned)conv->group_channels * input->pitch;
    }
  }
  return HWP_OK;
}
