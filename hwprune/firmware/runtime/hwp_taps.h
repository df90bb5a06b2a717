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
#define HWP_PIXELS 8
#else
#define HWP_PIXELS 4
#endif

/* Without optimization a compiler keeps registers to itself that these loops need. */
#if defined(__OPTIMIZE__) && defined(__thumb__) && !defined(HWP_PLAIN_C)
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
/* Helium with floats makes whole rows, at 1.0 instructions a product and less. */
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2) && HWP_FLOAT && !HWP_UNSIGNED && \
    !defined(HWP_PLAIN_C)
#define HWP_ROW_HELIUM 1
#include <arm_mve.h>
#endif

/* Functions of their own, so that each has all registers to itself, a frame pointer's too. */
#if defined(HWP_TAPS_DSP) || defined(HWP_TAPS_THUMB2) || defined(HWP_TAPS_THUMB1)
#define HWP_APART static __attribute__((noinline, optimize("omit-frame-pointer")))
#else
#define HWP_APART static __attribute__((noinline))
#endif

/* One row of one filter's output. The first seven fields are read in assembly. */
typedef struct {
  const uint32_t *taps;
  const hwp_value *x; /* the window's corner for the first pixel */
  hwp_value *y;
  uint32_t passes;    /* of HWP_PIXELS pixels each */
  int32_t bias;
  int32_t zero;
  hwp_scale scale;
  const uint32_t *end; /* of the taps; behind it is what ends a loop in assembly */
  uint32_t width;
  uint32_t stride;
} hwp_row_job;

/* One pixel's sum. */
HWP_INLINE int32_t hwp_sum_one(const hwp_row_job *job, const hwp_value *x) {
  int32_t sum = job->bias;
  for (const uint32_t *tap = job->taps; tap != job->end; tap++)
    sum += ((int32_t)*tap >> 16) * x[*tap & 0xffffu];
  return sum;
}

#ifndef HWP_ROW_HELIUM
/* hwp_sum_next and hwp_sum_second: the sums of HWP_PIXELS pixels that lie one or two bytes apart, from
 * the one at x on. */

/* The loops below take two taps a turn and end at a word of 0 in the place of a first one, which
 * spares the register of the list's end. A list of odd length has a tap of weight 0 behind it. */
#define HWP_LOOP(body)                                        \
  "ldr r8, [r12], #8\n cmp r8, #0\n beq 2f\n 1:\n" body      \
  "ldr r8, [r12, #-4]\n" body                                 \
  "ldr r8, [r12], #8\n cmp r8, #0\n bne 1b\n 2:\n"

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
#define HWP_CLOBBERED "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "memory", "cc"
#define HWP_SUM_ASSEMBLY(tap)                                                                   \
  register const uint32_t *r0 __asm__("r0") = job->taps;                                             \
  register const hwp_value *r1 __asm__("r1") = x;                                               \
  register int32_t r2 __asm__("r2") = job->bias;                                                     \
  register int32_t *r3 __asm__("r3") = sums;                                                    \
  __asm__ volatile("push {r3}\n mov r12, r0\n mov lr, r1\n mov r0, r2\n mov r1, r2\n mov r3, r2\n" \
                   "mov r4, r2\n mov r5, r2\n mov r6, r2\n mov r7, r2\n" HWP_LOOP(tap)            \
                   "pop {r8}\n stm r8, {r0-r7}\n"                                               \
                   : "+r"(r0), "+r"(r1), "+r"(r2), "+r"(r3)                                      \
                   :                                                                            \
                   : HWP_CLOBBERED)
HWP_APART void hwp_sum_next(const hwp_row_job *job, const hwp_value *x, int32_t *sums) {
  HWP_SUM_ASSEMBLY(HWP_TAP_NEXT);
}
HWP_APART void hwp_sum_second(const hwp_row_job *job, const hwp_value *x, int32_t *sums) {
  HWP_SUM_ASSEMBLY(HWP_TAP_SECOND);
}

#if HWP_FLOAT
/* Passes of 8 pixels with their requantisation: sums become floats, are scaled, rounded to nearest
 * even, and saturated. Between passes everything but x lies in floating-point registers. */
#define HWP_PASSES_FLOAT 1
#define HWP_EIGHT(apply) \
  apply("0") apply("1") apply("2") apply("3") apply("4") apply("5") apply("6") apply("7")
#define HWP_CONVERT(n) "vcvt.f32.s32 s" n ", s" n "\n"
#define HWP_MULTIPLY(n) "vmul.f32 s" n ", s" n ", s14\n"
#define HWP_ROUND(n) "vcvtr.s32.f32 s" n ", s" n "\n"
#define HWP_SHIFT_ZERO(n) "add r" n ", r" n ", r8\n"
#define HWP_SATURATE(n) "ssat r" n ", #8, r" n "\n"
#define HWP_PASSES_ASSEMBLY(tap, step)                                                           \
  register const hwp_row_job *r0 __asm__("r0") = job;                                          \
  __asm__ volatile(                                                                              \
      "vldmia r0, {s8-s14}\n vmov lr, s9\n"                                                      \
      "3:\n vmov r0, s12\n vmov r12, s8\n mov r1, r0\n mov r2, r0\n mov r3, r0\n"                 \
      "mov r4, r0\n mov r5, r0\n mov r6, r0\n mov r7, r0\n" HWP_LOOP(tap)                         \
      "vmov s0, s1, r0, r1\n vmov s2, s3, r2, r3\n vmov s4, s5, r4, r5\n vmov s6, s7, r6, r7\n"   \
      HWP_EIGHT(HWP_CONVERT) HWP_EIGHT(HWP_MULTIPLY) HWP_EIGHT(HWP_ROUND)                        \
      "vmov r0, r1, s0, s1\n vmov r2, r3, s2, s3\n vmov r4, r5, s4, s5\n vmov r6, r7, s6, s7\n"   \
      "vmov r8, s13\n vmov r9, s10\n" HWP_EIGHT(HWP_SHIFT_ZERO) HWP_EIGHT(HWP_SATURATE)          \
      "strb r0, [r9], #8\n strb r1, [r9, #-7]\n strb r2, [r9, #-6]\n strb r3, [r9, #-5]\n"        \
      "strb r4, [r9, #-4]\n strb r5, [r9, #-3]\n strb r6, [r9, #-2]\n strb r7, [r9, #-1]\n"       \
      "vmov s10, r9\n vmov r8, s11\n subs r8, r8, #1\n vmov s11, r8\n add.w lr, lr, #" step "\n"  \
      "bne 3b\n"                                                                                 \
      : "+r"(r0)                                                                                 \
      :                                                                                          \
      : "r1", "r2", "r3", HWP_CLOBBERED, "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8",   \
        "s9", "s10", "s11", "s12", "s13", "s14")
HWP_APART void hwp_passes_next(const hwp_row_job *job) {
  HWP_PASSES_ASSEMBLY(HWP_TAP_NEXT, "8");
}
HWP_APART void hwp_passes_second(const hwp_row_job *job) {
  HWP_PASSES_ASSEMBLY(HWP_TAP_SECOND, "16");
}
#endif
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
#if HWP_PIXELS == 8
#define HWP_EACH_PIXEL(apply) \
  apply(0) apply(1) apply(2) apply(3) apply(4) apply(5) apply(6) apply(7)
#else
#define HWP_EACH_PIXEL(apply) apply(0) apply(1) apply(2) apply(3)
#endif
#define HWP_BEGIN(i) int32_t sum##i = job->bias;
#define HWP_ADD(i) sum##i += weight * at[i * stride];
#define HWP_END(i) sums[i] = sum##i;
HWP_INLINE void hwp_sum_plain(const hwp_row_job *job, const hwp_value *x, unsigned stride,
                              int32_t *sums) {
  HWP_EACH_PIXEL(HWP_BEGIN)
  for (const uint32_t *tap = job->taps; tap != job->end; tap++) {
    const hwp_value *at = x + (*tap & 0xffffu);
    const int32_t weight = (int32_t)*tap >> 16;
    HWP_EACH_PIXEL(HWP_ADD)
  }
  HWP_EACH_PIXEL(HWP_END)
}
HWP_APART void hwp_sum_next(const hwp_row_job *job, const hwp_value *x, int32_t *sums) {
  hwp_sum_plain(job, x, 1, sums);
}
HWP_APART void hwp_sum_second(const hwp_row_job *job, const hwp_value *x, int32_t *sums) {
  hwp_sum_plain(job, x, 2, sums);
}
#endif

#else
/* Four sums to four pixels, of which the first `left` are stored. */
HWP_INLINE void hwp_store_four(const hwp_row_job *job, hwp_value *y, int32x4_t sums,
                               uint32_t left) {
  const float32x4_t product = vmulq_n_f32(vcvtq_f32_s32(sums), job->scale);
  int32x4_t value = vaddq_n_s32(vcvtnq_s32_f32(product), job->zero);
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
HWP_APART void hwp_row_next(const hwp_row_job *job) { hwp_row_helium(job, 1); }
HWP_APART void hwp_row_apart(const hwp_row_job *job) { hwp_row_helium(job, job->stride); }
#endif

#endif
