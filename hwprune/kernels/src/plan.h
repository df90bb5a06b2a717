// How one layer is computed for one input shape: in which layout the input is copied, in which blocks and
// tiles the output is walked, and where in the copy every nonzero finds its input.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "compute_api.h"
#include "geometry.h"
#include "weights.h"

namespace hwprune {

constexpr int64_t kFirstLevelFloats = 6 * 1024;  // what a block may take of a first-level cache of 32 KiB

// What the tiles read.
enum class Layout {
  direct,    // the input itself: pointwise layers with few nonzeros per input
  padded,    // one copy with zero borders: taps are shifts inside a row, loads are mostly unaligned
  expanded,  // one copy per kernel column, rows as long as output rows: tiles run on over rows
  batch_lanes,  // batch in the innermost axis: every shift is aligned, the input is transposed
  depthwise, // 3x3 depthwise layers with all their weights: the input itself
  naive,     // no layout fits 16-bit offsets (huge dilated kernels): plain loops
};

// Vectors per row and rows of the output positions that are computed together in registers.
struct TileShape {
  int64_t vectors = 1, rows = 1;
};

// What a choice makes the processor do for one image, in units that take about the same time each.
enum CostTerm : size_t {
  kNonzeros,     // nonzeros times tiles: broadcast and address
  kVectors,      // nonzeros times vectors: multiply-add with an aligned load from the first-level cache
  kShortTiles,   // nonzeros times what is missing to three vectors: latency shows
  kUnaligned,    // of the vectors, those of layouts whose loads mostly straddle cache lines
  kSecondLevel,  // of the vectors, those of tiles whose input exceeds the first-level cache
  kStreamed,     // of the nonzeros, those of layers whose weights exceed the second-level cache
  kScattered,    // the same once a block, where several splits read them piece by piece, which nothing fetches ahead, for tiles
                 // too short to wait for them unnoticed
  kRows,         // weight rows times tiles and splits: loop set-up, segment bounds
  kResults,      // vectors of results: bias, bounds, store
  kParts,        // rows of results whose last vector is cut short
  kSums,         // vectors of partial sums between splits: load, add, store
  kFarSums,      // the same when they have left the second-level cache
  kCopyRows,     // rows of input copied
  kCopyVectors,  // vectors of input copied
  kCopyPhases,   // the same where a stride takes columns apart
  kTransposes,   // vectors of input and output transposed for Layout::batch_lanes
  kCalls,        // tiles times splits
  kBlocks,       // blocks times splits: preparing a copy
  kCostTerms,
};
using Work = std::array<double, kCostTerms>;

// The choices; everything else of a plan follows from them.
struct PlanChoice {
  Layout layout = Layout::naive;
  int64_t block_rows = 1, block_columns = 1;  // output positions whose input is copied together
  TileShape tile;
  int64_t split_channels = 1;                 // channels (times kernel depth) copied together
  int64_t lanes = 1;                          // images side by side, Layout::batch_lanes only
  double cost = 0;                            // estimated nanoseconds of one thread for one image
  Work work{};                                // what the cost was estimated from
  void set_work(const Work& done);
  bool operator==(const PlanChoice& other) const;
};

struct Plan {
  PlanChoice choice;
  // The problem with trivial axes folded: a pointwise layer is a single row.
  Extents in{1, 1, 1}, out{1, 1, 1};
  ConvShape shape;
  int64_t channels = 0;  // of one group, times kernel depth: what is copied
  int64_t splits = 1;
  int64_t groups_together = 1;  // groups whose input is copied in one go
  std::vector<PackPlane> planes;
  int64_t row_stride = 0, channel_stride = 0;  // floats (times lanes)
  size_t scratch_floats = 0;                   // for one split of one block, slack included
  size_t offset_scale = 1;
  const uint16_t* offsets = nullptr;           // own_offsets, or the weights' columns
  std::vector<uint16_t> own_offsets;
  std::vector<uint32_t> own_segments;          // splits > 1: [row][split] first nonzero, one past the end
  const uint32_t* segments = nullptr;
  std::vector<int32_t> lane_positions;         // Layout::batch_lanes: offset of every input position, or -1

  bool linear() const { return choice.layout != Layout::padded && choice.layout != Layout::batch_lanes; }
  size_t resident_bytes() const;
};

// The shape with axes folded that a kernel of one does not look across.
void fold(ConvShape& shape, Extents& in, Extents& out);

// Every sensible way, cheapest first; never empty. `threads` bounds how large a block may be.
std::vector<PlanChoice> candidates(const ConvShape& shape, const Extents& in, int64_t nonzeros, int64_t batch, int threads);

std::shared_ptr<const Plan> make_plan(const ConvShape& shape, const Extents& in, const Weights& weights, const PlanChoice& choice);

// The largest tile for output rows of `vectors` vectors and `rows` rows, without a small one left over.
TileShape tile_shape(int64_t vectors, int64_t rows);

}  // namespace hwprune
