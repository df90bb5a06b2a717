#include "geometry.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace hwprune {

ConvShape make_shape(const ConvSpec& spec) {
  const size_t axes = spec.kernel.size();
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument("convolution: " + what);
  };
  require(axes >= 1 && axes <= 3, "one to three spatial axes, not " + std::to_string(axes));
  require(spec.strides.size() == axes && spec.dilations.size() == axes && spec.pads.size() == 2 * axes,
          "strides, dilations and pads do not have the axes of the kernel");
  require(spec.group >= 1 && spec.in_channels >= 1 && spec.out_channels >= 1, "group and channels must be positive");
  require(spec.in_channels % spec.group == 0 && spec.out_channels % spec.group == 0, "group does not divide the channels");
  ConvShape shape;
  shape.in_channels = spec.in_channels;
  shape.out_channels = spec.out_channels;
  shape.group = spec.group;
  for (size_t i = 0; i < axes; ++i) {
    const size_t to = 3 - axes + i;
    require(spec.kernel[i] >= 1 && spec.strides[i] >= 1 && spec.dilations[i] >= 1, "kernel, stride and dilation must be positive");
    require(spec.pads[i] >= 0 && spec.pads[axes + i] >= 0, "padding must not be negative");
    shape.kernel[to] = spec.kernel[i];
    shape.stride[to] = spec.strides[i];
    shape.dilation[to] = spec.dilations[i];
    shape.pad_begin[to] = spec.pads[i];
    shape.pad_end[to] = spec.pads[axes + i];
  }
  return shape;
}

Extents to_extents(const int64_t* spatial, size_t axes) {
  Extents extents{1, 1, 1};
  for (size_t i = 0; i < axes; ++i) extents[3 - axes + i] = spatial[i];
  return extents;
}

Extents output_extents(const ConvShape& shape, const Extents& input) {
  Extents output;
  for (size_t i = 0; i < 3; ++i) {
    const int64_t reach = shape.dilation[i] * (shape.kernel[i] - 1) + 1;
    const int64_t room = input[i] + shape.pad_begin[i] + shape.pad_end[i] - reach;
    output[i] = room < 0 ? 0 : room / shape.stride[i] + 1;
  }
  return output;
}

void output_shape(const ConvSpec& spec, const int64_t* spatial, int64_t* out) {
  const size_t axes = spec.kernel.size();
  const Extents extents = output_extents(make_shape(spec), to_extents(spatial, axes));
  std::copy(extents.end() - static_cast<std::ptrdiff_t>(axes), extents.end(), out);
}

}  // namespace hwprune
