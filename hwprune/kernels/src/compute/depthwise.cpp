// Dense 3x3 depthwise convolution, straight from the input to the output.
//
// Nine weights are too few to walk them as nonzeros: they stay in registers. Several output rows are
// computed together, from left to right: every input row is loaded once for all of them.
#include "simd.h"
#include "tables.h"

namespace hwprune {
namespace HWPRUNE_ISA {
namespace {

using Lane = Vector<kLanes>;

// Output rows computed together: with nine weights and an input they fill sixteen registers.
constexpr int kRows = 4;

// A vector's width of output columns, and which lanes of its loads lie in the plane.
struct Strip {
  int64_t column, count;  // output columns
  int64_t begin;          // first input column
  LaneMask masks[4];
};

Strip strip_at(const DepthwiseJob& job, int64_t next) {
  Strip strip;
  // The last strip reaches back over the one before it rather than being narrower.
  strip.column = job.out_width >= kLanes && next + kLanes > job.out_width ? job.out_width - kLanes : next;
  strip.count = job.out_width - strip.column < kLanes ? job.out_width - strip.column : kLanes;
  strip.begin = strip.column * job.stride - job.pad_left;
  for (int k = 0; k < 4; ++k) {
    const int64_t at = strip.begin + (job.stride == 1 ? k : k % 2 * kLanes + k / 2 * 2);
    strip.masks[k] = lane_mask(-at, job.width - at);
  }
  return strip;
}

// The three inputs left to right that every output of the strip meets in a row; with a stride in the
// order of Shuffle::odd_in_blocks.
template <int Stride, bool Inner>
HWPRUNE_INLINE void load_taps(const float* from, const LaneMask* masks, Lane (&taps)[3]) {
  if constexpr (Stride == 1) {
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) taps[k] = Inner ? load<kLanes>(from + k) : load_masked(from + k, masks[k]);
  } else {
    Lane part[4];
    constexpr int kAt[4] = {0, kLanes, 2, kLanes + 2};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) part[k] = Inner ? load<kLanes>(from + kAt[k]) : load_masked(from + kAt[k], masks[k]);
    taps[0] = Shuffle<kLanes>::even_in_blocks(part[0], part[1]);
    taps[1] = Shuffle<kLanes>::odd_in_blocks(part[0], part[1]);
    taps[2] = Shuffle<kLanes>::even_in_blocks(part[2], part[3]);
  }
}

// `Rows` output rows of one strip. Inner: all input columns, or rows, lie in the plane.
template <int Stride, int Rows, bool InnerColumns, bool InnerRows>
HWPRUNE_INLINE void run_tile(const DepthwiseJob& job, const Lane (&weights)[9], int64_t row, int64_t column, int64_t count,
                             int64_t begin, const LaneMask* masks) {
  Lane sums[Rows];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) sums[r] = splat<kLanes>(job.bias);
  const int64_t top = row * Stride - job.pad_top;
  const float* const input = job.input + top * job.width + begin;
#pragma GCC unroll 9
  for (int k = 0; k < (Rows - 1) * Stride + 3; ++k) {
    if (!InnerRows && (top + k < 0 || top + k >= job.height)) continue;
    Lane taps[3];
    load_taps<Stride, InnerColumns>(input + k * job.width, masks, taps);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const int tap = 3 * (k - r * Stride);
      if (tap < 0 || tap > 6) continue;
      sums[r] = sums[r] + taps[0] * weights[tap] + taps[1] * weights[tap + 1] + taps[2] * weights[tap + 2];
    }
  }
  const Lane low = splat<kLanes>(job.low), high = splat<kLanes>(job.high);
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
    const int64_t at = (row + r) * job.out_width + column;
    Lane sum = Stride == 1 ? sums[r] : Shuffle<kLanes>::from_blocks(sums[r]);
    // What a narrow row has too much is overwritten by the rows below it.
    if (InnerColumns || count == kLanes || at + kLanes <= job.out_height * job.out_width) {
      if (job.residual) sum += load<kLanes>(job.residual + at);
      store<kLanes>(job.output + at, clamp<kLanes>(sum, low, high));
    } else {
      if (job.residual) sum += load_part<kLanes>(job.residual + at, static_cast<size_t>(count));
      store_part<kLanes>(job.output + at, clamp<kLanes>(sum, low, high), static_cast<size_t>(count));
    }
  }
}

// Called once for many columns: inlining all its kinds would only make their caller large.
template <int Stride, int Rows, bool InnerRows>
__attribute__((noinline)) void run_rows(const DepthwiseJob& job, int64_t row, const Strip& first, const Strip& last) {
  Lane weights[9];
#pragma GCC unroll 9
  for (int k = 0; k < 9; ++k) weights[k] = splat<kLanes>(job.weights[k]);
  for (int64_t next = 0; next < job.out_width; next += kLanes) {
    for (int64_t begin; next + kLanes <= job.out_width; next += kLanes) {
      begin = next * Stride - job.pad_left;
      if (begin < 0 || begin + Stride * kLanes + 2 > job.width) break;
      run_tile<Stride, Rows, true, InnerRows>(job, weights, row, next, kLanes, begin, nullptr);
    }
    if (next >= job.out_width) break;
    const bool at_end = next + kLanes >= job.out_width;
    Strip between;  // only paddings wider than a strip need it
    const Strip* strip = next == 0 ? &first : &last;
    if (next > 0 && !at_end) strip = &(between = strip_at(job, next));
    run_tile<Stride, Rows, false, InnerRows>(job, weights, row, strip->column, strip->count, strip->begin, strip->masks);
  }
}

template <int Stride>
void run_plane(const DepthwiseJob& job) {
  const Strip first = strip_at(job, 0), last = strip_at(job, (job.out_width - 1) / kLanes * kLanes);
  int64_t row = 0;
  for (; row + kRows <= job.out_height; row += kRows) {
    const int64_t top = row * Stride - job.pad_top;
    const bool inner = top >= 0 && top + (kRows - 1) * Stride + 3 <= job.height;
    (inner ? run_rows<Stride, kRows, true> : run_rows<Stride, kRows, false>)(job, row, first, last);
  }
  // Small planes have many such: computing rows twice instead would cost a seventh of a plane of 14 or 7 rows.
  switch (job.out_height - row) {
    case 3:
      return run_rows<Stride, 3, false>(job, row, first, last);
    case 2:
      return run_rows<Stride, 2, false>(job, row, first, last);
    case 1:
      return run_rows<Stride, 1, false>(job, row, first, last);
  }
}

}  // namespace

void depthwise(const DepthwiseJob& job) {
  if (job.stride == 1) run_plane<1>(job);
  else run_plane<2>(job);
}

}  // namespace HWPRUNE_ISA
}  // namespace hwprune
