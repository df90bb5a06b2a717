/* The layers without weights. */
#include "hwp_internal.h"

#if !HWP_FLOAT
/* value / 64, to the nearest, ties to even. */
HWP_INLINE int32_t rounded_64th(int32_t value) {
  const int32_t quotient = value >> 6;
  return (value + 31 + (quotient & 1)) >> 6;
}
#endif

int hwp_add(const hwp_network *network, const hwp_layer *layer, unsigned first, unsigned end) {
  const hwp_add_parameters *add = layer->parameters;
  const hwp_tensor *output = hwp_output_of(network, layer);
  const hwp_tensor *left = hwp_input_of(network, layer);
  const hwp_tensor *right = network->tensors + layer->input[1];
  const int clamps = add->low > HWP_LOWEST || add->high < HWP_HIGHEST;
#if HWP_FLOAT
#define ADDED(a, b) ((a) + (b))
#else
#define ADDED(a, b) hwp_saturate(rounded_64th(left_ratio * (a) + right_ratio * (b) + constant))
  const int32_t left_ratio = add->ratio[0], right_ratio = add->ratio[1];
  /* All that does not depend on the pixels, the output's zero point included. */
  const int32_t constant =
      output->zero * 64 - left_ratio * left->zero - right_ratio * right->zero;
#endif
  for (unsigned row = first; row < end; row++) {
    const hwp_value *a = hwp_row(network, left, (int)row);
    const hwp_value *b = hwp_row(network, right, (int)row);
    hwp_value *y = hwp_row(network, output, (int)row);
    for (unsigned channel = 0; channel < output->channels; channel++) {
      for (unsigned x = 0; x < output->width; x++)
        y[x] = ADDED(a[x], b[x]);
      for (unsigned x = 0; clamps && x < output->width; x++)
        y[x] = hwp_clamp(y[x], add->low + HWP_OFFSET, add->high + HWP_OFFSET);
      a += left->pitch;
      b += right->pitch;
      y += output->pitch;
    }
  }
  return HWP_OK;
}

/* A window of pixels of one channel, cut at the image's edges. */
typedef struct {
  const hwp_value *at;
  unsigned rows, columns, row_bytes;
} pool_window;

typedef hwp_value pool_rule(const pool_window *window, const hwp_pool_parameters *pool,
                            const hwp_tensor *input, const hwp_tensor *output);

static void cut(int from, unsigned kernel, unsigned size, int *begin, int *end) {
  *begin = from < 0 ? 0 : from;
  *end = from + (int)kernel > (int)size ? (int)size : from + (int)kernel;
}

static int pool_rows(const hwp_network *network, const hwp_layer *layer, unsigned first,
                     unsigned end, pool_rule *rule) {
  const hwp_pool_parameters *pool = layer->parameters;
  const hwp_tensor *input = hwp_input_of(network, layer), *output = hwp_output_of(network, layer);
  for (unsigned row = first; row < end; row++) {
    int top, bottom;
    cut((int)(row * pool->stride_rows) - pool->pad_top, pool->kernel_rows, input->height, &top,
        &bottom);
    const hwp_value *from = hwp_row(network, input, top);
    hwp_value *y = hwp_row(network, output, (int)row);
    for (unsigned channel = 0; channel < output->channels; channel++) {
      for (unsigned x = 0; x < output->width; x++) {
        int left, right;
        cut((int)(x * pool->stride_columns) - pool->pad_left, pool->kernel_columns, input->width,
            &left, &right);
        const pool_window window = {from + left, (unsigned)(bottom - top), (unsigned)(right - left),
                                    hwp_row_bytes(input)};
        y[x] = rule(&window, pool, input, output);
      }
      from += input->pitch;
      y += output->pitch;
    }
  }
  return HWP_OK;
}

static hwp_value largest(const pool_window *window, const hwp_pool_parameters *pool,
                         const hwp_tensor *input, const hwp_tensor *output) {
  const hwp_value *at = window->at;
  hwp_sum most = *at;
  (void)pool, (void)input, (void)output;
  for (unsigned row = 0; row < window->rows; row++, at += window->row_bytes)
    for (unsigned x = 0; x < window->columns; x++)
      if (at[x] > most) most = at[x];
  return (hwp_value)most;
}

static hwp_value average(const pool_window *window, const hwp_pool_parameters *pool,
                         const hwp_tensor *input, const hwp_tensor *output) {
  const hwp_value *at = window->at;
  const unsigned count = window->rows * window->columns;
  hwp_sum sum = (hwp_sum)(-(int32_t)count * input->zero);
  for (unsigned row = 0; row < window->rows; row++, at += window->row_bytes)
    for (unsigned x = 0; x < window->columns; x++) sum += at[x];
  /* Two roundings: volatile keeps a compiler from fusing product and sum into one. */
  const volatile float product = (float)sum * pool->scale[pool->count_pads ? 0 : count - 1];
#if HWP_FLOAT
  (void)output;
  return product;
#else
  const int32_t zero = output->zero - HWP_OFFSET;
  return hwp_saturate(hwp_round(product + (float)zero) + HWP_OFFSET);
#endif
}

int hwp_max_pool(const hwp_network *network, const hwp_layer *layer, unsigned first,
                 unsigned end) {
  return pool_rows(network, layer, first, end, largest);
}

int hwp_average_pool(const hwp_network *network, const hwp_layer *layer, unsigned first,
                     unsigned end) {
  return pool_rows(network, layer, first, end, average);
}

#if HWP_FLOAT
#define SHIFTED(sum, shift) (sum)
#else
#define SHIFTED(sum, shift) (int32_t)((uint32_t)(sum) << (shift))
#endif

int hwp_global_pool(const hwp_network *network, const hwp_layer *layer, unsigned first,
                    unsigned end) {
  const hwp_global_pool_parameters *pool = layer->parameters;
  const hwp_tensor *input = hwp_input_of(network, layer), *output = hwp_output_of(network, layer);
  const hwp_value *channel_begin = hwp_row(network, input, (int)first);
  hwp_value *y = hwp_row(network, output, 0);
  const int32_t rounding = hwp_rounding(output->zero);
  for (unsigned channel = 0; channel < output->channels; channel++) {
    const hwp_value *at = channel_begin;
    hwp_sum sum = first ? pool->sums[channel]
                        : (hwp_sum)(-(int32_t)input->height * input->width * input->zero);
    for (unsigned row = first; row < end; row++, at += hwp_row_bytes(input))
      for (unsigned x = 0; x < input->width; x++) sum += at[x];
    if (end < input->height)
      pool->sums[channel] = sum;
    else
      *y = hwp_requantize(SHIFTED(sum, pool->shift), pool->multiplier, rounding);
    channel_begin += input->pitch;
    y += output->pitch;
  }
  return HWP_OK;
}

#if HWP_FLOAT
/* e^x for x of 0 or less: of a power of 2 and a polynomial, within 2 units of the last place. */
static float power_of_e(float x) {
  if (x < -87.0f) return 0.0f;
  const int32_t twos = hwp_round(x * 1.44269504f);
  const float r = x - (float)twos * 0.693359375f - (float)twos * -2.12194440e-4f;
  float sum = 1.0f / 720.0f;
  sum = sum * r + 1.0f / 120.0f;
  sum = sum * r + 1.0f / 24.0f;
  sum = sum * r + 1.0f / 6.0f;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  union { int32_t bits; float value; } scale = {(twos + 127) * (1 << 23)};
  return sum * scale.value;
}

int hwp_softmax(const hwp_network *network, const hwp_layer *layer, unsigned first, unsigned end) {
  const hwp_tensor *input = hwp_input_of(network, layer), *output = hwp_output_of(network, layer);
  const hwp_value *x = hwp_row(network, input, 0);
  hwp_value *y = hwp_row(network, output, 0);
  float most = x[0], total = 0.0f;
  (void)first, (void)end;
  for (unsigned i = 0; i < input->channels; i++)
    if (x[i * input->pitch] > most) most = x[i * input->pitch];
  for (unsigned i = 0; i < input->channels; i++)
    total += y[i * output->pitch] = power_of_e(x[i * input->pitch] - most);
  for (unsigned i = 0; i < input->channels; i++) y[i * output->pitch] /= total;
  return HWP_OK;
}
#else
int hwp_softmax(const hwp_network *network, const hwp_layer *layer, unsigned first, unsigned end) {
  const float *powers = layer->parameters;
  const hwp_tensor *input = hwp_input_of(network, layer), *output = hwp_output_of(network, layer);
  const hwp_value *x = hwp_row(network, input, 0);
  hwp_value *y = hwp_row(network, output, 0);
  int32_t most = HWP_LEAST;
  float total = 0.0f;
  (void)first, (void)end;
  for (unsigned i = 0; i < input->channels; i++)
    if (x[i * input->pitch] > most) most = x[i * input->pitch];
  for (unsigned i = 0; i < input->channels; i++) total += powers[most - x[i * input->pitch]];
  for (unsigned i = 0; i < input->channels; i++) {
    const float part = powers[most - x[i * input->pitch]] * 255.0f / total;
    y[i * output->pitch] = hwp_saturate(hwp_round(part) + output->zero);
  }
  return HWP_OK;
}
#endif

int hwp_reshape(const hwp_network *network, const hwp_layer *layer, unsigned first, unsigned end) {
  const hwp_tensor *input = hwp_input_of(network, layer), *output = hwp_output_of(network, layer);
  unsigned channel = 0, row = 0, x = 0;
  (void)first, (void)end; /* all rows at once: channels come before them in the order */
  for (unsigned to_channel = 0; to_channel < output->channels; to_channel++)
    for (unsigned to_row = 0; to_row < output->height; to_row++)
      for (unsigned to_x = 0; to_x < output->width; to_x++) {
        hwp_row(network, output, (int)to_row)[to_channel * output->pitch + to_x] =
            hwp_row(network, input, (int)row)[channel * input->pitch + x];
        if (++x < input->width) continue;
        x = 0;
        if (++row < input->height) continue;
        row = 0;
        channel++;
      }
  return HWP_OK;
}

int hwp_concat(const hwp_network *network, const hwp_layer *layer, unsigned first, unsigned end) {
  const hwp_concat_parameters *concat = layer->parameters;
  const hwp_tensor *output = hwp_output_of(network, layer);
  for (unsigned row = first; row < end; row++) {
    hwp_value *y = hwp_row(network, output, (int)row);
    for (unsigned i = 0; i < concat->count; i++) {
      const hwp_tensor *input = network->tensors + concat->inputs[i];
      const hwp_value *from = hwp_row(network, input, (int)row);
      for (unsigned channel = 0; channel < input->channels; channel++) {
        for (unsigned x = 0; x < input->width; x++) y[x] = from[x];
        from += input->pitch;
        y += output->pitch;
      }
    }
  }
  return HWP_OK;
}
