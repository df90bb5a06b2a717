// Dense 3x3 depthwise convolution, straight from the input to the output.
//
// Nine weights are too few to walk them as nonzeros. A strip of one vector's width goes down the plane:
// every input row is loaded once and added to the three output rows it belongs to.
#include "simd.h"
#include "tables.h"

namespace hwprune {
namespace HWPRUNE_ISA {
namespace {

using Lane = Vector<kLanes>;

// The input columns of one strip: first column, and which lanes of its loads lie in the plane.
struct Strip {
  int64_t begin;
  LaneMask masks[4];
};

// The three inputs left to right that every output of the strip meets in a row.
template <int Stride, bool Inner>
HWPRUNE_INLINE void load_taps(const float* row, const Strip& strip, Lane (&taps)[3]) {
  const float* const from = row + strip.begin;
  if constexpr (Stride == 1) {
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) taps[k] = Inner ? load<kLanes>(from + k) : load_masked(from + k, strip.masks[k]);
  } else {
    Lane part[4];
    constexpr int kAt[4] = {0, kLanes, 2, kLanes + 2};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) part[k] = Inner ? load<kLanes>(from + kAt[k]) : load_masked(from + kAt[k], strip.masks[k]);
    taps[0] = Shuffle<kLanes>::even(part[0], part[1]);
    taps[1] = Shuffle<kLanes>::odd(part[0], part[1]);
    taps[2] = Shuffle<kLanes>::even(part[2], part[3]);
  }
}

HWPRUNE_INLINE Lane add_taps(Lane sum, const Lane (&taps)[3], const Lane* weights) {
  return sum + taps[0] * weights[0] + taps[1] * weights[1] + taps[2] * weights[2];
}

template <int Stride, bool Inner>
void run_strip(const DepthwiseJob& job, const Strip& strip, int64_t column, size_t count) {
  Lane weights[9];
#pragma GCC unroll 9
  for (int k = 0; k < 9; ++k) weights[k] = splat<kLanes>(job.weights[k]);
  const Lane bias = splat<kLanes>(job.bias), low = splat<kLanes>(job.low), high = splat<kLanes>(job.high);
  const auto row_taps = [&](int64_t row, Lane(&taps)[3]) __attribute__((always_inline)) {
    const int64_t y = row - job.pad_top;
    if (y >= 0 && y < job.height) load_taps<Stride, Inner>(job.input + y * job.width, strip, taps);
    else taps[0] = taps[1] = taps[2] = Lane{};
  };
  const auto finish = [&](int64_t row, Lane sum) __attribute__((always_inline)) {
    float* const to = job.output + row * job.out_width + column;
    const float* const add = job.residual == nullptr ? nullptr : job.residual + row * job.out_width + column;
    if (count == static_cast<size_t>(kLanes)) {
      if (add) sum += load<kLanes>(add);
      store<kLanes>(to, clamp<kLanes>(sum, low, high));
    } else {
      if (add) sum += load_part<kLanes>(add, count);
      store_part<kLanes>(to, clamp<kLanes>(sum, low, high), count);
    }
  };
  Lane taps[3];
  row_taps(0, taps);
  Lane upper = add_taps(bias, taps, weights);  // of the output row that has met its first input row
  row_taps(1, taps);
  upper = add_taps(upper, taps, weights + 3);
  if constexpr (Stride == 1) {
    Lane lower = add_taps(bias, taps, weights);
    for (int64_t row = 0; row < job.out_height; ++row) {
      row_taps(row + 2, taps);
      finish(row, add_taps(upper, taps, weights + 6));
      upper = add_taps(lower, taps, weights + 3);
      lower = add_taps(bias, taps, weights);
    }
  } else {
    for (int64_t row = 0; row < job.out_height; ++row) {
      row_taps(2 * row + 2, taps);
      finish(row, add_taps(upper, taps, weights + 6));
      upper = add_taps(bias, taps, weights);
      row_taps(2 * row + 3, taps);
      upper = add_taps(upper, taps, weights + 3);
    }
  }
}

template <int Stride>
void run_plane(const DepthwiseJob& job) {
  for (int64_t next = 0; next < job.out_width; next += kLanes) {
    // The last strip reaches back over the one before it rather than being narrower.
    const int64_t column = job.out_width >= kLanes && next + kLanes > job.out_width ? job.out_width - kLanes : next;
    const int64_t count = job.out_width - column < kLanes ? job.out_width - column : kLanes;
    Strip strip;
    strip.begin = column * Stride - job.pad_left;
    const int64_t reach = Stride == 1 ? kLanes + 2 : 2 * kLanes + 2;
    if (strip.begin >= 0 && strip.begin + reach <= job.width) {
      run_strip<Stride, true>(job, strip, column, static_cast<size_t>(count));
      continue;
    }
    for (int k = 0; k < 4; ++k) {
      const int64_t at = strip.begin + (Stride == 1 ? k : k % 2 * kLanes + k / 2 * 2);
      strip.masks[k] = lane_mask(-at, job.width - at);
    }
    run_strip<Stride, false>(job, strip, column, static_cast<size_t>(count));
  }
}

}  // namespace

void depthwise(const DepthwiseJob& job) {
  if (job.stride == 1) run_plane<1>(job);
  else run_plane<2>(job);
}

}  // namespace HWPRUNE_ISA
}  // namespace hwprune
