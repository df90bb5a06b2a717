// Which layouts a layer could use, and what each is estimated to cost.
#include <algorithm>

#include "plan.h"

namespace hwprune {
namespace {

// Nanoseconds of the inner loops, fitted to benchmarks/kernels_micro.cpp --all on a Zen 3 core with AVX2.
// Only their ratios matter: they choose between layouts, and a wrong choice costs time, never correctness.
constexpr double kNonzero = 0.35;         // per nonzero and tile: broadcast and address
constexpr double kShortest = 0.55;        // a nonzero never takes less than this
constexpr double kVector = 0.20;          // per vector of a tile and nonzero, aligned, in the first-level cache
constexpr double kUnaligned = 0.05;       // more when most loads straddle cache lines
constexpr double kSecondLevel = 0.15;     // more when the input of a tile exceeds the first-level cache
constexpr double kStream = 0.15;          // per nonzero and tile when the weights exceed the second-level cache
constexpr double kRow = 4;                // per weight row, tile and split: loop set-up, segment bounds
constexpr double kResult = 0.5;           // per result vector: bias, bounds, store
constexpr double kPart = 3;               // per row of results whose last vector is cut short
constexpr double kAccumulate = 0.6;       // per result vector and further split: load, add, store
constexpr double kCopyRow = 1.5;          // per row copied
constexpr double kCopyVector = 0.5;       // per vector copied
constexpr double kCopyPhases = 2.0;       // factor when the stride takes columns apart
constexpr double kTile = 20;              // per tile and split: the call
constexpr double kBlock = 100;            // per block, group and split: preparing the copy
constexpr double kTranspose = 1.2;        // per vector transposed, batch in lanes
constexpr int64_t kBlockFloats = 48 * 1024;      // of a packed block: well inside a second-level cache
constexpr double kStreamBytes = 300e3;           // weights beyond it come from farther away at every tile
constexpr double kWeightBytes = 6;

struct Problem {
  ConvShape shape;
  Extents in, out;
  int64_t channels;    // of one group, times kernel depth
  double nonzeros;     // of one group
  int64_t rows;        // weight rows of one group
  int64_t vector;      // floats in a vector
};

struct Tiling {
  double tiles;          // per block
  double vectors, rows;  // of a tile
  bool part;             // rows of results end in the middle of a vector
  bool unaligned;
  double touched;        // floats of input a tile reads, all channels of a split
  double splits;
};

// All tiles of a block, for every weight row of a group.
double tile_time(const Problem& problem, const Tiling& tiling) {
  const double vectors = tiling.vectors * tiling.rows, rows = static_cast<double>(problem.rows);
  double per_vector = kVector;
  if (tiling.unaligned) per_vector += kUnaligned;
  if (tiling.touched > static_cast<double>(kFirstLevelFloats)) per_vector += kSecondLevel;
  double nonzero = std::max(kShortest, kNonzero + per_vector * vectors);
  if (problem.nonzeros * kWeightBytes > kStreamBytes) nonzero += kStream;
  const double result = vectors * (kResult + (tiling.splits - 1) * kAccumulate) + (tiling.part ? tiling.rows * tiling.splits * kPart : 0);
  return tiling.tiles * (problem.nonzeros * nonzero + rows * (tiling.splits * kRow + result) + tiling.splits * kTile);
}

struct Window {
  int64_t planes, extra_rows, extra_columns;
};

int64_t phase_count(int64_t kernel, int64_t stride, int64_t dilation) {
  if (stride == 1) return 1;
  std::vector<bool> seen(static_cast<size_t>(stride), false);
  int64_t count = 0;
  for (int64_t k = 0; k < kernel; ++k) {
    const size_t at = static_cast<size_t>(k * dilation % stride);
    if (!seen[at]) ++count;
    seen[at] = true;
  }
  return count;
}

Window window(const ConvShape& shape, bool expanded) {
  const int64_t rows = phase_count(shape.kernel[1], shape.stride[1], shape.dilation[1]);
  const int64_t columns = expanded ? shape.kernel[2] : phase_count(shape.kernel[2], shape.stride[2], shape.dilation[2]);
  return {rows * columns, (shape.kernel[1] - 1) * shape.dilation[1] / shape.stride[1],
          expanded ? 0 : (shape.kernel[2] - 1) * shape.dilation[2] / shape.stride[2]};
}

// Sets the cost of padded or expanded; false when the block does not fit the cache.
bool price(const Problem& problem, const Window& win, PlanChoice& choice) {
  const bool expanded = choice.layout == Layout::expanded;
  const int64_t vector = problem.vector;
  const int64_t out_rows = problem.out[1], out_columns = problem.out[2];
  const int64_t row_stride = expanded ? choice.block_columns : round_up(choice.block_columns + win.extra_columns, vector);
  const int64_t per_channel = win.planes * (choice.block_rows + win.extra_rows) * row_stride;
  const int64_t split = std::min(choice.split_channels, problem.channels);
  const bool grouped = problem.shape.group > 1;
  if (split * per_channel > (grouped ? kFirstLevelFloats : kBlockFloats) && (split > 1 || choice.block_rows > choice.tile.rows)) return false;
  const double blocks = static_cast<double>(ceil_div(out_rows, choice.block_rows) * ceil_div(out_columns, choice.block_columns));
  Tiling tiling;
  tiling.splits = static_cast<double>(ceil_div(problem.channels, split));
  tiling.vectors = static_cast<double>(choice.tile.vectors);
  tiling.rows = static_cast<double>(choice.tile.rows);
  const double tile_floats = tiling.vectors * static_cast<double>(vector);
  if (expanded || choice.block_rows == 1) {
    const int64_t positions = choice.block_rows * choice.block_columns;
    tiling.tiles = static_cast<double>(ceil_div(positions, choice.tile.vectors * vector));
    tiling.part = positions % vector != 0 && tiling.tiles * tile_floats < static_cast<double>(2 * positions);
    tiling.touched = tile_floats + static_cast<double>(win.extra_rows * row_stride + win.extra_columns);
    tiling.unaligned = win.extra_columns > 0 || (win.extra_rows > 0 && row_stride % vector != 0);
  } else {
    tiling.tiles = static_cast<double>(ceil_div(ceil_div(choice.block_columns, vector), choice.tile.vectors)) *
                   static_cast<double>(choice.block_rows) / tiling.rows;
    tiling.part = choice.block_columns % vector != 0;
    tiling.touched = (tiling.rows + static_cast<double>(win.extra_rows)) *
                     std::min(static_cast<double>(row_stride), tile_floats + static_cast<double>(vector));
    tiling.unaligned = win.extra_columns > 0;
  }
  tiling.touched *= static_cast<double>(win.planes * split);
  const double copied_rows = static_cast<double>(win.planes * (choice.block_rows + win.extra_rows));
  const double phase = problem.shape.stride[2] > 1 ? kCopyPhases : 1.0;
  const double copy = static_cast<double>(problem.channels) * copied_rows *
                      (kCopyRow + kCopyVector * phase * static_cast<double>(ceil_div(row_stride, vector)));
  // Small groups are copied together, see Plan::groups_together.
  const double together = std::max(1.0, static_cast<double>(kFirstLevelFloats / std::max<int64_t>(1, split * per_channel)));
  const double block = kBlock * tiling.splits / (grouped ? std::min(together, static_cast<double>(problem.shape.group)) : 1);
  if (grouped && problem.rows == 1 && together > 1) tiling.tiles = std::max(tiling.tiles - 0.5, 0.5);  // one call for several planes
  choice.cost = blocks * (copy + block + tile_time(problem, tiling)) * static_cast<double>(problem.shape.group);
  return true;
}

// Fills in the largest block that fits; smaller ones only repeat more of the border.
bool fit_rows(const Problem& problem, const Window& win, PlanChoice& choice) {
  const int64_t step = choice.tile.rows;
  for (int64_t rows = problem.out[1];; rows = (rows - 1) / step * step) {
    choice.block_rows = std::max<int64_t>(rows, 1);
    if (price(problem, win, choice)) return true;
    if (rows <= step) return false;
  }
}

void add_blocks(const Problem& problem, Layout layout, std::vector<PlanChoice>& found) {
  const int64_t vector = problem.vector;
  const int64_t out_rows = problem.out[1], out_columns = problem.out[2];
  const bool linear = layout == Layout::expanded;
  const Window win = window(problem.shape, linear);
  const int64_t positions = linear ? out_rows * out_columns : out_columns;
  // From the largest tile to ever smaller ones, which touch less of the input.
  for (int64_t pieces = 1; pieces <= 8; pieces *= 2) {
    const int64_t most = tile_shape(ceil_div(positions, vector), 1).vectors;
    if (pieces > most) break;
    const int64_t wide = ceil_div(most, pieces);
    const int64_t most_rows = linear ? 1 : tile_shape(wide, out_rows).rows;
    for (int64_t high = most_rows; high >= 1; high = high == 1 ? 0 : ceil_div(high, 2)) {
      std::vector<int64_t> widths;
      if (!linear || out_rows == 1) {
        for (const int64_t tiles : {1, 4, 16}) {
          if (tiles * wide * vector < out_columns) widths.push_back(tiles * wide * vector);
        }
      }
      widths.push_back(out_columns);
      for (const int64_t width : widths) {
        for (int64_t split = problem.channels;; split = ceil_div(split, 2)) {
          PlanChoice choice;
          choice.layout = layout;
          choice.block_columns = width;
          choice.split_channels = split;
          choice.tile = {wide, high};
          if (fit_rows(problem, win, choice)) found.push_back(choice);
          if (split == 1) break;
        }
      }
    }
  }
}

void add_direct(const Problem& problem, const Weights& weights, std::vector<PlanChoice>& found) {
  const ConvShape& shape = problem.shape;
  const int64_t vector = problem.vector;
  const bool unpadded = shape.pad_begin == Extents{0, 0, 0} && shape.pad_end == Extents{0, 0, 0};
  const bool one_row = problem.in[0] == 1 && problem.out[0] == 1 && problem.in[1] == 1;
  if (shape.taps() != 1 || !unpadded || !one_row || shape.stride[2] != 1 || problem.out[2] < vector || weights.narrow_columns() == nullptr) return;
  const int64_t vectors = ceil_div(problem.out[2], vector);
  const int64_t most = std::min(tile_shape(vectors, 1).vectors, problem.out[2] / vector);
  for (int64_t pieces = 1; pieces <= most && pieces <= 8; pieces *= 2) {
    PlanChoice choice;
    choice.layout = Layout::direct;
    choice.tile = {ceil_div(most, pieces), 1};
    choice.block_columns = choice.tile.vectors * vector;
    choice.split_channels = problem.channels;
    Tiling tiling;
    tiling.tiles = static_cast<double>(ceil_div(vectors, choice.tile.vectors));
    tiling.vectors = static_cast<double>(choice.tile.vectors);
    tiling.rows = tiling.splits = 1;
    tiling.part = false;
    tiling.unaligned = problem.out[2] % vector != 0;
    // Planes of an input lie far apart: their lines fall into few sets of the first-level cache.
    tiling.touched = 2.0 * static_cast<double>(problem.channels * choice.block_columns);
    choice.cost = (tiling.tiles * kBlock + tile_time(problem, tiling)) * static_cast<double>(shape.group);
    found.push_back(choice);
  }
}

void add_lanes(const Problem& problem, int64_t batch, int threads, std::vector<PlanChoice>& found) {
  if (batch < 2 || problem.in[0] != 1 || problem.out[0] != 1 || problem.shape.pad_begin[0] != 0) return;
  const int64_t vector = problem.vector;
  const Window win = window(problem.shape, false);
  const int64_t out_rows = problem.out[1], out_columns = problem.out[2];
  const int64_t per_channel = win.planes * (out_rows + win.extra_rows) * (out_columns + win.extra_columns);
  constexpr int64_t kMostPositions = 256;  // larger maps fill the vectors by themselves
  if (out_rows * out_columns > kMostPositions) return;
  for (int64_t step = 1; step <= compute().max_vectors; ++step) {
    const int64_t lanes = step * vector;
    if (lanes - vector >= batch) break;
    const int64_t vectors = out_columns * step;
    const TileShape largest = tile_shape(vectors, out_rows);
    for (int64_t high = largest.rows; high >= 1; high = high == 1 ? 0 : ceil_div(high, 2)) {
      for (int64_t split = problem.channels;; split = ceil_div(split, 2)) {
        PlanChoice choice;
        choice.layout = Layout::lanes;
        choice.block_rows = out_rows;
        choice.block_columns = out_columns;
        choice.lanes = lanes;
        choice.tile = {largest.vectors, high};
        choice.split_channels = split;
        if (split * per_channel * lanes <= kBlockFloats || split == 1) {
          Tiling tiling;
          tiling.tiles = static_cast<double>(ceil_div(vectors, largest.vectors)) * static_cast<double>(out_rows) / static_cast<double>(high);
          tiling.vectors = static_cast<double>(largest.vectors);
          tiling.rows = static_cast<double>(high);
          tiling.part = tiling.unaligned = false;
          tiling.touched = static_cast<double>(win.planes * split * (high + win.extra_rows)) *
                           static_cast<double>((largest.vectors * vector + win.extra_columns * lanes));
          tiling.splits = static_cast<double>(ceil_div(problem.channels, split));
          const double moved = static_cast<double>(step) * static_cast<double>(problem.channels * problem.in[1] * problem.in[2] +
                                                                               problem.rows * out_rows * out_columns);
          const double one = tile_time(problem, tiling) + kTranspose * moved + kBlock * tiling.splits;
          const int64_t groups = ceil_div(batch, lanes);
          const int64_t turns = threads > 1 ? round_up(groups, threads) : groups;
          choice.cost = one * static_cast<double>(turns * problem.shape.group) / static_cast<double>(batch);
          found.push_back(choice);
        }
        if (split == 1) break;
      }
    }
  }
}

}  // namespace

std::vector<PlanChoice> candidates(const ConvShape& full, const Extents& in, const Weights& weights, int64_t batch, int threads) {
  Problem problem{full, in, output_extents(full, in), 0, 0, full.group_rows(), compute().lanes};
  fold(problem.shape, problem.in, problem.out);
  problem.channels = full.group_channels() * full.kernel[0];
  problem.nonzeros = static_cast<double>(weights.nonzeros()) / static_cast<double>(full.group);
  std::vector<PlanChoice> found;
  add_blocks(problem, Layout::padded, found);
  add_blocks(problem, Layout::expanded, found);
  add_direct(problem, weights, found);
  add_lanes(problem, batch, threads, found);
  if (found.empty()) found.push_back({});
  std::stable_sort(found.begin(), found.end(), [](const PlanChoice& a, const PlanChoice& b) { return a.cost < b.cost; });
  return found;
}

}  // namespace hwprune
