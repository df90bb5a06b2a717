/* Convolutions of every kind with sparse weights; a linear layer is one whose window is its input. */
#include "hwp_taps.h"

typedef void row_maker(const hwp_row_job *job);

static void store(const hwp_row_job *job, hwp_value *y, const int32_t *sums, unsigned count) {
  for (unsigned i = 0; i < count; i++) y[i] = hwp_requantize(sums[i], &job->scale, job->zero);
}

/* Pixels one by one: where there is one, or they lie far apart. */
static void make_pixels(const hwp_row_job *job) {
  const hwp_value *x = job->x;
  for (unsigned i = 0; i < job->width; i++, x += job->stride) {
    const int32_t sum = hwp_sum_one(job, x);
    store(job, job->y + i, &sum, 1);
  }
}

#ifndef HWP_ROW_HELIUM
/* Passes of HWP_PIXELS pixels, and a last one of which a part is stored. That reads beyond the row:
 * memory goes on behind it. */
static void make_passes(const hwp_row_job *job) {
  const unsigned rest = job->width % HWP_PIXELS, step = HWP_PIXELS * job->stride;
  const hwp_value *x = job->x;
  hwp_value *y = job->y;
  unsigned passes = job->passes;
  int32_t sums[HWP_PIXELS];
#ifdef HWP_PASSES_FLOAT
  if (passes) {
    if (job->stride == 1)
      hwp_passes_next(job);
    else
      hwp_passes_second(job);
    x += passes * step;
    y += passes * HWP_PIXELS;
    passes = 0;
    if (!rest) return;
  }
#endif
  for (;; x += step, y += HWP_PIXELS, passes--) {
    if (!passes && !rest) return;
    if (job->stride == 1)
      hwp_sum_next(job, x, sums);
    else
      hwp_sum_second(job, x, sums);
    store(job, y, sums, passes ? HWP_PIXELS : rest);
    if (!passes) return;
  }
}

#endif

/* Ends a list as loops in assembly need it: with a word of 0, at an even place. A tap of weight 0
 * that reads what the last one reads is put before it where there is an odd number. */
static void end_list(const uint32_t *taps, uint32_t *end) {
  if ((end - taps) & 1) {
    end[0] = end[-1] & 0xffffu;
    end[1] = 0;
  } else {
    end[0] = 0;
  }
}

/* Makes a row of which some taps meet what is above the image's first row or below its last one,
 * where the zero point would be. Offsets rise, so they are the first and the last of the list. */
static void make_edge(hwp_row_job *job, int32_t top, const hwp_tensor *input, row_maker *make) {
  const int32_t row_bytes = (int32_t)hwp_row_bytes(input);
  const int32_t least = -top * row_bytes, limit = ((int32_t)input->height - top) * row_bytes;
  const hwp_row_job whole = *job;
  uint32_t *end = (uint32_t *)(uintptr_t)whole.end; /* in network->taps, which is not constant */
  int32_t dropped = 0;
  while (job->taps != end && (int32_t)(*job->taps & 0xffffu) < least)
    dropped += (int32_t)*job->taps++ >> 16;
  while (job->taps != end && (int32_t)(end[-1] & 0xffffu) >= limit)
    dropped += (int32_t)*--end >> 16;
  const uint32_t behind[2] = {end[0], end[1]};
  job->bias += dropped * input->zero;
  job->end = end;
  end_list(job->taps, end);
  make(job);
  end[0] = behind[0], end[1] = behind[1];
  *job = whole;
}

static void clamp_row(const hwp_row_job *job, const hwp_conv2d_parameters *conv) {
  for (unsigned i = 0; i < job->width; i++)
    job->y[i] = hwp_clamp(job->y[i], conv->low + HWP_OFFSET, conv->high + HWP_OFFSET);
}

static row_maker *maker_for(const hwp_row_job *job) {
#ifdef HWP_ROW_HELIUM
  if (job->width > 1) return job->stride == 1 ? hwp_row_next : hwp_row_apart;
  return make_pixels;
#else
  if (job->width == 1 || job->stride > 2) return make_pixels;
#ifdef HWP_PASSES_FLOAT
  if (job->width % HWP_PIXELS == 0) return job->stride == 1 ? hwp_passes_next : hwp_passes_second;
#endif
  return make_passes;
#endif
}

int hwp_conv2d(const hwp_network *network, const hwp_layer *layer, unsigned first, unsigned end) {
  const hwp_conv2d_parameters *conv = layer->parameters;
  const hwp_filters *filters = &conv->filters;
  const hwp_tensor *input = hwp_input_of(network, layer), *output = hwp_output_of(network, layer);
  const int clamps = conv->low > -128 || conv->high < 127;
  const int32_t first_top = (int32_t)(first * conv->stride_rows) - conv->pad_top;
  const int32_t last_top = (int32_t)input->height - conv->kernel_reach;
  const unsigned x_step = conv->stride_rows * hwp_row_bytes(input);
  const unsigned y_step = hwp_row_bytes(output);
  const hwp_value *x = hwp_row(network, input, first_top) - conv->pad_left;
  hwp_value *y = hwp_row(network, output, (int)first);
  hwp_cursor cursor = {filters->index, filters->values, filters->counts, 0, 0};
  unsigned in_group = 0;
  hwp_row_job job;
  job.taps = network->taps;
  job.passes = output->width / HWP_PIXELS;
  job.zero = output->zero;
  job.width = output->width;
  job.stride = conv->stride_columns;
  row_maker *make = maker_for(&job);
  for (unsigned filter = 0; filter < output->channels; filter++) {
    uint32_t *taps_end = filters->decode(filters, &cursor, network->taps);
    if (!taps_end) return HWP_CORRUPT;
    end_list(network->taps, taps_end);
    job.end = taps_end;
    job.bias = conv->bias[filter];
    hwp_prepare(&job.scale, conv->scale[filter]);
    job.x = x;
    job.y = y;
    int32_t top = first_top;
    for (unsigned row = first; row < end; row++) {
      if (top < 0 || top > last_top)
        make_edge(&job, top, input, make);
      else
        make(&job);
      if (clamps) clamp_row(&job, conv);
      job.x += x_step;
      job.y += y_step;
      top += conv->stride_rows;
    }
    y += output->pitch;
    if (++in_group == conv->filters_per_group) {
      in_group = 0;
      x += (unsigned)conv->group_channels * input->pitch;
    }
  }
  return HWP_OK;
}
