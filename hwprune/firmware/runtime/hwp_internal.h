/* What the kernels share: rows in memory, and the last step of every sum, requantisation. */
#ifndef HWP_INTERNAL_H
#define HWP_INTERNAL_H

#include <stddef.h>

#include "hwp.h"

#define HWP_INLINE static inline __attribute__((always_inline))

/* Each of these may be set by the build, so that tests run all ways on one machine. */
#ifndef HWP_FLOAT /* single-precision products are fast */
#if (defined(__ARM_FP) && (__ARM_FP & 4)) || (defined(__riscv_flen) && __riscv_flen >= 32)
#define HWP_FLOAT 1
#else
#define HWP_FLOAT 0
#endif
#endif
#ifndef HWP_WIDE /* the core multiplies 32 by 32 bits to 64 */
#if defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__)
#define HWP_WIDE 0
#else
#define HWP_WIDE 1
#endif
#endif

#define HWP_LEAST (HWP_OFFSET - 128)
#define HWP_MOST (HWP_OFFSET + 127)

HWP_INLINE unsigned hwp_row_bytes(const hwp_tensor *tensor) {
  return (unsigned)tensor->channels * tensor->pitch;
}

/* Where channel 0 of a row begins. The row may lie outside of the window, as those above an image
 * do: then only addresses inside are formed from it. */
HWP_INLINE hwp_value *hwp_row(const hwp_network *network, const hwp_tensor *tensor, int row) {
  const int32_t from = row - (int32_t)network->first[tensor->window];
  const int32_t bytes = from * (int32_t)hwp_row_bytes(tensor) + (int32_t)tensor->offset;
  return (hwp_value *)((uintptr_t)network->arena + (uintptr_t)bytes);
}

HWP_INLINE const hwp_tensor *hwp_input_of(const hwp_network *network, const hwp_layer *layer) {
  return network->tensors + layer->input[0];
}

HWP_INLINE const hwp_tensor *hwp_output_of(const hwp_network *network, const hwp_layer *layer) {
  return network->tensors + layer->output;
}

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

HWP_INLINE hwp_value hwp_clamp(int32_t value, int32_t low, int32_t high) {
  return (hwp_value)(value < low ? low : value > high ? high : value);
}

/* Rounds to the nearest whole number, ties to even; beyond +-1000 to something beyond +-999. */
HWP_INLINE int32_t hwp_round(float value) {
#if defined(__ARM_FP) && (__ARM_FP & 4)
  int32_t result; /* VCVTR rounds as FPSCR says: to nearest even, unless a program changed it */
  __asm__("vcvtr.s32.f32 %0, %0" : "+t"(value));
  __asm__("vmov %0, %1" : "=r"(result) : "t"(value));
  return result;
#else
  /* Single precision has no room for a fraction above 2^23: adding 1.5 * 2^23 rounds. The limits
   * also keep a compiler from fusing the sum with a product before it, which would round once. */
  union { float value; int32_t bits; } sum;
  const float limited = value < -1000.0f ? -1000.0f : value > 1000.0f ? 1000.0f : value;
  sum.value = limited + 12582912.0f;
  return sum.bits - 0x4b400000;
#endif
}

/* The scale of an accumulator, made ready once for a filter. */
#if HWP_FLOAT
typedef float hwp_scale;
HWP_INLINE void hwp_prepare(hwp_scale *scale, float value) { *scale = value; }
HWP_INLINE int32_t hwp_scaled(int32_t sum, const hwp_scale *scale) {
  return hwp_round((float)sum * *scale);
}
#else
typedef struct {
  int32_t multiplier; /* the fast product is sum * scale * 2^shift, rounded down */
  uint32_t shift;
  uint32_t half;      /* one half, in units of the fast product */
  uint32_t nearest;   /* added so that products too near to one half wrap to the lowest fractions */
  uint32_t zone;      /* those fractions, as the upper bits of a word: they take the slow path */
  float value;
} hwp_scale;
void hwp_prepare(hwp_scale *scale, float value);

/* RNE(f32(f32(sum) * scale)) in integers alone, for every sum; beyond +-2^20 it is about that. */
int32_t hwp_scaled_exactly(int32_t sum, float scale);

/* The same, up to some beyond +-256, which all saturates. A product that knows the fraction to some
 * bits decides, unless it lies next to one half, where the roundings of single precision count. */
HWP_INLINE int32_t hwp_scaled(int32_t sum, const hwp_scale *scale) {
#if HWP_WIDE
  const int32_t product = (int32_t)(((int64_t)sum * scale->multiplier) >> 32);
#else
  if (((uint32_t)sum + (1u << 22)) >> 23) return hwp_scaled_exactly(sum, scale->value);
  const int32_t product = (sum >> 8) * scale->multiplier +
                          (int32_t)(((uint32_t)sum & 255u) * (uint32_t)scale->multiplier >> 8);
#endif
  if (((uint32_t)product + scale->nearest) << (32u - scale->shift) <= scale->zone)
    return hwp_scaled_exactly(sum, scale->value);
  return (int32_t)((uint32_t)product + scale->half) >> scale->shift;
}
#endif

HWP_INLINE hwp_value hwp_requantize(int32_t sum, const hwp_scale *scale, int32_t zero) {
  return hwp_saturate(hwp_scaled(sum, scale) + zero);
}

#endif
