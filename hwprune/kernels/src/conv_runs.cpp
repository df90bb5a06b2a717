// The ways to run a convolution that do not walk blocks of a packed input: batch in lanes, a single
// vector, depthwise planes, and plain loops.
#include <algorithm>

#include "conv_call.h"
#include "scratch.h"

namespace hwprune {

void for_each(const Parallel& parallel, size_t count, const std::function<void(size_t)>& body) {
  if (parallel.threads > 1 && parallel.run && count > 1) {
    parallel.run(count, body);
  } else {
    for (size_t i = 0; i < count; ++i) body(i);
  }
}

int thread_count(const Parallel& parallel) { return parallel.run ? std::max(parallel.threads, 1) : 1; }

std::vector<int64_t> balanced_rows(const std::vector<uint32_t>& row_start, int64_t first, int64_t last, int64_t parts) {
  constexpr double kRowCost = 8;  // a row without nonzeros is work, too
  const auto work = [&](int64_t row) {
    return static_cast<double>(row_start[static_cast<size_t>(row)] - row_start[static_cast<size_t>(first)]) +
           kRowCost * static_cast<double>(row - first);
  };
  std::vector<int64_t> bounds{first};
  for (int64_t part = 1; part < parts; ++part) {
    const double goal = work(last) * static_cast<double>(part) / static_cast<double>(parts);
    int64_t row = bounds.back();
    while (row < last && work(row) < goal) ++row;
    bounds.push_back(row);
  }
  bounds.push_back(last);
  return bounds;
}

void SparseConv::run_lanes(const Call& call) const {
  const Plan& plan = call.plan;
  const ConvShape& shape = plan.shape;
  const Compute& isa = compute();
  const int64_t lanes = plan.choice.lanes;
  const int64_t in_plane = plan.in[1] * plan.in[2], out_plane = plan.out[1] * plan.out[2];
  const int64_t groups_of_images = ceil_div(call.batch, lanes);
  const int64_t group_rows = shape.group_rows();
  const float* const bias = epilogue_.bias.empty() ? nullptr : epilogue_.bias.data();
  const int64_t result_floats = round_up(group_rows * out_plane * lanes, isa.lanes);

  const auto item = [&](size_t index) {
    const int64_t first_image = static_cast<int64_t>(index) / shape.group * lanes;
    const int64_t group = static_cast<int64_t>(index) % shape.group;
    const int64_t images = std::min(lanes, call.batch - first_image);
    const int64_t first_row = group * group_rows;
    const Scratch scratch(plan.scratch_floats);
    const Scratch result(static_cast<size_t>(result_floats));
    // Borders are never written by pack_lanes, whichever split it is: cleared once.
    std::fill_n(scratch.data(), plan.scratch_floats, 0.0f);
    for (int64_t split = 0; split < plan.splits; ++split) {
      const int64_t first = split * plan.choice.split_channels;
      const int64_t count = std::min(plan.choice.split_channels, plan.channels - first);
      const LanePackJob pack{call.x + (first_image * shape.in_channels + group * shape.group_channels() + first) * in_plane,
                             static_cast<size_t>(shape.in_channels * in_plane), static_cast<size_t>(images), static_cast<size_t>(lanes),
                             static_cast<size_t>(count), static_cast<size_t>(in_plane), plan.lane_positions.data(),
                             static_cast<size_t>(plan.channel_stride), scratch.data()};
      isa.pack_lanes(pack);
      TileJob job{};
      job.values = weights_.values();
      job.offsets = plan.offsets;
      job.segments = plan.segments + split;
      job.segment_step = static_cast<size_t>(plan.splits);
      job.first_row = static_cast<size_t>(first_row);
      job.last_row = static_cast<size_t>(first_row + group_rows);
      job.offset_scale = plan.offset_scale;
      job.output_stride = static_cast<size_t>(out_plane * lanes);
      set_epilogue(job, split, 2 * plan.splits, bias, nullptr);  // never the last: unpacking bounds the results
      tiles(call, job, scratch.data(), result.data(), nullptr, plan.out[1], plan.out[2], plan.out[2] * lanes, lanes);
    }
    const int64_t at = (first_image * shape.out_channels + first_row) * out_plane;
    LaneUnpackJob unpack{result.data(), static_cast<size_t>(group_rows * out_plane), static_cast<size_t>(lanes), static_cast<size_t>(images),
                         call.y + at, call.residual ? call.residual + at : nullptr, static_cast<size_t>(shape.out_channels * out_plane),
                         low_, high_};
    isa.unpack_lanes(unpack);
    for (int64_t i = 0; has_curve() && i < images; ++i) {
      finish_rows(call.y + at + i * shape.out_channels * out_plane, static_cast<size_t>(group_rows * out_plane));
    }
  };
  for_each(call.parallel, static_cast<size_t>(groups_of_images * shape.group), item);
}

void SparseConv::run_vector(const Call& call) const {
  const int64_t rows = weights_.rows();
  const int64_t parts = thread_count(call.parallel);
  const std::vector<int64_t> bounds = balanced_rows(weights_.row_start(), 0, rows, parts);
  for_each(call.parallel, static_cast<size_t>(parts), [&](size_t part) {
    for (int64_t image = 0; image < call.batch; ++image) {
      const int64_t begin = bounds[part], end = bounds[part + 1], at = image * rows + begin;
      TileJob job{};
      job.values = weights_.values();
      job.offsets = weights_.narrow_columns();
      job.segments = weights_.row_start().data();
      job.segment_step = 1;
      job.first_row = static_cast<size_t>(begin);
      job.last_row = static_cast<size_t>(end);
      job.input = call.x + image * weights_.columns();
      job.offset_scale = 1;
      job.output = call.y + at;
      job.output_stride = 1;
      set_epilogue(job, 0, 1, epilogue_.bias.empty() ? nullptr : epilogue_.bias.data(), call.residual ? call.residual + at : nullptr);
      compute().dot(job);
      finish_rows(job.output, static_cast<size_t>(end - begin));
    }
  });
}

void SparseConv::run_depthwise(const Call& call) const {
  const Plan& plan = call.plan;
  const ConvShape& shape = plan.shape;
  const int64_t in_plane = product(plan.in), out_plane = product(plan.out), group_rows = shape.group_rows();
  const int64_t planes = call.batch * shape.out_channels;
  const int64_t parts = std::min<int64_t>(planes, thread_count(call.parallel) == 1 ? 1 : 4 * thread_count(call.parallel));
  for_each(call.parallel, static_cast<size_t>(parts), [&](size_t part) {
    const int64_t first = planes * static_cast<int64_t>(part) / parts, last = planes * (static_cast<int64_t>(part) + 1) / parts;
    for (int64_t index = first; index < last; ++index) {
      const int64_t image = index / shape.out_channels, row = index % shape.out_channels;
      DepthwiseJob job;
      job.input = call.x + (image * shape.in_channels + row / group_rows) * in_plane;
      job.height = plan.in[1];
      job.width = plan.in[2];
      job.pad_top = shape.pad_begin[1];
      job.pad_left = shape.pad_begin[2];
      job.stride = shape.stride[1];
      job.weights = weights_.values() + 9 * row;
      job.bias = epilogue_.bias.empty() ? 0.0f : epilogue_.bias[static_cast<size_t>(row)];
      job.output = call.y + index * out_plane;
      job.out_height = plan.out[1];
      job.out_width = plan.out[2];
      job.residual = call.residual ? call.residual + index * out_plane : nullptr;
      job.low = low_;
      job.high = high_;
      compute().depthwise(job);
      if (has_curve()) finish_rows(job.output, static_cast<size_t>(out_plane));
    }
  });
}

void SparseConv::run_naive(const Call& call) const {
  const Plan& plan = call.plan;
  const ConvShape& shape = plan.shape;
  const Extents &in = plan.in, &out = plan.out;
  const int64_t taps = shape.taps(), group_rows = shape.group_rows();
  for_each(call.parallel, static_cast<size_t>(call.batch * shape.out_channels), [&](size_t index) {
    const int64_t image = static_cast<int64_t>(index) / shape.out_channels, row = static_cast<int64_t>(index) % shape.out_channels;
    const float* const images = call.x + (image * shape.in_channels + row / group_rows * shape.group_channels()) * product(in);
    float* const result = call.y + static_cast<int64_t>(index) * product(out);
    std::fill_n(result, product(out), epilogue_.bias.empty() ? 0.0f : epilogue_.bias[static_cast<size_t>(row)]);
    for (uint32_t i = weights_.row_start()[static_cast<size_t>(row)]; i < weights_.row_start()[static_cast<size_t>(row) + 1]; ++i) {
      const int64_t column = weights_.column(i), tap = column % taps;
      const Extents at{tap / (shape.kernel[1] * shape.kernel[2]), tap / shape.kernel[2] % shape.kernel[1], tap % shape.kernel[2]};
      const float* const plane = images + column / taps * product(in);
      for (int64_t position = 0; position < product(out); ++position) {
        const Extents to{position / (out[1] * out[2]), position / out[2] % out[1], position % out[2]};
        bool inside = true;
        int64_t from = 0;
        for (size_t axis = 0; axis < 3; ++axis) {
          const int64_t p = to[axis] * shape.stride[axis] + at[axis] * shape.dilation[axis] - shape.pad_begin[axis];
          inside = inside && p >= 0 && p < in[axis];
          from = from * in[axis] + p;
        }
        // Padding times an infinite weight is not a number in the dense layer, and here.
        result[position] += weights_.values()[i] * (inside ? plane[from] : 0.0f);
      }
    }
    for (int64_t position = 0; position < product(out); ++position) {
      float value = result[position];
      if (call.residual) value += call.residual[static_cast<int64_t>(index) * product(out) + position];
      value = low_ > value ? low_ : value;
      result[position] = high_ < value ? high_ : value;
    }
    finish_rows(result, static_cast<size_t>(product(out)));
  });
}

}  // namespace hwprune
