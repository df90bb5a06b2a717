/* The innermost loop: a list of taps against the pixels of one row.
 *
 * Compilers run out of registers here, or keep sums in memory, so cores that matter have their own
 * instructions: per tap and 8 pixels 17 of them with DSP (2.1 a product), 21 without; on Armv6-M 18
 * per tap and 4 pixels. Every form computes the same sums. HWP_PLAIN_C leaves all of them out.
 */
#ifndef HWP_TAPS_H
#define HWP_TAPS_H

#include "hwp_internal.h"

/* Pixels a pass: as many sums as the core's registers hold. */
#if HWP_WIDE
#define HWP_PIXELS 8u
#else
#define HWP_PIXELS 4u
#endif

/* Without optimization a compiler keeps registers to itself that these loops need. */
#if defined(__OPTIMIZE__) && defined(__thumb__) && !defined(HWP_PLAIN_C) && !HWP_FLOAT
#if defined(__thumb2__) && HWP_WIDE && !HWP_UNSIGNED
#if defined(__ARM_FEATURE_DSP) && __ARM_FEATURE_DSP
#define HWP_TAPS_DSP 1
#else
#define HWP_TAPS_THUMB2 1
#endif
#elif !HWP_WIDE && HWP_UNSIGNED
#define HWP_TAPS_THUMB1 1
#endif
#endif
/* Helium makes whole rows, at 1.0 instructions a product and less. */
#if defined(__ARM_FEATURE_MVE) && !HWP_UNSIGNED && !defined(HWP_PLAIN_C) && !HWP_FLOAT
#define HWP_ROW_HELIUM 1
#include <arm_mve.h>
#endif

/* Functions of their own, so that each has all registers to itself, a frame pointer's too. */
#if defined(HWP_TAPS_DSP) || defined(HWP_TAPS_THUMB2) || defined(HWP_TAPS_THUMB1)
#define HWP_APART static __attribute__((noinline, optimize("omit-frame-pointer")))
#else
#define HWP_APART static __attribute__((noinline))
#endif

/* One row of one filter's output. The fields up to x_end are read in assembly, by their places. Whoever
 * makes pixels moves x and y on. */
typedef struct {
  hwp_sum bias;
  uint32_t odd;           /* whether there is an odd number of taps */
  const uint32_t *list;   /* of taps, without the first one where it is */
  hwp_factor multiplier;
  int32_t rounding;
  hwp_value *y;
  const hwp_value *x;     /* the window's corner for the next pixel */
  const hwp_value *x_end; /* where it is behind the last pass of HWP_PIXELS pixels, at least one */
  const uint32_t *taps;   /* at least one, but for hwp_sum_one */
  const uint32_t *end;    /* of the taps; a word of 0 is there */
  uint32_t width;
  uint32_t stride;
} hwp_row_job;

/* One pixel's sum. */
HWP_INLINE hwp_sum hwp_sum_one(const hwp_row_job *job, const hwp_value *x) {
  hwp_sum sum = job->bias;
  for (const uint32_t *tap = job->taps; tap != job->end; tap++)
    sum += (hwp_sum)((int32_t)*tap >> 16) * x[*tap & 0xffffu];
  return sum;
}

#ifndef HWP_ROW_HELIUM
/* hwp_passes_next and hwp_passes_second make pixels whose corners lie one or two bytes apart. */

/* The loops below take two taps a turn, of an odd number one in the first, and end at a word of 0 in
 * the place of a first one, which spares the register of the list's end. Flags say, from before, whether
 * the number is not odd. */
#define HWP_LOOP(body)                                                             \
  "bne 2f\n ldr r8, [r12], #8\n 1:\n" body                                          \
  "2: ldr r8, [r12, #-4]\n" body "ldr r8, [r12], #8\n cmp r8, #0\n bne 1b\n"

#if defined(HWP_TAPS_DSP)
/* Two pixels from the halves of a word: the weight is the upper half of its tap. */
#define HWP_TWO(word, low, high)                     \
  "smlabt " low ", " word ", r8, " low "\n"          \
  "smlatt " high ", " word ", r8, " high "\n"
#define HWP_TAP_NEXT                                                                      \
  "uxtah r9, lr, r8\n ldr r11, [r9, #4]\n ldr r9, [r9]\n"                                 \
  "sxtb16 r10, r9\n sxtb16 r9, r9, ror #8\n"                                              \
  HWP_TWO("r10", "r0", "r2") HWP_TWO("r9", "r1", "r3")                                    \
  "sxtb16 r10, r11\n sxtb16 r11, r11, ror #8\n"                                           \
  HWP_TWO("r10", "r4", "r6") HWP_TWO("r11", "r5", "r7")
#define HWP_TAP_SECOND                                                                    \
  "uxtah r9, lr, r8\n ldr r10, [r9]\n ldr r11, [r9, #4]\n"                                \
  "sxtb16 r10, r10\n sxtb16 r11, r11\n" HWP_TWO("r10", "r0", "r1") HWP_TWO("r11", "r2", "r3") \
  "ldr r10, [r9, #8]\n ldr r11, [r9, #12]\n"                                              \
  "sxtb16 r10, r10\n sxtb16 r11, r11\n" HWP_TWO("r10", "r4", "r5") HWP_TWO("r11", "r6", "r7")
#elif defined(HWP_TAPS_THUMB2)
#define HWP_ONE(offset, sum) "ldrsb r10, [r9, #" offset "]\n mla " sum ", r10, r8, " sum "\n"
#define HWP_TAP(i1, i2, i3, i4, i5, i6, i7)                                               \
  "uxth r9, r8\n add r9, r9, lr\n asr r8, r8, #16\n" HWP_ONE("0", "r0") HWP_ONE(i1, "r1")  \
  HWP_ONE(i2, "r2") HWP_ONE(i3, "r3") HWP_ONE(i4, "r4") HWP_ONE(i5, "r5")                 \
  HWP_ONE(i6, "r6") HWP_ONE(i7, "r7")
#define HWP_TAP_NEXT HWP_TAP("1", "2", "3", "4", "5", "6", "7")
#define HWP_TAP_SECOND HWP_TAP("2", "4", "6", "8", "10", "12", "14")
#endif

#if defined(HWP_TAPS_DSP) || defined(HWP_TAPS_THUMB2)
/* A sum becomes 256ths of a step. */
#ifdef HWP_TAPS_DSP
#define HWP_RESCALE(n) "smmla r" n ", r" n ", r8, r9\n"
#else
#define HWP_RESCALE(n) "smull r12, r" n ", r" n ", r8\n add r" n ", r" n ", r9\n"
#endif
#define HWP_SATURATE(n) "ssat r" n ", #8, r" n ", asr #8\n"
#define HWP_EIGHT(apply) \
  apply("0") apply("1") apply("2") apply("3") apply("4") apply("5") apply("6") apply("7")
/* lr is x all the time; the job's multiplier is what the stack points to. */
#define HWP_PASSES_ASSEMBLY(tap, step)                                                           \
  register hwp_row_job *r0 __asm__("r0") = job;                                                  \
  __asm__ volatile(                                                                              \
      "adds r0, #12\n push {r0}\n ldr lr, [r0, #12]\n"                                           \
      "3: ldr r8, [sp]\n ldmdb r8, {r0, r9, r12}\n cmp r9, #0\n mov r1, r0\n mov r2, r0\n"       \
      "mov r3, r0\n mov r4, r0\n mov r5, r0\n mov r6, r0\n mov r7, r0\n" HWP_LOOP(tap)           \
      "ldr r10, [sp]\n ldm r10, {r8, r9, r11}\n"                                                 \
      HWP_EIGHT(HWP_RESCALE) HWP_EIGHT(HWP_SATURATE)                                             \
      "strb r0, [r11], #8\n strb r1, [r11, #-7]\n strb r2, [r11, #-6]\n strb r3, [r11, #-5]\n"    \
      "strb r4, [r11, #-4]\n strb r5, [r11, #-3]\n strb r6, [r11, #-2]\n strb r7, [r11, #-1]\n"   \
      "ldr r8, [r10, #16]\n add.w lr, lr, #" step "\n str r11, [r10, #8]\n cmp lr, r8\n"         \
      "bne 3b\n str lr, [r10, #12]\n pop {r0}\n"                                                 \
      : "+r"(r0)                                                                                 \
      :                                                                                          \
      : "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr",         \
        "memory", "cc")
HWP_APART void hwp_passes_next(hwp_row_job *job) { HWP_PASSES_ASSEMBLY(HWP_TAP_NEXT, "8"); }
HWP_APART void hwp_passes_second(hwp_row_job *job) { HWP_PASSES_ASSEMBLY(HWP_TAP_SECOND, "16"); }
#elif defined(HWP_TAPS_THUMB1)
/* Eight low registers are four sums, the list, the tap, its pixels and a product; the corner and the
 * list's end lie in high ones. */
#define HWP_ONE(offset, sum) \
  "ldrb r7, [r6, #" offset "]\n muls r7, r5\n adds " sum ", " sum ", r7\n"
#define HWP_SUM_ASSEMBLY(i1, i2, i3)                                                             \
  register const uint32_t *r0 __asm__("r0") = job->taps;                                         \
  register const hwp_value *r1 __asm__("r1") = x;                                                \
  register int32_t r2 __asm__("r2") = job->bias;                                                 \
  register int32_t *r3 __asm__("r3") = sums;                                                     \
  register const uint32_t *r12 __asm__("r12") = job->end;                                        \
  __asm__ volatile(".syntax unified\n push {r3}\n mov r4, r0\n mov r8, r1\n mov r0, r2\n"         \
                   "mov r1, r2\n mov r3, r2\n cmp r4, r12\n beq 2f\n"                            \
                   "1: ldmia r4!, {r5}\n uxth r6, r5\n add r6, r8\n asrs r5, r5, #16\n"           \
                   HWP_ONE("0", "r0") HWP_ONE(i1, "r1") HWP_ONE(i2, "r2") HWP_ONE(i3, "r3")      \
                   "cmp r4, r12\n bne 1b\n 2: pop {r7}\n stmia r7!, {r0-r3}\n"                   \
                   : "+r"(r0), "+r"(r1), "+r"(r2), "+r"(r3)                                      \
                   : "r"(r12)                                                                    \
                   : "r4", "r5", "r6", "r7", "r8", "memory", "cc")
HWP_APART void hwp_sum_next(const hwp_row_job *job, const hwp_value *x, int32_t *sums) {
  HWP_SUM_ASSEMBLY("1", "2", "3");
}
HWP_APART void hwp_sum_second(const hwp_row_job *job, const hwp_value *x, int32_t *sums) {
  HWP_SUM_ASSEMBLY("2", "4", "6");
}

#else
/* Sums in variables of their own: compilers would keep an array of them in memory. */
#if HWP_PIXELS == 8u
#define HWP_EACH_PIXEL(apply) \
  apply(0) apply(1) apply(2) apply(3) apply(4) apply(5) apply(6) apply(7)
#else
#define HWP_EACH_PIXEL(apply) apply(0) apply(1) apply(2) apply(3)
#endif
#define HWP_BEGIN(i) hwp_sum sum##i = job->bias;
#define HWP_ADD(i) sum##i += weight * at[i * stride];
#define HWP_END(i) sums[i] = sum##i;
HWP_INLINE void hwp_sum_plain(const hwp_row_job *job, const hwp_value *x, unsigned stride,
                              hwp_sum *sums) {
  HWP_EACH_PIXEL(HWP_BEGIN)
  for (const uint32_t *tap = job->taps; tap != job->end; tap++) {
    const hwp_value *at = x + (*tap & 0xffffu);
    const hwp_sum weight = (hwp_sum)((int32_t)*tap >> 16);
    HWP_EACH_PIXEL(HWP_ADD)
  }
  HWP_EACH_PIXEL(HWP_END)
}
HWP_APART void hwp_sum_next(const hwp_row_job *job, const hwp_value *x, hwp_sum *sums) {
  hwp_sum_plain(job, x, 1, sums);
}
HWP_APART void hwp_sum_second(const hwp_row_job *job, const hwp_value *x, hwp_sum *sums) {
  hwp_sum_plain(job, x, 2, sums);
}
#endif

#if !defined(HWP_TAPS_DSP) && !defined(HWP_TAPS_THUMB2)
typedef void hwp_summer(const hwp_row_job *job, const hwp_value *x, hwp_sum *sums);
static void hwp_passes(hwp_row_job *job, hwp_summer *sum, unsigned step) {
  hwp_sum sums[HWP_PIXELS];
  for (; job->x != job->x_end; job->x += step) {
    sum(job, job->x, sums);
    for (unsigned i = 0; i < HWP_PIXELS; i++)
      *job->y++ = hwp_requantize(sums[i], job->multiplier, job->rounding);
  }
}
static void hwp_passes_next(hwp_row_job *job) { hwp_passes(job, hwp_sum_next, HWP_PIXELS); }
static void hwp_passes_second(hwp_row_job *job) { hwp_passes(job, hwp_sum_second, 2 * HWP_PIXELS); }
#endif

#else
/* Four sums to four pixels, of which the first `left` are stored. */
HWP_INLINE void hwp_store_four(const hwp_row_job *job, hwp_value *y, int32x4_t sums,
                               uint32_t left) {
  const int32x4_t upper = vmulhq_s32(sums, vdupq_n_s32(job->multiplier));
  int32x4_t value = vshrq_n_s32(vaddq_n_s32(upper, job->rounding), 8);
  value = vminq_s32(vmaxq_s32(value, vdupq_n_s32(-128)), vdupq_n_s32(127));
  vstrbq_p_s32(y, value, vctp32q(left));
}

/* Up to 16 pixels a pass, or 8 where no more are left; pixels `stride` bytes apart are gathered. */
HWP_INLINE void hwp_row_helium(const hwp_row_job *job, unsigned stride) {
  const uint32x4_t apart = vmulq_n_u32(vidupq_n_u32(0, 1), stride);
  const hwp_value *x = job->x;
  hwp_value *y = job->y;
#define HWP_FOUR(i)                                                              \
  (stride == 1 ? vldrbq_s32(at + 4 * (i))                                        \
               : vldrbq_gather_offset_s32(at + 4 * (i) * stride, apart))
  for (uint32_t left = job->width;;) {
    int32x4_t a = vdupq_n_s32(job->bias), b = a, c = a, d = a;
    if (left <= 8) {
      for (const uint32_t *tap = job->taps; tap != job->end; tap++) {
        const hwp_value *at = x + (*tap & 0xffffu);
        const int32_t weight = (int32_t)*tap >> 16;
        a = vmlaq_n_s32(a, HWP_FOUR(0), weight);
        b = vmlaq_n_s32(b, HWP_FOUR(1), weight);
      }
      hwp_store_four(job, y, a, left);
      if (left > 4) hwp_store_four(job, y + 4, b, left - 4);
      return;
    }
    for (const uint32_t *tap = job->taps; tap != job->end; tap++) {
      const hwp_value *at = x + (*tap & 0xffffu);
      const int32_t weight = (int32_t)*tap >> 16;
      a = vmlaq_n_s32(a, HWP_FOUR(0), weight);
      b = vmlaq_n_s32(b, HWP_FOUR(1), weight);
      c = vmlaq_n_s32(c, HWP_FOUR(2), weight);
      d = vmlaq_n_s32(d, HWP_FOUR(3), weight);
    }
    hwp_store_four(job, y, a, left);
    hwp_store_four(job, y + 4, b, left - 4);
    hwp_store_four(job, y + 8, c, left - 8);
    if (left > 12) hwp_store_four(job, y + 12, d, left - 12);
    if (left <= 16) return;
    left -= 16;
    x += 16 * stride;
    y += 16;
  }
#undef HWP_FOUR
}
HWP_APART void hwp_row_next(hwp_row_job *job) { hwp_row_helium(job, 1); }
HWP_APART void hwp_row_apart(hwp_row_job *job) { hwp_row_helium(job, job->stride); }
#endif

#endif
