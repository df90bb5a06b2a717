// What one instruction set offers: the inner loops of the kernels behind plain functions.
//
// Every file in compute/ is compiled once per instruction set, into the namespace HWPRUNE_ISA. Those
// files use no standard library templates: the linker keeps one copy of an inline function, and that
// copy could be the one built for AVX-512 while the machine has none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hwprune {

// One tile: for every weight row of [first_row, last_row), the output at `rows` x `columns` neighbouring
// positions, held in registers while the nonzeros of the row go by.
struct TileJob {
  const float* values;          // all nonzeros, row after row
  const uint16_t* offsets;      // per nonzero: where its input plane begins, in units of offset_scale floats
  const uint32_t* segments;     // nonzeros of row r: [segments[r * segment_step], segments[r * segment_step + 1])
  size_t segment_step;
  size_t first_row, last_row;
  const float* input;           // packed input at the tile's first position, for the first weight row
  size_t input_step;            // floats from one weight row's input to the next one's: 0, or a plane (depthwise)
  size_t offset_scale;
  size_t input_row_stride;      // floats from one row of the tile to the next
  float* output;                // of weight row `first_row`, at the tile's first position
  size_t output_stride;         // floats from one weight row to the next
  size_t output_row_stride;     // floats from one row of the tile to the next
  size_t columns;               // floats per row that exist: only the last vector of a row may be cut short by them
  const float* residual;        // laid out as the output, or null
  const float* bias;            // indexed by weight row, or null
  bool accumulate;              // add to what the output holds (channels are processed in several splits)
  float low, high;              // bounds of the result: relu and relu6; infinities when there are none
};

// A copy of an input plane: the input at every stride-th row and column, from an origin that may lie in
// the padding. Layouts need one per phase of the stride, or one per column of the kernel.
struct PackPlane {
  int64_t row_origin, column_origin;  // input coordinates of the copy's first element for output (0, 0)
  int64_t extra_rows, extra_columns;  // what the copy holds beyond the rows and columns of the block
  size_t offset;                      // floats from the begin of the channel's copies
};

// Copies a block of the input in the layout the tiles read: borders become zeros.
struct PackJob {
  const float* source;              // first channel's plane; null: all of it is padding
  size_t source_stride;             // floats between channels
  int64_t height, width;            // of the input plane
  int64_t stride_h, stride_w;
  int64_t first_row, first_column;  // the block in output coordinates
  int64_t rows, columns;
  const PackPlane* planes;
  size_t plane_count;
  float* target;
  size_t target_stride;             // floats between channels of the copy
  size_t row_stride;                // floats between rows of the copy
  size_t channels;
  // Rows are written in whole vectors, in ascending order: up to a vector less a float beyond the last
  // channel's copy is overwritten.
};

// Batch in lanes, a multiple of the vector's: element q of `images` images ([image][count] with image_stride) to target[...][lanes].
// Element q = channel * positions + p goes to (channel * channel_stride + position_offset[p]) * lanes;
// a negative position offset drops it. Lanes beyond `images` become zeros.
struct LanePackJob {
  const float* source;
  size_t image_stride, images, lanes;
  size_t channels, positions;
  const int32_t* position_offset;
  size_t channel_stride;
  float* target;
};

// The way back: source [count][lanes] to target [image][count], adding the residual and bounding.
struct LaneUnpackJob {
  const float* source;
  size_t count, lanes, images;
  float* target;
  const float* residual;  // laid out as the target, or null
  size_t image_stride;
  float low, high;
};

// Most rows of a tile.
constexpr int kMaxTileRows = 8;

// One plane of a 3x3 depthwise convolution with all its weights.
struct DepthwiseJob {
  const float* input;
  int64_t height, width;
  int64_t pad_top, pad_left, stride;  // stride 1 or 2, the same along both axes
  const float* weights;               // nine, row by row
  float bias;
  float* output;
  int64_t out_height, out_width;
  const float* residual;              // laid out as the output, or null
  float low, high;
};

enum class Curve { hard_swish, silu, leaky_relu };

struct Compute {
  const char* name;
  int lanes;          // floats in a vector
  int max_vectors;    // most vectors (rows x vectors per row) of a tile
  // `width`: floats of the vectors used, `lanes` or, for a single small vector, 4 or 8.
  void (*tile)(int width, int rows, int vectors, const TileJob& job);
  // Sparse dot products with one vector: y[r] = sum of value * x[column], as `tile` with a single position.
  void (*dot)(const TileJob& job);
  void (*depthwise)(const DepthwiseJob& job);
  void (*pack)(const PackJob& job);
  void (*pack_lanes)(const LanePackJob& job);
  void (*unpack_lanes)(const LaneUnpackJob& job);
  void (*curve)(Curve kind, float alpha, float* data, size_t count);
};

// The table of the running machine, see dispatch.cpp.
const Compute& compute();

}  // namespace hwprune
