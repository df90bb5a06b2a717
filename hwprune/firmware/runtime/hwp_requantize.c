/* Requantisation without floating point, equal to single precision to the bit. */
#include "hwp_internal.h"

#if !HWP_FLOAT

/* A positive normal float is mantissa * 2^-exponent, with 24 bits of mantissa. */
typedef struct {
  uint32_t mantissa;
  int exponent;
} parts;

static parts parts_of(float value) {
  union { float value; uint32_t bits; } number;
  number.value = value;
  const parts result = {(number.bits & 0x7fffffu) | 0x800000u, 150 - (int)(number.bits >> 23)};
  return result;
}

void hwp_prepare(hwp_scale *scale, float value) {
  const parts number = parts_of(value);
#if HWP_WIDE
  /* The product loses less than one unit; the roundings of single precision move a value of up to
   * 256 by 2^-15 at most. */
  const int shift = number.exponent - 25;
  const int least = 2, sure = 15;
  const uint32_t lost = 0;
  scale->multiplier = (int32_t)(number.mantissa << 7);
#else
  /* A multiplier of 16 bits besides moves such a value by 2^-8. */
  const int shift = number.exponent - 16;
  const int least = 9, sure = 8;
  const uint32_t lost = 1;
  const uint32_t rounded = (number.mantissa + 128u) >> 8;
  scale->multiplier = (int32_t)(rounded > 65535u ? 65535u : rounded);
#endif
  scale->value = value;
  if (shift < least || shift > 30) {
    scale->shift = 1;
    scale->half = scale->nearest = 0;
    scale->zone = UINT32_MAX;
    return;
  }
  const uint32_t margin = (shift > sure ? 1u << (shift - sure) : 0u) + lost;
  scale->shift = (uint32_t)shift;
  scale->half = 1u << (shift - 1);
  scale->nearest = margin + 1u - scale->half;
  scale->zone = (2u * margin + 1u) << (32 - shift);
}

/* Bits up to the highest one that is set. */
static int bits_of(uint64_t value) {
  int count = 0;
  while (value) {
    value >>= 1;
    count++;
  }
  return count;
}

/* value / 2^drop, to the nearest, ties to even. */
static uint64_t rounded_shift(uint64_t value, int drop) {
  if (drop <= 0) return value << -drop;
  if (drop > 62) return 0;
  const uint64_t half = (uint64_t)1 << (drop - 1), rest = value & (2 * half - 1);
  const uint64_t quotient = value >> drop;
  return quotient + (uint64_t)(rest > half || (rest == half && (quotient & 1)));
}

/* The nearest number of 24 significant bits. */
static uint64_t to_single(uint64_t value) {
  const int drop = bits_of(value) - 24;
  return drop > 0 ? rounded_shift(value, drop) << drop : value;
}

int32_t hwp_scaled_exactly(int32_t sum, float scale) {
  const parts factor = parts_of(scale);
  /* A product of 64 bits first: fractions of 32 bits are only this near to one half when single
   * precision may round otherwise. */
  const uint32_t near = 1u << 17;
  if (factor.exponent >= 17 && factor.exponent <= 55) {
    const int64_t product = (int64_t)sum * (int32_t)factor.mantissa;
    const int64_t whole = product >> factor.exponent;
    const uint32_t fraction = factor.exponent >= 32
                                  ? (uint32_t)(product >> (factor.exponent - 32))
                                  : (uint32_t)product << (32 - factor.exponent);
    if (fraction - (0x80000000u - near) > 2 * near && whole < 512 && whole >= -512)
      return (int32_t)whole + (int32_t)(fraction >> 31);
  }
  const uint64_t limit = (uint64_t)1 << 20;
  const int drop = factor.exponent;
  const uint64_t size = to_single(sum < 0 ? (uint64_t) - (int64_t)sum : (uint64_t)sum);
  uint64_t result = to_single(size * factor.mantissa); /* below 2^57 */
  if (drop >= 0)
    result = rounded_shift(result, drop);
  else
    result = result && -drop > 20 ? limit : result > limit ? limit : result << -drop;
  if (result > limit) result = limit;
  return sum < 0 ? -(int32_t)result : (int32_t)result;
}

#else
typedef int hwp_no_requantization; /* C has no empty translation units */
#endif
