// Which layouts a layer could use, and what each is estimated to cost.
#include <algorithm>

#include "plan.h"

namespace hwprune {
namespace {

// Cycles of the inner loops, fitted to benchmarks/kernels_micro.cpp on a Zen 3 core with AVX2. Only their
// ratios matter: they choose between layouts, and a wrong choice costs time, never correctness.
constexpr double kNonzero = 0.6;          // per nonzero and tile: broadcast and address
constexpr double kVector = 0.55;          // per vector of a tile and nonzero, aligned, in the first-level cache
constexpr double kShortest = 1.4;         // a nonzero never takes less than this
constexpr double kUnaligned = 1.3;        // factor on kVector when most loads straddle cache lines
constexpr double kSecondLevel = 1.25;     // factor on kVector when a tile's input exceeds the first-level cache
constexpr double kRow = 12;               // per weight row and tile: loop set-up, segment bounds
constexpr double kResult = 1.5;           // per result vector: bias, bounds, store
constexpr double kAccumulate = 1.5;       // per result vector and further split: load, add, store
constexpr double kCopyRow = 5;            // per row copied
constexpr double kCopyVector = 1.6;       // per vector copied
constexpr double kCopyPhases = 2.5;       // factor when the stride takes columns apart
constexpr double kTranspose = 3.5;        // per vector transposed, batch in lanes
constexpr int64_t kFirstLevelFloats = 6 * 1024;
constexpr int64_t kBlockFloats = 48 * 1024;  // of a packed block: well inside a second-level cache

struct Problem {
  ConvShape shape;
  Extents in, out;
  int64_t channels;    // of one group, times kernel depth
  double nonzeros;     // of one group
  int64_t rows;        // weight rows of one group
  int64_t lanes_of_vector;
};

double nonzero_cycles(double vectors, double factor) {
  return std::max(kShortest, kNonzero + kVector * factor * vectors);
}

// All tiles of `tiles` tiles of `vectors` vectors each, for every weight row of a group.
double tile_cycles(const Problem& problem, double tiles, double vectors, double factor, double splits) {
  const double rows = static_cast<double>(problem.rows);
  return tiles * (problem.nonzeros * nonzero_cycles(vectors, factor) +
                  rows * splits * kRow + rows * vectors * (kResult + (splits - 1) * kAccumulate));
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

// Cost of padded or expanded for one image; false when the block does not fit the budget.
bool price(const Problem& problem, PlanChoice& choice) {
  const bool expanded = choice.layout == Layout::expanded;
  const Window win = window(problem.shape, expanded);
  const int64_t vector = problem.lanes_of_vector;
  const int64_t out_rows = problem.out[1], out_columns = problem.out[2];
  const int64_t row_stride = expanded ? choice.block_columns : round_up(choice.block_columns + win.extra_columns, vector);
  const int64_t per_channel = win.planes * (choice.block_rows + win.extra_rows) * row_stride;
  const int64_t split = std::min(choice.split_channels, problem.channels);
  if (split * per_channel > kBlockFloats && split > 1) return false;
  const double blocks = static_cast<double>(ceil_div(out_rows, choice.block_rows) * ceil_div(out_columns, choice.block_columns));
  const double splits = static_cast<double>(ceil_div(problem.channels, split));
  double tiles, tile_vectors, touched;
  if (expanded) {
    const int64_t positions = choice.block_rows * choice.block_columns;
    const TileShape tile = tile_shape(ceil_div(positions, vector), 1);
    tiles = static_cast<double>(ceil_div(positions, tile.vectors * vector));
    tile_vectors = static_cast<double>(tile.vectors);
    touched = static_cast<double>(win.planes) * (tile_vectors * static_cast<double>(vector) +
                                                 static_cast<double>(win.extra_rows * row_stride));
  } else {
    const int64_t vectors = ceil_div(choice.block_columns, vector);
    const TileShape tile = tile_shape(vectors, choice.block_rows);
    tiles = static_cast<double>(ceil_div(vectors, tile.vectors)) * static_cast<double>(choice.block_rows) / static_cast<double>(tile.rows);
    tile_vectors = static_cast<double>(tile.vectors * tile.rows);
    touched = static_cast<double>(win.planes * (tile.rows + win.extra_rows) * std::min(row_stride, (tile.vectors + 1) * vector));
  }
  const bool unaligned = expanded ? problem.shape.kernel[1] > 1 && problem.out[2] % vector != 0
                                  : problem.shape.kernel[2] > 1 && win.extra_columns > 0;
  double factor = unaligned ? kUnaligned : 1.0;
  if (touched * static_cast<double>(split) > kFirstLevelFloats) factor *= kSecondLevel;
  const double copied_rows = static_cast<double>(win.planes * (choice.block_rows + win.extra_rows));
  const double phase = problem.shape.stride[2] > 1 ? kCopyPhases : 1.0;
  const double copy = static_cast<double>(problem.channels) * copied_rows *
                      (kCopyRow + kCopyVector * phase * static_cast<double>(ceil_div(row_stride, vector)));
  choice.cost = blocks * (copy + tile_cycles(problem, tiles, tile_vectors, factor, splits));
  return true;
}

void add_blocks(const Problem& problem, Layout layout, std::vector<PlanChoice>& found) {
  const int64_t vector = problem.lanes_of_vector;
  const int64_t out_rows = problem.out[1], out_columns = problem.out[2];
  std::vector<int64_t> widths;
  const int64_t vectors = ceil_div(out_columns, vector);
  const int64_t tile_columns = tile_shape(vectors, 1).vectors * vector;
  if (layout == Layout::expanded && out_rows > 1) {
    widths = {out_columns};
  } else {
    for (const int64_t tiles : {1, 4, 16}) {
      if (tiles * tile_columns < out_columns) widths.push_back(tiles * tile_columns);
    }
    widths.push_back(out_columns);
  }
  for (const int64_t width : widths) {
    const int64_t step = layout == Layout::padded ? tile_shape(ceil_div(width, vector), out_rows).rows : 1;
    for (int64_t split = problem.channels;; split = ceil_div(split, 2)) {
      PlanChoice choice;
      choice.layout = layout;
      choice.block_columns = width;
      choice.split_channels = split;
      // The largest block that fits; smaller ones only repeat more of the border.
      for (int64_t rows = out_rows;; rows = rows <= step ? rows - 1 : (rows - 1) / step * step) {
        choice.block_rows = std::max<int64_t>(rows, 1);
        if (price(problem, choice)) {
          found.push_back(choice);
          break;
        }
        if (rows <= 1) break;
      }
      if (split == 1) break;
    }
  }
}

void add_direct(const Problem& problem, const Weights& weights, std::vector<PlanChoice>& found) {
  const ConvShape& shape = problem.shape;
  const int64_t vector = problem.lanes_of_vector;
  const bool unpadded = shape.pad_begin == Extents{0, 0, 0} && shape.pad_end == Extents{0, 0, 0};
  const bool one_row = problem.in[0] == 1 && problem.out[0] == 1 && problem.in[1] == 1;
  if (shape.taps() != 1 || !unpadded || !one_row || shape.stride[2] != 1 || problem.out[2] < vector || weights.narrow_columns() == nullptr) return;
  const int64_t vectors = ceil_div(problem.out[2], vector);
  const int64_t tile = std::min(tile_shape(vectors, 1).vectors, problem.out[2] / vector);
  PlanChoice choice;
  choice.layout = Layout::direct;
  choice.block_columns = tile * vector;
  choice.split_channels = problem.channels;
  double factor = problem.out[2] % vector == 0 ? 1.0 : kUnaligned;
  if (problem.channels * tile * vector > kFirstLevelFloats) factor *= kSecondLevel;
  choice.cost = tile_cycles(problem, static_cast<double>(ceil_div(vectors, tile)), static_cast<double>(tile), factor, 1);
  found.push_back(choice);
}

void add_lanes(const Problem& problem, int64_t batch, int threads, std::vector<PlanChoice>& found) {
  if (batch < 2 || problem.in[0] != 1 || problem.out[0] != 1 || problem.shape.pad_begin[0] != 0) return;
  const int64_t vector = problem.lanes_of_vector;
  const Window win = window(problem.shape, false);
  const int64_t out_rows = problem.out[1], out_columns = problem.out[2];
  const int64_t per_channel = win.planes * (out_rows + win.extra_rows) * (out_columns + win.extra_columns);
  constexpr int64_t kMostPositions = 256;  // larger maps fill the vectors by themselves
  if (out_rows * out_columns > kMostPositions) return;
  for (int64_t step = 1; step <= compute().max_vectors; ++step) {
    const int64_t lanes = step * vector;
    if (lanes - vector >= batch) break;
    PlanChoice choice;
    choice.layout = Layout::lanes;
    choice.block_rows = out_rows;
    choice.block_columns = out_columns;
    choice.lanes = lanes;
    choice.split_channels = std::min(problem.channels, std::max<int64_t>(1, kBlockFloats / (per_channel * lanes)));
    const int64_t vectors = out_columns * step;
    const TileShape tile = tile_shape(vectors, out_rows);
    const double tiles = static_cast<double>(ceil_div(vectors, tile.vectors)) * static_cast<double>(out_rows) / static_cast<double>(tile.rows);
    const double splits = static_cast<double>(ceil_div(problem.channels, choice.split_channels));
    const double inputs = static_cast<double>(problem.channels * problem.in[1] * problem.in[2] * step);
    const double outputs = static_cast<double>(problem.rows * out_rows * out_columns * step);
    const double one = tile_cycles(problem, tiles, static_cast<double>(tile.vectors * tile.rows), kSecondLevel, splits) +
                       kTranspose * (inputs + outputs);
    const int64_t groups = ceil_div(batch, lanes);
    const int64_t turns = threads > 1 ? ceil_div(groups, threads) * threads : groups;
    choice.cost = one * static_cast<double>(turns) / static_cast<double>(batch);
    found.push_back(choice);
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
