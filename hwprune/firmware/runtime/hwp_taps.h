/* The innermost loop: a list of taps against the pixels of one row. */
#ifndef HWP_TAPS_H
#define HWP_TAPS_H

#include "hwp_internal.h"

/* Pixels a pass: as many sums as the core's registers hold. */
#ifndef HWP_PIXELS
#define HWP_PIXELS (HWP_WIDE ? 8 : 4)
#endif

/* One pixel's sum. */
HWP_INLINE int32_t hwp_sum_one(const uint32_t *taps, const uint32_t *end, const hwp_value *x,
                               int32_t sum) {
  for (; taps != end; taps++) sum += ((int32_t)*taps >> 16) * x[*taps & 0xffffu];
  return sum;
}

/* The sums of HWP_PIXELS pixels that lie `stride` bytes apart, from the one at x on. */
HWP_INLINE void hwp_sum_plain(const uint32_t *taps, const uint32_t *end, const hwp_value *x,
                              unsigned stride, int32_t *sums) {
  for (; taps != end; taps++) {
    const hwp_value *at = x + (*taps & 0xffffu);
    const int32_t weight = (int32_t)*taps >> 16;
    for (unsigned i = 0; i < HWP_PIXELS; i++) sums[i] += weight * at[i * stride];
  }
}

HWP_INLINE void hwp_sum_pixels(const uint32_t *taps, const uint32_t *end, const hwp_value *x,
                               unsigned stride, int32_t bias, int32_t *sums) {
  for (unsigned i = 0; i < HWP_PIXELS; i++) sums[i] = bias;
  if (stride == 1)
    hwp_sum_plain(taps, end, x, 1, sums);
  else if (stride == 2)
    hwp_sum_plain(taps, end, x, 2, sums);
  else
    hwp_sum_plain(taps, end, x, stride, sums);
}

#endif
