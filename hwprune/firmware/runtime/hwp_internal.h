/* What the kernels share: rows in memory, and the last step of every sum, requantisation. */
#ifndef HWP_INTERNAL_H
#define HWP_INTERNAL_H

#include <stddef.h>

#include "hwp.h"

#define HWP_INLINE static inline __attribute__((always_inline))

/* May be set by the build, so that tests run both ways on one machine. */
#ifndef HWP_WIDE /* the core multiplies 32 by 32 bits to 64 */
#if defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__)
#define HWP_WIDE 0
#else
#define HWP_WIDE 1
#endif
#endif

#define HWP_LEAST (HWP_OFFSET - 128)
#define HWP_MOST (HWP_OFFSET + 127)

/* What is called bytes is counted in values: they are of one byte, or of four. */
HWP_INLINE unsigned hwp_row_bytes(const hwp_tensor *tensor) {
  return (unsigned)tensor->channels * tensor->pitch;
}

/* Where channel 0 of a row begins. The row may lie outside of the window, as those above an image
 * do: then only addresses inside are formed from it. */
HWP_INLINE hwp_value *hwp_row(const hwp_network *network, const hwp_tensor *tensor, int row) {
  const int32_t from = row - (int32_t)network->first[tensor->window];
  const int32_t values = from * (int32_t)hwp_row_bytes(tensor) + (int32_t)tensor->offset;
  return (hwp_value *)((uintptr_t)network->arena + (uintptr_t)(values * (int32_t)sizeof(hwp_value)));
}

HWP_INLINE const hwp_tensor *hwp_input_of(const hwp_network *network, const hwp_layer *layer) {
  return network->tensors + layer->input[0];
}

HWP_INLINE const hwp_tensor *hwp_output_of(const hwp_network *network, const hwp_layer *layer) {
  return network->tensors + layer->output;
}

#if !HWP_FLOAT
/* Saturates to what can be stored. */
HWP_INLINE hwp_value hwp_saturate(int32_t value) {
#if defined(__ARM_FEATURE_SAT) && !HWP_UNSIGNED
  int32_t result;
  __asm__("ssat %0, #8, %1" : "=r"(result) : "r"(value));
  return (hwp_value)result;
#else
  if ((uint32_t)(value - HWP_LEAST) > 255u) value = value < HWP_LEAST ? HWP_LEAST : HWP_MOST;
  return (hwp_value)value;
#endif
}
#endif

HWP_INLINE hwp_value hwp_clamp(hwp_sum value, hwp_sum low, hwp_sum high) {
  return (hwp_value)(value < low ? low : value > high ? high : value);
}

/* Rounds to the nearest whole number, ties to even; beyond +-1000 to something beyond +-999. */
HWP_INLINE int32_t hwp_round(float value) {
  /* Single precision has no room for a fraction above 2^23: adding 1.5 * 2^23 rounds. The limits
   * also keep a compiler from fusing the sum with a product before it, which would round once. */
  union { float value; int32_t bits; } sum;
  const float limited = value < -1000.0f ? -1000.0f : value > 1000.0f ? 1000.0f : value;
  sum.value = limited + 12582912.0f;
  return sum.bits - 0x4b400000;
}

/* The upper half of a product. */
HWP_INLINE int32_t hwp_upper(int32_t sum, int32_t multiplier) {
#if HWP_WIDE
  return (int32_t)(((int64_t)sum * multiplier) >> 32);
#else
  const int32_t upper = sum >> 16, factor = multiplier >> 16;
  const uint32_t lower = (uint32_t)sum & 0xffffu, part = (uint32_t)multiplier & 0xffffu;
  const int32_t middle = upper * (int32_t)part + (int32_t)(lower * part >> 16);
  const uint32_t rest = lower * (uint32_t)factor + ((uint32_t)middle & 0xffffu);
  return upper * factor + (middle >> 16) + (int32_t)(rest >> 16);
#endif
}

/* The last step of every sum: a value of the output, in 256ths until it is saturated. The compiler
 * chose multipliers that give, for every sum that can be, what single precision gives (see
 * hwprune/firmware/fixed_point.py). */
#define HWP_HALF 128
HWP_INLINE int32_t hwp_rounding(int32_t zero) { return zero * 256 + HWP_HALF; }
HWP_INLINE hwp_value hwp_requantize(hwp_sum sum, hwp_factor multiplier, int32_t rounding) {
#if HWP_FLOAT
  (void)rounding;
  return sum * multiplier;
#else
  return hwp_saturate((hwp_upper(sum, multiplier) + rounding) >> 8);
#endif
}

#endif
