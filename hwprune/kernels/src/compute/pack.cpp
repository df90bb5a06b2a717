// Copies of the input in the order the tiles read it.
#include "simd.h"
#include "tables.h"

namespace hwprune {
namespace HWPRUNE_ISA {
namespace {

HWPRUNE_INLINE void zero(float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0.0f;
}

// Reads exactly [from, from + count): the last vector overlaps the one before it.
HWPRUNE_INLINE void copy(float* to, const float* from, int64_t count) {
  if (count >= kLanes) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store<kLanes>(to + i, load<kLanes>(from + i));
    store<kLanes>(to + count - kLanes, load<kLanes>(from + count - kLanes));
  } else if (kLanes > 4 && count >= 4) {
    for (int64_t i = 0; i + 4 <= count; i += 4) store<4>(to + i, load<4>(from + i));
    store<4>(to + count - 4, load<4>(from + count - 4));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

// Every second float; `count` of them, so that the last vector pair must end at from + 2 * count - 2.
HWPRUNE_INLINE void copy_even(float* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes < count; i += kLanes) {
    store<kLanes>(to + i, Shuffle<kLanes>::even(load<kLanes>(from + 2 * i), load<kLanes>(from + 2 * i + kLanes)));
  }
  for (; i < count; ++i) to[i] = from[2 * i];
}

HWPRUNE_INLINE int64_t clip(int64_t value, int64_t high) { return value < 0 ? 0 : value > high ? high : value; }

// First index i with origin + i * stride >= bound.
HWPRUNE_INLINE int64_t first_at(int64_t origin, int64_t stride, int64_t bound) {
  return origin >= bound ? 0 : (bound - origin + stride - 1) / stride;
}

}  // namespace

void pack(const PackJob& job) {
  for (size_t q = 0; q < job.plane_count; ++q) {
    const PackPlane& plane = job.planes[q];
    const int64_t top = job.first_row * job.stride_h + plane.row_origin;
    const int64_t left = job.first_column * job.stride_w + plane.column_origin;
    const int64_t rows = job.rows + plane.extra_rows, columns = job.columns + plane.extra_columns;
    const int64_t first_row = clip(first_at(top, job.stride_h, 0), rows);
    const int64_t last_row = job.source ? clip(first_at(top, job.stride_h, job.height), rows) : 0;
    const int64_t first = clip(first_at(left, job.stride_w, 0), columns);
    const int64_t last = clip(first_at(left, job.stride_w, job.width), columns);
    const int64_t stride = static_cast<int64_t>(job.row_stride);
    for (size_t c = 0; c < job.channels; ++c) {
      float* to = job.target + c * job.target_stride + plane.offset;
      if (last_row <= first_row || last <= first) {
        for (int64_t r = 0; r < rows; ++r) zero(to + r * stride, columns);
        continue;
      }
      for (int64_t r = 0; r < first_row; ++r) zero(to + r * stride, columns);
      const float* from = job.source + c * job.source_stride + (top + first_row * job.stride_h) * job.width + left +
                          first * job.stride_w;
      for (int64_t r = first_row; r < last_row; ++r, from += job.stride_h * job.width) {
        float* row = to + r * stride;
        zero(row, first);
        if (job.stride_w == 1) {
          copy(row + first, from, last - first);
        } else if (job.stride_w == 2) {
          copy_even(row + first, from, last - first);
        } else {
          for (int64_t i = first; i < last; ++i) row[i] = from[(i - first) * job.stride_w];
        }
        zero(row + last, columns - last);
      }
      for (int64_t r = last_row; r < rows; ++r) zero(to + r * stride, columns);
    }
  }
}

void pack_lanes(const LanePackJob& job) {
  const size_t count = job.channels * job.positions;
  size_t channel = 0, position = 0;
  for (size_t q = 0; q < count;) {
    const size_t step = count - q < static_cast<size_t>(kLanes) ? count - q : kLanes;
    float* to[kLanes];  // null: no tap reads this input
    for (size_t i = 0; i < step; ++i) {
      const int32_t offset = job.position_offset[position];
      to[i] = offset < 0 ? nullptr : job.target + (channel * job.channel_stride + offset) * job.lanes;
      if (++position == job.positions) position = 0, ++channel;
    }
    for (size_t lane = 0; lane < job.lanes; lane += kLanes) {
      Vector<kLanes> block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const float* from = job.source + (lane + i) * job.image_stride + q;
        if (lane + i >= job.images) block[i] = Vector<kLanes>{};
        else if (step == kLanes) block[i] = load<kLanes>(from);
        else block[i] = load_part<kLanes>(from, step);
      }
      transpose<kLanes>(block);
      for (size_t i = 0; i < step; ++i) {
        if (to[i]) store_part<kLanes>(to[i] + lane, block[i], job.lanes - lane < kLanes ? job.lanes - lane : kLanes);
      }
    }
    q += step;
  }
}

void unpack_lanes(const LaneUnpackJob& job) {
  const Vector<kLanes> low = splat<kLanes>(job.low), high = splat<kLanes>(job.high);
  for (size_t q = 0; q < job.count; q += kLanes) {
    const size_t step = job.count - q < static_cast<size_t>(kLanes) ? job.count - q : kLanes;
    for (size_t lane = 0; lane < job.images; lane += kLanes) {
      Vector<kLanes> block[kLanes];
      const size_t width = job.lanes - lane < static_cast<size_t>(kLanes) ? job.lanes - lane : kLanes;
      for (size_t i = 0; i < static_cast<size_t>(kLanes); ++i) {
        const float* from = job.source + (q + i) * job.lanes + lane;
        if (i >= step) block[i] = Vector<kLanes>{};
        else if (width == kLanes) block[i] = load<kLanes>(from);
        else block[i] = load_part<kLanes>(from, width);
      }
      transpose<kLanes>(block);
      for (size_t i = 0; i < kLanes && lane + i < job.images; ++i) {
        const size_t at = (lane + i) * job.image_stride + q;
        Vector<kLanes> sum = block[i];
        if (step == kLanes) {
          if (job.residual) sum += load<kLanes>(job.residual + at);
          store<kLanes>(job.target + at, clamp<kLanes>(sum, low, high));
        } else {
          if (job.residual) sum += load_part<kLanes>(job.residual + at, step);
          store_part<kLanes>(job.target + at, clamp<kLanes>(sum, low, high), step);
        }
      }
    }
  }
}

}  // namespace HWPRUNE_ISA
}  // namespace hwprune
