// Vectors of floats through the compiler's vector extensions: one source for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>  // masked loads have no spelling in the vector extensions
#endif

#ifndef HWPRUNE_ISA
#error "compile the files of compute/ once per instruction set with -DHWPRUNE_ISA=<name>"
#endif

namespace hwprune {
namespace HWPRUNE_ISA {

#define HWPRUNE_INLINE inline __attribute__((always_inline))

// kMaxVectors: accumulators that stay in registers beside the broadcast weight (and, where the
// multiply-add takes no memory operand, a loaded input).
#if defined(__AVX512F__)
constexpr int kLanes = 16, kMaxVectors = 28;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kMaxVectors = 14;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kMaxVectors = 24;
#else
constexpr int kLanes = 4, kMaxVectors = 12;
#endif

// Registers hold the aligned type; memory is reached through the type of float alignment.
template <int N>
struct VectorOf;
#define HWPRUNE_VECTOR(N)                                                            \
  template <>                                                                        \
  struct VectorOf<N> {                                                               \
    typedef float Register __attribute__((vector_size(4 * N), may_alias));           \
    typedef float Memory __attribute__((vector_size(4 * N), aligned(4), may_alias)); \
    typedef int32_t Mask __attribute__((vector_size(4 * N)));                        \
  };
HWPRUNE_VECTOR(4)
#if defined(__AVX2__)
HWPRUNE_VECTOR(8)
#endif
#if defined(__AVX512F__)
HWPRUNE_VECTOR(16)
#endif
#undef HWPRUNE_VECTOR

template <int N>
using Vector = typename VectorOf<N>::Register;

template <int N>
HWPRUNE_INLINE Vector<N> load(const float* from) {
  return *reinterpret_cast<const typename VectorOf<N>::Memory*>(from);
}

template <int N>
HWPRUNE_INLINE void store(float* to, Vector<N> value) {
  *reinterpret_cast<typename VectorOf<N>::Memory*>(to) = value;
}

template <int N>
HWPRUNE_INLINE Vector<N> splat(float value) {
  return value - Vector<N>{};  // x - 0 keeps the sign of zero, 0 + x would not
}

// The comparisons keep a NaN, as onnxruntime's Relu and Clip do.
template <int N>
HWPRUNE_INLINE Vector<N> clamp(Vector<N> value, Vector<N> low, Vector<N> high) {
  value = low > value ? low : value;
  return high < value ? high : value;
}

// Fewer than N floats: the memory beyond them is neither read nor written. Stores go in pieces, as masked
// stores are slow on some processors that have them.
template <int N>
HWPRUNE_INLINE Vector<N> load_part(const float* from, size_t count) {
  float buffer[N] = {};
  for (size_t i = 0; i < count; ++i) buffer[i] = from[i];
  return load<N>(buffer);
}

template <int N>
HWPRUNE_INLINE void store_part(float* to, Vector<N> value, size_t count) {
  float buffer[N];
  store<N>(buffer, value);
  const float* from = buffer;
#pragma GCC unroll 4
  for (int piece = N / 2; piece >= 1; piece /= 2) {
    if ((count & static_cast<size_t>(piece)) == 0) continue;
    std::memcpy(to, from, sizeof(float) * static_cast<size_t>(piece));
    to += piece;
    from += piece;
  }
}

// Which lanes of a vector may be read. But for AVX-512 all bits of these lanes.
#if defined(__AVX512F__)
using LaneMask = __mmask16;
#elif defined(__AVX2__)
using LaneMask = __m256i;
#else
using LaneMask = VectorOf<kLanes>::Mask;
#endif

// Lanes [first, last), clipped to the vector.
HWPRUNE_INLINE LaneMask lane_mask(int64_t first, int64_t last) {
  const int low = first < 0 ? 0 : first > kLanes ? kLanes : static_cast<int>(first);
  const int high = last < 0 ? 0 : last > kLanes ? kLanes : static_cast<int>(last);
#if defined(__AVX512F__)
  return static_cast<LaneMask>(((1u << high) - 1u) & ~((1u << low) - 1u));
#elif !defined(__AVX2__)
  const LaneMask lanes = {0, 1, 2, 3};
  return (lanes >= low) & (lanes < high);
#else
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_and_si256(_mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(low - 1)), _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lanes));
#endif
}

// Zeros in the lanes outside the mask, whose memory is not read.
HWPRUNE_INLINE Vector<kLanes> load_masked(const float* from, LaneMask mask) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(mask, from);
#elif defined(__AVX2__)
  return _mm256_maskload_ps(from, mask);
#else
  float buffer[kLanes] = {};
  for (int i = 0; i < kLanes; ++i) {
    if (mask[i]) buffer[i] = from[i];
  }
  return load<kLanes>(buffer);
#endif
}

// N rows of N floats become N columns: log2(N) times the perfect shuffle of rows i and i + N / 2.
template <int N>
struct Shuffle;
template <>
struct Shuffle<4> {
  static HWPRUNE_INLINE Vector<4> low(Vector<4> a, Vector<4> b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
  static HWPRUNE_INLINE Vector<4> high(Vector<4> a, Vector<4> b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
  static HWPRUNE_INLINE Vector<4> even(Vector<4> a, Vector<4> b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
  static HWPRUNE_INLINE Vector<4> odd(Vector<4> a, Vector<4> b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
  // Even and odd in another order, the same for both: cheaper, and from_blocks undoes it for a sum of many.
  static HWPRUNE_INLINE Vector<4> even_in_blocks(Vector<4> a, Vector<4> b) { return even(a, b); }
  static HWPRUNE_INLINE Vector<4> odd_in_blocks(Vector<4> a, Vector<4> b) { return odd(a, b); }
  static HWPRUNE_INLINE Vector<4> from_blocks(Vector<4> a) { return a; }
};
#if defined(__AVX2__)
template <>
struct Shuffle<8> {
  static HWPRUNE_INLINE Vector<8> low(Vector<8> a, Vector<8> b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  }
  static HWPRUNE_INLINE Vector<8> high(Vector<8> a, Vector<8> b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  }
  static HWPRUNE_INLINE Vector<8> even(Vector<8> a, Vector<8> b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  }
  static HWPRUNE_INLINE Vector<8> odd(Vector<8> a, Vector<8> b) {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  }
  static HWPRUNE_INLINE Vector<8> even_in_blocks(Vector<8> a, Vector<8> b) {
    return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
  }
  static HWPRUNE_INLINE Vector<8> odd_in_blocks(Vector<8> a, Vector<8> b) {
    return __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  }
  static HWPRUNE_INLINE Vector<8> from_blocks(Vector<8> a) {
    return __builtin_shufflevector(a, a, 0, 1, 4, 5, 2, 3, 6, 7);
  }
};
#endif
#if defined(__AVX512F__)
template <>
struct Shuffle<16> {
  static HWPRUNE_INLINE Vector<16> low(Vector<16> a, Vector<16> b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  }
  static HWPRUNE_INLINE Vector<16> high(Vector<16> a, Vector<16> b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  static HWPRUNE_INLINE Vector<16> even(Vector<16> a, Vector<16> b) {
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
  static HWPRUNE_INLINE Vector<16> odd(Vector<16> a, Vector<16> b) {
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
  static HWPRUNE_INLINE Vector<16> even_in_blocks(Vector<16> a, Vector<16> b) {
    return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
  }
  static HWPRUNE_INLINE Vector<16> odd_in_blocks(Vector<16> a, Vector<16> b) {
    return __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
  }
  static HWPRUNE_INLINE Vector<16> from_blocks(Vector<16> a) {
    return __builtin_shufflevector(a, a, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  }
};
#endif

template <int N>
HWPRUNE_INLINE void transpose(Vector<N> (&rows)[N]) {
#pragma GCC unroll 4
  for (int step = 1; step < N; step *= 2) {
    Vector<N> next[N];
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) {
      next[2 * i] = Shuffle<N>::low(rows[i], rows[i + N / 2]);
      next[2 * i + 1] = Shuffle<N>::high(rows[i], rows[i + N / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) rows[i] = next[i];
  }
}

}  // namespace HWPRUNE_ISA
}  // namespace hwprune
