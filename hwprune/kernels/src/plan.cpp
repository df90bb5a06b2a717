#include "plan.h"

#include <algorithm>
#include <numeric>

namespace hwprune {
namespace {

constexpr int64_t kCacheAlias = 512;  // floats: channel strides that are multiples of it share cache sets

// Distinct phases of one axis: which remainders (tap * dilation) % stride occur, and the largest shift of each.
struct Phase {
  int64_t remainder, extra;
};

std::vector<Phase> phases(int64_t kernel, int64_t stride, int64_t dilation) {
  std::vector<Phase> found;
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t at = k * dilation;
    const auto same = [&](const Phase& phase) { return phase.remainder == at % stride; };
    const auto known = std::find_if(found.begin(), found.end(), same);
    if (known == found.end()) found.push_back({at % stride, at / stride});
    else known->extra = std::max(known->extra, at / stride);
  }
  return found;
}

// Fills planes, strides and, per kernel position [kh * KW + kw], the offset of its first element.
std::vector<int64_t> lay_out(Plan& plan) {
  const ConvShape& shape = plan.shape;
  const PlanChoice& choice = plan.choice;
  const int64_t kernel_h = shape.kernel[1], kernel_w = shape.kernel[2];
  std::vector<int64_t> taps(static_cast<size_t>(kernel_h * kernel_w), 0);
  if (choice.layout == Layout::direct) {
    plan.row_stride = plan.in[2];
    plan.channel_stride = plan.in[2];
    return taps;
  }
  const bool expanded = choice.layout == Layout::expanded;
  const std::vector<Phase> row_phases = phases(kernel_h, shape.stride[1], shape.dilation[1]);
  std::vector<Phase> columns;
  if (expanded) {
    for (int64_t k = 0; k < kernel_w; ++k) columns.push_back({k * shape.dilation[2], 0});
  } else {
    columns = phases(kernel_w, shape.stride[2], shape.dilation[2]);
  }
  int64_t extra = 0;
  for (const Phase& column : columns) extra = std::max(extra, column.extra);
  plan.row_stride = choice.block_columns + extra;
  if (choice.layout == Layout::padded && choice.block_rows + kernel_h > 2) {
    plan.row_stride = round_up(plan.row_stride, compute().lanes);
  }
  int64_t offset = 0;
  for (const Phase& row : row_phases) {
    for (size_t i = 0; i < columns.size(); ++i) {
      plan.planes.push_back({row.remainder - shape.pad_begin[1], columns[i].remainder - shape.pad_begin[2], row.extra,
                             columns[i].extra, static_cast<size_t>(offset)});
      for (int64_t kh = 0; kh < kernel_h; ++kh) {
        if (kh * shape.dilation[1] % shape.stride[1] != row.remainder) continue;
        for (int64_t kw = 0; kw < kernel_w; ++kw) {
          const int64_t at = kw * shape.dilation[2];
          if (expanded ? kw != static_cast<int64_t>(i) : at % shape.stride[2] != columns[i].remainder) continue;
          taps[static_cast<size_t>(kh * kernel_w + kw)] =
              offset + kh * shape.dilation[1] / shape.stride[1] * plan.row_stride + (expanded ? 0 : at / shape.stride[2]);
        }
      }
      offset += (choice.block_rows + row.extra) * plan.row_stride;
    }
  }
  plan.channel_stride = offset;
  if (choice.layout != Layout::batch_lanes) {
    plan.channel_stride = round_up(offset, compute().lanes);
    if (plan.channel_stride % kCacheAlias == 0) plan.channel_stride += 16;
  }
  return taps;
}

void place_lanes(Plan& plan) {
  const ConvShape& shape = plan.shape;
  plan.lane_positions.assign(static_cast<size_t>(plan.in[1] * plan.in[2]), -1);
  for (const PackPlane& plane : plan.planes) {
    for (int64_t r = 0; r < plan.choice.block_rows + plane.extra_rows; ++r) {
      const int64_t y = r * shape.stride[1] + plane.row_origin;
      if (y < 0 || y >= plan.in[1]) continue;
      for (int64_t i = 0; i < plan.choice.block_columns + plane.extra_columns; ++i) {
        const int64_t x = i * shape.stride[2] + plane.column_origin;
        if (x < 0 || x >= plan.in[2]) continue;
        plan.lane_positions[static_cast<size_t>(y * plan.in[2] + x)] =
            static_cast<int32_t>(static_cast<int64_t>(plane.offset) + r * plan.row_stride + i);
      }
    }
  }
}

// Fills offsets and segments; false when 16 bits do not reach.
bool place_nonzeros(Plan& plan, const Weights& weights, const std::vector<int64_t>& taps) {
  const int64_t split = plan.choice.split_channels;
  const int64_t tap_count = static_cast<int64_t>(taps.size());
  int64_t scale = plan.channel_stride;
  for (const int64_t tap : taps) scale = std::gcd(scale, tap);
  scale = std::max<int64_t>(scale, 1);
  plan.offset_scale = static_cast<size_t>(scale * plan.choice.lanes);
  const int64_t reach = (std::min(split, plan.channels) - 1) * plan.channel_stride + *std::max_element(taps.begin(), taps.end());
  if (reach / scale > UINT16_MAX) return false;
  // A pointwise layer in one piece finds channel c at c * scale: its columns are its offsets.
  const bool columns_serve = tap_count == 1 && plan.splits == 1 && plan.channel_stride == scale && weights.narrow_columns() != nullptr;
  if (columns_serve) {
    plan.offsets = weights.narrow_columns();
  } else {
    plan.own_offsets.resize(weights.nonzeros());
    for (size_t i = 0; i < weights.nonzeros(); ++i) {
      const int64_t column = weights.column(i);
      const int64_t channel = column / tap_count % split;
      plan.own_offsets[i] = static_cast<uint16_t>(
          (channel * plan.channel_stride + taps[static_cast<size_t>(column % tap_count)]) / scale);
    }
    plan.offsets = plan.own_offsets.data();
  }
  if (plan.splits == 1) {
    plan.segments = weights.row_start().data();
    return true;
  }
  plan.own_segments.reserve(static_cast<size_t>(weights.rows() * plan.splits) + 1);
  for (size_t row = 0; row < static_cast<size_t>(weights.rows()); ++row) {
    uint32_t i = weights.row_start()[row];
    for (int64_t s = 0; s < plan.splits; ++s) {
      plan.own_segments.push_back(i);
      while (i < weights.row_start()[row + 1] && weights.column(i) / tap_count < (s + 1) * split) ++i;
    }
  }
  plan.own_segments.push_back(static_cast<uint32_t>(weights.nonzeros()));
  plan.segments = plan.own_segments.data();
  return true;
}

}  // namespace

size_t Plan::resident_bytes() const {
  return sizeof(Plan) + planes.capacity() * sizeof(PackPlane) + own_offsets.capacity() * sizeof(uint16_t) +
         own_segments.capacity() * sizeof(uint32_t) + lane_positions.capacity() * sizeof(int32_t);
}

bool PlanChoice::operator==(const PlanChoice& other) const {
  return layout == other.layout && block_rows == other.block_rows && block_columns == other.block_columns &&
         tile.vectors == other.tile.vectors && tile.rows == other.tile.rows && split_channels == other.split_channels &&
         lanes == other.lanes;
}

void fold(ConvShape& shape, Extents& in, Extents& out) {
  // An axis is trivial when output position i reads input position i and nothing else.
  const auto trivial = [&](size_t axis) {
    return shape.kernel[axis] == 1 && shape.stride[axis] == 1 && shape.pad_begin[axis] == 0 && shape.pad_end[axis] == 0;
  };
  const auto merge = [&](size_t axis) {
    if (!trivial(axis) || !trivial(axis + 1)) return;
    in[axis + 1] *= in[axis];
    out[axis + 1] *= out[axis];
    in[axis] = out[axis] = 1;
  };
  merge(0);
  merge(1);
}

TileShape tile_shape(int64_t vectors, int64_t rows) {
  const int64_t most = compute().max_vectors;
  const int64_t per_row = ceil_div(vectors, ceil_div(vectors, most));
  const int64_t fit = std::max<int64_t>(1, std::min<int64_t>(most / per_row, kMaxTileRows));
  return {per_row, ceil_div(rows, ceil_div(rows, fit))};
}

std::shared_ptr<const Plan> make_plan(const ConvShape& shape, const Extents& in, const Weights& weights, const PlanChoice& choice) {
  auto plan = std::make_shared<Plan>();
  plan->choice = choice;
  plan->shape = shape;
  plan->in = in;
  plan->out = output_extents(shape, in);
  fold(plan->shape, plan->in, plan->out);
  plan->channels = shape.group_channels() * shape.kernel[0];
  plan->splits = std::max<int64_t>(1, ceil_div(plan->channels, choice.split_channels));
  if (choice.layout == Layout::naive || choice.layout == Layout::depthwise) return plan;
  const std::vector<int64_t> taps = lay_out(*plan);
  if (!place_nonzeros(*plan, weights, taps)) {
    auto naive = std::make_shared<Plan>();
    naive->shape = shape;
    naive->in = in;
    naive->out = output_extents(shape, in);
    return naive;
  }
  if (choice.layout == Layout::batch_lanes) place_lanes(*plan);
  if (choice.layout != Layout::direct) {
    // Small groups share the cost of a copy, as long as it stays in the first-level cache.
    const int64_t group_floats = std::min(choice.split_channels, plan->channels) * plan->channel_stride * choice.lanes;
    if (plan->splits == 1 && plan->shape.kernel[0] == 1 && choice.layout != Layout::batch_lanes) {
      plan->groups_together = std::max<int64_t>(1, std::min(shape.group, kFirstLevelFloats / group_floats));
    }
    // A tile's vectors run past the block's last position, by less than a tile.
    const int64_t slack = (compute().max_vectors + 1) * compute().lanes;
    plan->scratch_floats = static_cast<size_t>(plan->groups_together * group_floats + slack);
  }
  return plan;
}

}  // namespace hwprune
