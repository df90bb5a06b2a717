/* hwprune's runtime for microcontrollers: networks with sparse int8 weights. C11, no libc, no heap.
 *
 * A network is constant tables: tensors, layers, and a schedule that says in which order layers make
 * rows. Every layer makes some rows of its output at a time, from rows of its inputs. Where a tensor
 * does not need all its rows at once, its window in memory is shorter and slides down.
 *
 * In memory a tensor is [row][channel][x]: `width` pixels of a channel, then `gap` bytes that hold
 * the zero point, then the next channel. A gap is the right margin of the pixels before it and the
 * left margin of those behind it, and another one lies before the first pixel, so kernels may reach
 * beyond both ends of a row. Rows above and below an image are not stored: convolutions leave out
 * the weights that would meet them.
 *
 * What is computed is described, to the bit, in hwprune/firmware/reference.py.
 */
#ifndef HWP_H
#define HWP_H

#include <stdint.h>

/* What activations are: int8, or single precision. */
#ifndef HWP_FLOAT
#define HWP_FLOAT 0
#endif

/* Cores without a signed byte load of constant offset (Armv6-M) keep activations unsigned: q + 128. */
#ifndef HWP_UNSIGNED
#if (defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__)) && !HWP_FLOAT
#define HWP_UNSIGNED 1
#else
#define HWP_UNSIGNED 0
#endif
#endif

/* A value as it is stored, as a program hands it over; a sum; what a sum is multiplied by; a clamp. */
#if HWP_FLOAT
typedef float hwp_value, hwp_element, hwp_sum, hwp_factor, hwp_bound;
#define HWP_OFFSET 0
#define HWP_LOWEST (-0x1.fffffep+127f)
#define HWP_HIGHEST 0x1.fffffep+127f
#else
typedef int8_t hwp_element, hwp_bound;
typedef int32_t hwp_sum, hwp_factor;
#if HWP_UNSIGNED
typedef uint8_t hwp_value;
#define HWP_OFFSET 128
#else
typedef int8_t hwp_value;
#define HWP_OFFSET 0
#endif
#define HWP_LOWEST (-128)
#define HWP_HIGHEST 127
#endif

/* A zero point as it is stored, and the bias of a filter whose weights have this sum, as the sum of
 * weight * stored value is to be corrected by it. */
#define HWP_ZERO(zero_point) ((zero_point) + HWP_OFFSET)
#define HWP_BIAS(bias, weight_sum) ((bias) - HWP_OFFSET * (weight_sum))

/* What hwp_run returns. */
enum { HWP_OK = 0, HWP_CORRUPT = 1 };

typedef struct {
  uint32_t offset;   /* of the window's first pixel in the arena */
  uint16_t channels;
  uint16_t height;
  uint16_t width;
  uint16_t pitch;    /* from a channel's first pixel to the next channel's: width + gap */
  uint16_t rows;     /* that the window holds */
  int16_t zero;      /* HWP_ZERO of the zero point */
  uint8_t gap;
  uint8_t window;    /* tensors that take one another's place share one */
} hwp_tensor;

struct hwp_layer;
struct hwp_network;

/* Makes rows first to end - 1 of a layer's output (takes these rows of its input, where it sums them). Returns HWP_OK, or HWP_CORRUPT where the stored
 * weights are not what a compiler wrote; nothing outside of arrays is read then either. */
typedef int hwp_kernel(const struct hwp_network *network, const struct hwp_layer *layer,
                       unsigned first, unsigned end);

typedef struct hwp_layer {
  hwp_kernel *run;
  const void *parameters;
  uint16_t rows;     /* made at a time */
  uint16_t height;   /* rows of the output; of the input, where a layer sums them up to one */
  uint8_t input[2];  /* tensors; unused ones are 0 */
  uint8_t output;
} hwp_layer;

/* Hands over one row of the input: channel c's pixels go to pixels[c * pitch] and following. */
typedef void hwp_read_row(void *context, unsigned row, hwp_element *pixels, unsigned pitch);

typedef struct {
  hwp_read_row *read;
  void *context;
} hwp_source;

typedef struct hwp_network {
  const hwp_tensor *tensors;
  const hwp_layer *layers;
  const uint8_t *schedule; /* the layer of each step */
  hwp_value *arena;
  uint32_t *taps;          /* room for the largest filter's nonzeros, and two words */
  uint16_t *first;         /* [window] the row that it begins with */
  uint16_t *done;          /* [layer] the rows made so far */
  hwp_source *source;      /* of the input, while the network runs */
  uint16_t steps;
  uint8_t layer_count;
  uint8_t window_count;
} hwp_network;

/* Computes the network for one input. */
int hwp_run(const hwp_network *network, hwp_read_row *read, void *context);

/* Copies a tensor whose window holds all its rows, as [channel][row][x]. */
void hwp_copy_out(const hwp_network *network, unsigned tensor, hwp_element *values);

/* A source for inputs that lie in memory as [channel][row][x]; the context is a hwp_array. */
typedef struct {
  const hwp_element *values;
  uint16_t channels;
  uint16_t height;
  uint16_t width;
} hwp_array;
void hwp_read_array(void *context, unsigned row, hwp_element *pixels, unsigned pitch);

#ifdef HWP_TRACE
/* Called by hwp_run around each step, where a test or a profiler provides them. */
void hwp_trace_begin(unsigned layer);
void hwp_trace_end(const hwp_network *network, unsigned layer, unsigned first, unsigned end);
#endif

/* ---- weights ---------------------------------------------------------------------------------
 * A filter's weights are its columns in the order [kernel row][channel][kernel column], in which
 * the input's bytes lie too. A decoder makes of its nonzeros a list of taps, `weight << 16 |
 * offset`, in rising order of offsets, where an offset counts bytes from the window's corner. */

struct hwp_filters;

typedef struct {
  const uint32_t *taps; /* of the filter that was decoded last */
  const uint8_t *index;
  const int8_t *value;
  const uint8_t *count;
  uint32_t bits;   /* Rice codes: read from the stream and not used yet, from the highest on */
  unsigned held;   /* how many they are */
} hwp_cursor;

/* Writes the taps of the next filter, or finds them in flash, where a word of 0 is behind them; returns
 * their end, or NULL where the stream is corrupt. `first` says that this one was never decoded. */
typedef const uint32_t *hwp_decoder(const struct hwp_filters *filters, hwp_cursor *cursor,
                                    uint32_t *taps, int first);

typedef struct hwp_filters {
  hwp_decoder *decode;
  const uint8_t *index;   /* streams of the format, see the decoders */
  const int8_t *values;
  const uint8_t *counts;  /* nonzeros of each filter: bytes of 255 go on in the next one */
  uint32_t index_bytes;
  uint32_t value_bytes;
  uint32_t count_bytes;
  uint32_t reciprocal;    /* 65536 / the kernel's width, rounded up: column * it >> 16 divides */
  uint16_t columns;       /* of a filter */
  uint16_t most_taps;     /* nonzeros of the fullest filter */
  uint16_t row_columns;   /* of one kernel row */
  uint16_t row_step;      /* bytes from one kernel row to the next */
  uint16_t last;          /* offset of the last column */
  int16_t channel_skip;   /* bytes from the end of a channel's window to the next one's begin */
  uint8_t dilation;       /* along a row */
  uint8_t rice;           /* parameter of the Rice code */
  uint8_t shift;          /* 16, and by how many bits weights are longer in a tap than stored */
} hwp_filters;

hwp_decoder hwp_decode_rice;   /* gaps between nonzeros as Rice codes, one bit stream for all */
hwp_decoder hwp_decode_gap8;   /* gaps between offsets as bytes; 255 skips 255 */
hwp_decoder hwp_decode_bitmap; /* a bit a column, the lowest first, each filter from a new byte */
hwp_decoder hwp_decode_dense;  /* every column's value, zeros included */
hwp_decoder hwp_decode_words;  /* the taps themselves, each filter with a word of 0 behind it */

/* ---- layers ---------------------------------------------------------------------------------- */

typedef struct {
  hwp_filters filters;
  const hwp_sum *bias;      /* HWP_BIAS less the input's zero point times the filter's weights */
  const hwp_factor *multiplier; /* of each filter's sum: 2^40 steps of the output, or the scale */
  uint16_t filters_per_group;
  uint16_t group_channels;  /* of the input */
  uint16_t kernel_reach;    /* rows that a window spans */
  uint8_t stride_rows;
  uint8_t stride_columns;
  uint8_t pad_top;
  uint8_t pad_left;
  hwp_bound low;            /* the clamp, of values as they are (not as they are stored) */
  hwp_bound high;
} hwp_conv2d_parameters;

typedef struct {
  uint16_t ratio[2]; /* the operands' scales in 64ths of the sum's */
  hwp_bound low;
  hwp_bound high;
} hwp_add_parameters;

typedef struct {
  const float *scale; /* average: [pixels in the window - 1]; largest: NULL */
  uint8_t kernel_rows;
  uint8_t kernel_columns;
  uint8_t stride_rows;
  uint8_t stride_columns;
  uint8_t pad_top;
  uint8_t pad_left;
  uint8_t count_pads; /* an average over padding too: one scale, for the whole window */
} hwp_pool_parameters;

typedef struct {
  hwp_sum *sums; /* [channel] between passes; NULL where there is one */
  hwp_factor multiplier;
  uint8_t shift; /* of a sum, to the left */
} hwp_global_pool_parameters;

typedef struct {
  uint8_t count;
  uint8_t inputs[];
} hwp_concat_parameters;

hwp_kernel hwp_input;       /* rows from the source; no input */
hwp_kernel hwp_conv2d;      /* depthwise and linear layers too */
hwp_kernel hwp_add;
hwp_kernel hwp_max_pool;
hwp_kernel hwp_average_pool;
hwp_kernel hwp_global_pool;
hwp_kernel hwp_softmax;     /* parameters, of int8: const float[256], e^(-i * scale) times a common factor */
hwp_kernel hwp_reshape;     /* the elements in order of [channel][row][x] */
hwp_kernel hwp_concat;      /* inputs are those of its parameters */

#endif
