// What a layer is estimated to take, for those who choose between this kernel and a dense operator.
#include <exception>

#include "export.h"
#include "plan.h"

using namespace hwprune;

// Nanoseconds of a convolution, or a linear layer as one over a single position.
// `spec`: in_channels, out_channels, group, the number of axes (1 to 3), then kernel, strides, dilations, the begins of
// the padding, the ends of it and the input extents, one number per axis each. Negative for what is no convolution.
HWPRUNE_EXPORT double hwprune_estimate(const int64_t* spec, int64_t nonzeros, int64_t batch, int threads) {
  try {
    ConvSpec conv;
    conv.in_channels = spec[0];
    conv.out_channels = spec[1];
    conv.group = spec[2];
    const size_t axes = spec[3] >= 1 && spec[3] <= 3 ? static_cast<size_t>(spec[3]) : 0;
    const int64_t* const next = spec + 4;
    conv.kernel.assign(next, next + axes);
    conv.strides.assign(next + axes, next + 2 * axes);
    conv.dilations.assign(next + 2 * axes, next + 3 * axes);
    conv.pads.assign(next + 3 * axes, next + 5 * axes);
    const ConvShape shape = make_shape(conv);
    const Extents in = to_extents(next + 5 * axes, axes);
    if (product(in) < 1 || product(output_extents(shape, in)) < 1 || batch < 1 || nonzeros < 0) return -1;
    return candidates(shape, in, nonzeros, batch, threads).front().cost * static_cast<double>(batch);
  } catch (const std::exception&) {
    return -1;
  }
}
