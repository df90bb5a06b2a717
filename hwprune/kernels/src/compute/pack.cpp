// Copies of the input in the order the tiles read it.
#include "simd.h"
#include "tables.h"

namespace hwprune {
namespace HWPRUNE_ISA {
namespace {

HWPRUNE_INLINE int64_t clip(int64_t value, int64_t high) { return value < 0 ? 0 : value > high ? high : value; }

// First index i >= 0 with origin + i * stride >= bound.
HWPRUNE_INLINE int64_t first_at(int64_t origin, int64_t stride, int64_t bound) {
  return origin >= bound ? 0 : (bound - origin + stride - 1) / stride;
}

constexpr int64_t kMaskVectors = 16;  // rows of up to so many vectors have their masks prepared

// How one plane of the copy is made, the same for every channel.
struct Recipe {
  int64_t rows, columns;
  int64_t first_row, last_row;  // rows that lie in the input
  int64_t first, last;          // columns that do
  int64_t from;                 // floats from the channel's plane to the input of row 0, column 0 of the copy
  size_t offset;
  LaneMask masks[2 * kMaskVectors];
};

Recipe prepare(const PackJob& job, const PackPlane& plane) {
  Recipe recipe;
  recipe.rows = job.rows + plane.extra_rows;
  recipe.columns = job.columns + plane.extra_columns;
  const int64_t top = job.first_row * job.stride_h + plane.row_origin;
  const int64_t left = job.first_column * job.stride_w + plane.column_origin;
  recipe.first = clip(first_at(left, job.stride_w, 0), recipe.columns);
  recipe.last = clip(first_at(left, job.stride_w, job.width), recipe.columns);
  recipe.first_row = clip(first_at(top, job.stride_h, 0), recipe.rows);
  recipe.last_row = clip(first_at(top, job.stride_h, job.height), recipe.rows);
  if (job.source == nullptr || recipe.last <= recipe.first || recipe.last_row <= recipe.first_row) {
    recipe.first_row = recipe.last_row = recipe.rows;
  }
  recipe.from = top * job.width + left;
  recipe.offset = plane.offset;
  if (recipe.columns <= kMaskVectors * kLanes && job.stride_w <= 2) {
    // Of a stride of 2 the lanes between the wanted ones are read as well, but never one past the last.
    const int64_t begin = recipe.first * job.stride_w, end = (recipe.last - 1) * job.stride_w + 1;
    const int64_t vectors = (recipe.columns + kLanes - 1) / kLanes * job.stride_w;
    for (int64_t v = 0; v < vectors; ++v) recipe.masks[v] = lane_mask(begin - v * kLanes, end - v * kLanes);
  }
  return recipe;
}

HWPRUNE_INLINE void zero_row(float* to, int64_t columns) {
  for (int64_t i = 0; i < columns; i += kLanes) store<kLanes>(to + i, Vector<kLanes>{});
}

HWPRUNE_INLINE void copy_row(const Recipe& recipe, float* to, const float* from) {
  for (int64_t i = 0, v = 0; i < recipe.columns; i += kLanes, ++v) {
    store<kLanes>(to + i, load_masked(from + i, recipe.masks[v]));
  }
}

HWPRUNE_INLINE void copy_even(const Recipe& recipe, float* to, const float* from) {
  for (int64_t i = 0, v = 0; i < recipe.columns; i += kLanes, v += 2) {
    const Vector<kLanes> low = load_masked(from + 2 * i, recipe.masks[v]);
    const Vector<kLanes> high = load_masked(from + 2 * i + kLanes, recipe.masks[v + 1]);
    store<kLanes>(to + i, Shuffle<kLanes>::even(low, high));
  }
}

// Long rows and large strides: the same without prepared masks.
void copy_any(const Recipe& recipe, float* to, const float* from, int64_t stride) {
  int64_t i = 0;
  for (; i < recipe.first; ++i) to[i] = 0.0f;
  if (stride == 1) {
    for (; i + kLanes <= recipe.last; i += kLanes) store<kLanes>(to + i, load<kLanes>(from + i));
  }
  for (; i < recipe.last; ++i) to[i] = from[i * stride];
  for (; i < recipe.columns; ++i) to[i] = 0.0f;
}

void copy_plane(const PackJob& job, const Recipe& recipe, float* to, const float* source) {
  const bool masked = recipe.columns <= kMaskVectors * kLanes;
  int64_t r = 0;
  for (; r < recipe.first_row; ++r, to += job.row_stride) zero_row(to, recipe.columns);
  const int64_t step = job.stride_h * job.width;
  const float* from = r < recipe.last_row ? source + recipe.from + r * step : nullptr;
  if (masked && job.stride_w == 1) {
    for (; r < recipe.last_row; ++r, to += job.row_stride, from += step) copy_row(recipe, to, from);
  } else if (masked && job.stride_w == 2) {
    for (; r < recipe.last_row; ++r, to += job.row_stride, from += step) copy_even(recipe, to, from);
  } else {
    for (; r < recipe.last_row; ++r, to += job.row_stride, from += step) copy_any(recipe, to, from, job.stride_w);
  }
  for (; r < recipe.rows; ++r, to += job.row_stride) zero_row(to, recipe.columns);
}

}  // namespace

void pack(const PackJob& job) {
  constexpr size_t kPrepared = 12;
  Recipe recipes[kPrepared];
  const bool prepared = job.plane_count <= kPrepared;
  for (size_t q = 0; prepared && q < job.plane_count; ++q) recipes[q] = prepare(job, job.planes[q]);
  for (size_t c = 0; c < job.channels; ++c) {
    const float* const source = job.source == nullptr ? nullptr : job.source + c * job.source_stride;
    float* const to = job.target + c * job.target_stride;
    // In the order of the copy, as the vectors of a row run over into what follows it.
    for (size_t q = 0; q < job.plane_count; ++q) {
      if (!prepared) recipes[0] = prepare(job, job.planes[q]);
      const Recipe& recipe = recipes[prepared ? q : 0];
      copy_plane(job, recipe, to + recipe.offset, source);
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
        if (to[i]) store<kLanes>(to[i] + lane, block[i]);  // lanes are whole vectors, see choice.cpp
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
      for (size_t i = 0; i < static_cast<size_t>(kLanes); ++i) {
        const float* from = job.source + (q + i) * job.lanes + lane;
        block[i] = i < step ? load<kLanes>(from) : Vector<kLanes>{};
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
