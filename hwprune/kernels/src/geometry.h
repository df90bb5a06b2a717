// A convolution brought to three spatial axes (depth, height, width), and its sizes for one input shape.
#pragma once

#include <array>
#include <cstdint>

#include "kernel_api.h"

namespace hwprune {

using Extents = std::array<int64_t, 3>;  // depth, height, width

struct ConvShape {
  int64_t in_channels = 0, out_channels = 0, group = 1;
  Extents kernel{1, 1, 1}, stride{1, 1, 1}, dilation{1, 1, 1}, pad_begin{0, 0, 0}, pad_end{0, 0, 0};
  int64_t group_channels() const { return in_channels / group; }
  int64_t group_rows() const { return out_channels / group; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// Throws std::invalid_argument when the specification contradicts itself.
ConvShape make_shape(const ConvSpec& spec);

// `axes` numbers with missing leading axes as 1.
Extents to_extents(const int64_t* spatial, size_t axes);

Extents output_extents(const ConvShape& shape, const Extents& input);

inline int64_t product(const Extents& extents) { return extents[0] * extents[1] * extents[2]; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace hwprune
