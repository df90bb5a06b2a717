#include "conv.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "conv_call.h"
#include "scratch.h"

namespace hwprune {
namespace {

constexpr size_t kMostPlans = 6;

}  // namespace

SparseConv::SparseConv(const ConvSpec& spec, SparseMatrix weights, Epilogue epilogue)
    : axes_(spec.kernel.size()),
      shape_(make_shape(spec)),
      weights_(std::move(weights)),
      epilogue_(std::move(epilogue)),
      low_(-std::numeric_limits<float>::infinity()),
      high_(std::numeric_limits<float>::infinity()) {
  if (weights_.rows() != shape_.out_channels || weights_.columns() != shape_.group_channels() * shape_.taps()) {
    throw std::invalid_argument("convolution: the weight matrix does not have the shape of the specification");
  }
  if (!epilogue_.bias.empty() && static_cast<int64_t>(epilogue_.bias.size()) != weights_.rows()) {
    throw std::invalid_argument("convolution: not one bias per output channel");
  }
  if (epilogue_.activation == Activation::relu || epilogue_.activation == Activation::relu6) low_ = 0;
  if (epilogue_.activation == Activation::relu6) high_ = 6;
}

size_t SparseConv::resident_bytes() const {
  size_t bytes = weights_.resident_bytes() + epilogue_.bias.capacity() * sizeof(float) + sizeof(*this);
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < plans_.size(); ++i) {
    const auto same = [&](const CachedPlan& other) { return other.plan == plans_[i].plan; };
    if (std::none_of(plans_.begin(), plans_.begin() + static_cast<std::ptrdiff_t>(i), same)) bytes += plans_[i].plan->resident_bytes();
  }
  return bytes;
}

std::vector<PlanChoice> SparseConv::choices(int64_t batch, const int64_t* spatial) const {
  return candidates(shape_, to_extents(spatial, axes_), static_cast<int64_t>(weights_.nonzeros()), batch, 1);
}

std::shared_ptr<const Plan> SparseConv::plan_with(const int64_t* spatial, const PlanChoice& choice) const {
  return make_plan(shape_, to_extents(spatial, axes_), weights_, choice);
}

std::shared_ptr<const Plan> SparseConv::plan(int64_t batch, const int64_t* spatial, int threads) const {
  const Extents in = to_extents(spatial, axes_);
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = plans_.size(); i-- > 0;) {
    if (plans_[i].in != in || plans_[i].batch != batch || plans_[i].threads != threads) continue;
    std::rotate(plans_.begin() + static_cast<std::ptrdiff_t>(i), plans_.begin() + static_cast<std::ptrdiff_t>(i) + 1, plans_.end());
    return plans_.back().plan;
  }
  const PlanChoice choice = candidates(shape_, in, static_cast<int64_t>(weights_.nonzeros()), batch, threads).front();
  CachedPlan entry{in, batch, threads, nullptr};
  for (const CachedPlan& other : plans_) {
    if (other.in == in && other.plan->choice == choice) entry.plan = other.plan;
  }
  if (!entry.plan) entry.plan = make_plan(shape_, in, weights_, choice);
  if (plans_.size() == kMostPlans) plans_.erase(plans_.begin());
  plans_.push_back(entry);
  return entry.plan;
}

void SparseConv::run(const float* x, int64_t batch, const int64_t* spatial, float* y, const float* residual,
                     const Parallel& parallel) const {
  const Extents in = to_extents(spatial, axes_);
  const Extents out = output_extents(shape_, in);
  if (batch <= 0 || product(out) == 0) return;
  const std::shared_ptr<const Plan> chosen = plan(batch, spatial, thread_count(parallel));
  const bool alone = chosen->choice.cost * static_cast<double>(batch) < parallel.least_ns;
  run_with(*chosen, x, batch, y, residual, alone ? Parallel{} : parallel);
}

void SparseConv::run_with(const Plan& plan, const float* x, int64_t batch, float* y, const float* residual,
                          const Parallel& parallel) const {
  const Call call{plan, x, batch, y, residual, parallel};
  // With padding before the input the one output position may lie in it.
  const bool one_position =
      product(plan.in) == 1 && product(plan.out) == 1 && plan.shape.taps() == 1 && plan.shape.pad_begin == Extents{0, 0, 0};
  if (plan.choice.layout == Layout::naive) {
    run_naive(call);
  } else if (plan.choice.layout == Layout::batch_lanes) {
    run_lanes(call);
  } else if (plan.choice.layout == Layout::depthwise) {
    run_depthwise(call);
  } else if (one_position && shape_.group == 1 && weights_.narrow_columns() != nullptr) {
    run_vector(call);
  } else {
    run_blocks(call);
  }
}

void SparseConv::set_epilogue(TileJob& job, int64_t split, int64_t splits, const float* bias, const float* residual) const {
  const bool first = split == 0, last = split + 1 == splits;
  job.bias = first ? bias : nullptr;
  job.accumulate = !first;
  job.residual = last ? residual : nullptr;
  job.low = last ? low_ : -std::numeric_limits<float>::infinity();
  job.high = last ? high_ : std::numeric_limits<float>::infinity();
}

bool SparseConv::has_curve() const {
  return epilogue_.activation == Activation::hard_swish || epilogue_.activation == Activation::silu ||
         epilogue_.activation == Activation::leaky_relu;
}

void SparseConv::finish_rows(float* data, size_t count) const {
  switch (epilogue_.activation) {
    case Activation::hard_swish:
      compute().curve(Curve::hard_swish, 0, data, count);
      break;
    case Activation::silu:
      compute().curve(Curve::silu, 0, data, count);
      break;
    case Activation::leaky_relu:
      compute().curve(Curve::leaky_relu, epilogue_.alpha, data, count);
      break;
    default:
      break;
  }
}

// Walks the tiles of a block of rows x columns positions.
void SparseConv::tiles(const Call& call, TileJob& job, const float* input, float* output, const float* residual, int64_t rows,
                       int64_t columns, int64_t output_row_stride, int64_t lanes) const {
  const Compute& isa = compute();
  const Plan& plan = call.plan;
  const bool linear = plan.linear() || rows == 1;
  const int64_t width = (linear ? rows * columns : columns) * lanes;  // floats of a row of tiles
  const int64_t height = linear ? 1 : rows;
  const bool direct = plan.choice.layout == Layout::direct;
  const TileShape tile = plan.choice.tile;
  job.input_row_stride = static_cast<size_t>(plan.row_stride * lanes);
  job.output_row_stride = static_cast<size_t>(output_row_stride);
  for (int64_t r = 0; r < height; r += tile.rows) {
    const int64_t tile_rows = std::min(tile.rows, height - r);
    for (int64_t next = 0; next < width; next += tile.vectors * isa.lanes) {
      const int64_t at = direct ? std::min(next, width - tile.vectors * isa.lanes) : next;
      const int64_t left = width - at;
      const int64_t vectors = std::min(tile.vectors, ceil_div(left, isa.lanes));
      int vector = isa.lanes;
      while (tile_rows * vectors == 1 && vector > 4 && left <= vector / 2) vector /= 2;
      job.columns = static_cast<size_t>(left);
      job.input = input + r * plan.row_stride * lanes + at;
      const int64_t to = r * output_row_stride + at;
      job.output = output + to;
      if (job.residual != nullptr) job.residual = residual + to;
      isa.tile(vector, static_cast<int>(tile_rows), static_cast<int>(vectors), job);
    }
  }
}

// Copies smaller than this are made faster than they are shared out.
constexpr int64_t kSharedCopyFloats = 8 * 1024;

// Packs on all threads. Packing writes up to a vector less a float beyond its
// last channel; so the first channel of every part but the first is packed when the others are done.
static void share_pack(const Parallel& parallel, const PackJob& whole) {
  const Compute& isa = compute();
  const int64_t channels = static_cast<int64_t>(whole.channels), stride = static_cast<int64_t>(whole.target_stride);
  if (whole.source == nullptr || stride < isa.lanes || channels * stride < kSharedCopyFloats) return isa.pack(whole);
  const int64_t parts = std::min<int64_t>(thread_count(parallel), channels);
  const auto some = [&](int64_t begin, int64_t end) {
    PackJob job = whole;
    job.source += static_cast<size_t>(begin) * whole.source_stride;
    job.target += static_cast<size_t>(begin) * whole.target_stride;
    job.channels = static_cast<size_t>(end - begin);
    if (begin < end) isa.pack(job);
  };
  for_each(parallel, static_cast<size_t>(parts), [&](size_t part) {
    const int64_t i = static_cast<int64_t>(part);
    some(channels * i / parts + (i > 0), channels * (i + 1) / parts);
  });
  for (int64_t i = 1; i < parts; ++i) {
    const int64_t first = channels * i / parts;
    float* const next = whole.target + static_cast<size_t>(first + 1) * whole.target_stride;
    float kept[16];
    const bool last = first + 1 == channels;
    if (!last) std::copy_n(next, isa.lanes, kept);
    some(first, first + 1);
    if (!last) std::copy_n(kept, isa.lanes, next);
  }
}

void SparseConv::run_blocks(const Call& call) const {
  const Plan& plan = call.plan;
  const PlanChoice& choice = plan.choice;
  const ConvShape& shape = plan.shape;
  const Compute& isa = compute();
  const int64_t threads = thread_count(call.parallel);
  const int64_t row_blocks = ceil_div(plan.out[1], choice.block_rows);
  const bool direct = choice.layout == Layout::direct;
  // Read directly, the last tile reaches back instead of past the input's end: the block before takes it.
  const int64_t column_blocks =
      direct ? plan.out[2] / choice.block_columns : ceil_div(plan.out[2], choice.block_columns);
  const int64_t blocks = call.batch * plan.out[0] * row_blocks * column_blocks;
  const int64_t group_parts = threads == 1 ? 1 : std::min(shape.group, 4 * threads);
  const int64_t items = blocks * group_parts;
  const bool share_rows = threads > 1 && shape.group == 1 && items < 4 * threads && items % threads != 0;
  // One weight row per group and one channel: the rows of a tile step from plane to plane.
  const bool depthwise = !share_rows && shape.group > 1 && shape.group_rows() == 1;
  const int64_t group_rows = shape.group_rows(), kernel_depth = shape.kernel[0];
  const int64_t in_plane = plan.in[1] * plan.in[2], out_plane = plan.out[1] * plan.out[2];
  const int64_t out_stride = plan.out[0] * out_plane;
  const float* const bias = epilogue_.bias.empty() ? nullptr : epilogue_.bias.data();

  const auto item = [&](size_t index) {
    int64_t rest = static_cast<int64_t>(index);
    const int64_t group_part = rest % group_parts;
    rest /= group_parts;
    const int64_t column = rest % column_blocks * choice.block_columns;
    rest /= column_blocks;
    const int64_t row = rest % row_blocks * choice.block_rows;
    rest /= row_blocks;
    const int64_t depth = rest % plan.out[0], image = rest / plan.out[0];
    const int64_t rows = std::min(choice.block_rows, plan.out[1] - row);
    const bool rest_of_row = column / choice.block_columns + 1 == column_blocks;
    const int64_t columns = rest_of_row ? plan.out[2] - column : choice.block_columns;
    const int64_t at = (image * shape.out_channels * plan.out[0] + depth) * out_plane + row * plan.out[2] + column;
    const Scratch scratch(plan.scratch_floats);
    const int64_t last_group = shape.group * (group_part + 1) / group_parts;
    for (int64_t group = shape.group * group_part / group_parts, groups; group < last_group; group += groups) {
      groups = std::min(plan.groups_together, last_group - group);
      const float* const images = call.x + (image * shape.in_channels + group * shape.group_channels()) * plan.in[0] * in_plane;
      for (int64_t split = 0; split < plan.splits; ++split) {
        const int64_t first = split * choice.split_channels;
        const int64_t count = std::min(choice.split_channels, plan.channels - first) * groups;
        const float* const input = direct ? images + column : scratch.data();
        if (!direct) {
          PackJob pack{nullptr, static_cast<size_t>(plan.in[0] * in_plane), plan.in[1], plan.in[2], shape.stride[1], shape.stride[2],
                       row, column, rows, columns, plan.planes.data(), plan.planes.size(), scratch.data(),
                       static_cast<size_t>(plan.channel_stride), static_cast<size_t>(plan.row_stride), 1};
          // With a kernel of depth 1 neighbouring channels lie at one distance and are packed in one go.
          const int64_t step = kernel_depth == 1 ? count : 1;
          for (int64_t c = first; c < first + count; c += step) {
            const int64_t slice = depth * shape.stride[0] + c % kernel_depth * shape.dilation[0] - shape.pad_begin[0];
            const bool inside = slice >= 0 && slice < plan.in[0];
            pack.source = inside ? images + (c / kernel_depth * plan.in[0] + slice) * in_plane : nullptr;
            pack.channels = static_cast<size_t>(step);
            pack.target = scratch.data() + (c - first) * plan.channel_stride;
            if (share_rows) share_pack(call.parallel, pack);
            else isa.pack(pack);
          }
        }
        const auto some_rows = [&](int64_t begin, int64_t end, const float* from) {
          TileJob job{};
          job.values = weights_.values();
          job.offsets = plan.offsets;
          job.segments = plan.segments + split;
          job.segment_step = static_cast<size_t>(plan.splits);
          job.first_row = static_cast<size_t>(begin);
          job.last_row = static_cast<size_t>(end);
          job.input_step = static_cast<size_t>(depthwise ? plan.channels * plan.channel_stride : 0);
          job.offset_scale = plan.offset_scale;
          job.output_stride = static_cast<size_t>(out_stride);
          float* const output = call.y + at + begin * out_stride;
          const float* const residual = call.residual ? call.residual + at + begin * out_stride : nullptr;
          set_epilogue(job, split, plan.splits, bias, residual);
          tiles(call, job, from, output, residual, rows, columns, plan.out[2], 1);
        };
        const int64_t first_row = group * group_rows;
        if (share_rows) {
          const std::vector<int64_t> bounds = balanced_rows(weights_.row_start(), first_row, first_row + group_rows, threads);
          for_each(call.parallel, bounds.size() - 1, [&](size_t i) { some_rows(bounds[i], bounds[i + 1], input); });
        } else if (depthwise) {
          some_rows(first_row, first_row + groups, input);
        } else {
          for (int64_t g = 0; g < groups; ++g) {
            some_rows(first_row + g * group_rows, first_row + (g + 1) * group_rows, input + g * plan.channels * plan.channel_stride);
          }
        }
      }
      const bool whole_rows = columns == plan.out[2];
      for (int64_t o = group * group_rows; has_curve() && o < (group + groups) * group_rows; ++o) {
        for (int64_t r = 0; r < (whole_rows ? 1 : rows); ++r) {
          finish_rows(call.y + at + o * out_stride + r * plan.out[2], static_cast<size_t>(whole_rows ? rows * columns : columns));
        }
      }
    }
  };
  if (share_rows) {
    for (size_t i = 0; i < static_cast<size_t>(items); ++i) item(i);
  } else {
    for_each(call.parallel, static_cast<size_t>(items), item);
  }
}

std::unique_ptr<ConvKernel> make_conv(const ConvSpec& spec, SparseMatrix weights, Epilogue epilogue) {
  return std::make_unique<SparseConv>(spec, std::move(weights), std::move(epilogue));
}

}  // namespace hwprune
