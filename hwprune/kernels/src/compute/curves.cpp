// Activations that are no bounds, applied to results that are still in the cache.
#include "simd.h"
#include "tables.h"

namespace hwprune {
namespace HWPRUNE_ISA {
namespace {

// exp by powers of two and a polynomial (Cephes expf: relative error below 2e-7), for arguments already
// bounded to the range in which the result is a normal number.
template <int N>
HWPRUNE_INLINE Vector<N> exponential(Vector<N> x) {
  using Mask = typename VectorOf<N>::Mask;
  const Vector<N> scaled = x * 1.44269504088896341f;
  const Vector<N> shifter = splat<N>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vector<N> shifted = scaled + shifter;
  const Vector<N> whole = shifted - shifter;
  Vector<N> rest = x - whole * 0.693359375f;
  rest = rest + whole * 2.12194440e-4f;
  Vector<N> sum = splat<N>(1.9875691500e-4f);
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * (rest * rest) + rest + 1.0f;
  Mask bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4B400000 + 127) << 23;
  Vector<N> power;
  std::memcpy(&power, &bits, sizeof power);
  return sum * power;
}

template <int N>
HWPRUNE_INLINE Vector<N> evaluate(Curve kind, float alpha, Vector<N> x) {
  const Vector<N> zero = {}, one = splat<N>(1.0f);
  switch (kind) {
    case Curve::hard_swish:
      return x * clamp<N>(x * (1.0f / 6.0f) + 0.5f, zero, one);
    case Curve::silu:
      // Below -87 exp(-x) is bounded: x / (1 + e^87) is within 1e-36 of the true value.
      return x / (one + exponential<N>(clamp<N>(-x, splat<N>(-87.0f), splat<N>(87.0f))));
    default:
      return x < zero ? x * alpha : x;
  }
}

}  // namespace

void curve(Curve kind, float alpha, float* data, size_t count) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store<kLanes>(data + i, evaluate<kLanes>(kind, alpha, load<kLanes>(data + i)));
  if (i < count) {
    store_part<kLanes>(data + i, evaluate<kLanes>(kind, alpha, load_part<kLanes>(data + i, count - i)), count - i);
  }
}

}  // namespace HWPRUNE_ISA
}  // namespace hwprune
