// Which layouts a layer could use, and what each is estimated to cost.
#include <algorithm>
#include <numeric>

#include "plan.h"

namespace hwprune {
namespace {

// Nanoseconds per unit of Work, fitted with benchmarks/fit_kernels.py to what benchmarks/kernels_micro.cpp
// measures on a Zen 3 core with AVX2. Only their ratios matter: they choose between layouts, and a wrong
// choice costs time, never correctness. kScattered shows only where layers run in turn (kernels_micro --in-turn): alone, a
// layer's weights stay in the third-level cache.
constexpr double kNanoseconds[kCostTerms] = {
    /* kNonzeros */ 0.19, /* kVectors */ 0.21,   /* kShortTiles */ 0.03, /* kUnaligned */ 0.065, /* kSecondLevel */ 0.06,
    /* kStreamed */ 0.12, /* kScattered */ 0.4,  /* kRows */ 3.6,        /* kResults */ 0.9,     /* kParts */ 5,
    /* kSums */ 1.1,      /* kFarSums */ 1.5,    /* kCopyRows */ 1.2,    /* kCopyVectors */ 0.4, /* kCopyPhases */ 0.8,
    /* kTransposes */ 3,  /* kCalls */ 5,        /* kBlocks */ 50};

constexpr int64_t kBlockFloats = 48 * 1024;    // of a packed block: well inside a second-level cache
constexpr double kResultFloats = 48 * 1024;    // of partial sums that are still found there
constexpr double kStreamBytes = 300e3;         // weights beyond it come from farther away at every tile
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
  double results;        // floats of output all tiles of a block write
};

// All tiles of a block, for every weight row of a group.
void add_tiles(const Problem& problem, const Tiling& tiling, double times, Work& work) {
  const double vectors = tiling.vectors * tiling.rows, rows = static_cast<double>(problem.rows);
  const double tiles = tiling.tiles * times, nonzeros = tiles * problem.nonzeros;
  work[kNonzeros] += nonzeros;
  work[kVectors] += nonzeros * vectors;
  if (vectors < 3) work[kShortTiles] += nonzeros * (3 - vectors);
  if (tiling.unaligned) work[kUnaligned] += nonzeros * vectors;
  if (tiling.touched > static_cast<double>(kFirstLevelFloats)) work[kSecondLevel] += nonzeros * vectors;
  if (problem.nonzeros * kWeightBytes > kStreamBytes) {
    work[kStreamed] += nonzeros;
    if (tiling.splits > 1 && vectors < 4) work[kScattered] += times * problem.nonzeros;
  }
  work[kRows] += tiles * rows * tiling.splits;
  work[kResults] += tiles * rows * vectors;
  if (tiling.part) work[kParts] += tiles * rows * tiling.rows * tiling.splits;
  const bool far = tiling.results > kResultFloats;
  work[far ? kFarSums : kSums] += tiles * rows * vectors * (tiling.splits - 1);
  work[kCalls] += tiles * tiling.splits;
}

struct Window {
  int64_t planes, extra_rows, extra_columns;
};

// Different remainders of the kernel's offsets by the stride, which go round.
int64_t phase_count(int64_t kernel, int64_t stride, int64_t dilation) { return std::min(kernel, stride / std::gcd(stride, dilation)); }

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
  tiling.results = static_cast<double>(problem.rows * choice.block_rows * choice.block_columns);
  // Small groups are copied together, see Plan::groups_together.
  const double groups = static_cast<double>(problem.shape.group);
  const double room = static_cast<double>(kFirstLevelFloats / std::max<int64_t>(1, split * per_channel));
  const double together = grouped ? std::max(1.0, std::min(room, groups)) : 1.0;
  Work work{};
  const double copied_rows = static_cast<double>(problem.channels * win.planes * (choice.block_rows + win.extra_rows));
  work[kCopyRows] = blocks * groups * copied_rows;
  work[problem.shape.stride[2] > 1 ? kCopyPhases : kCopyVectors] =
      blocks * groups * copied_rows * static_cast<double>(ceil_div(row_stride, vector));
  work[kBlocks] = blocks * groups * tiling.splits / together;
  add_tiles(problem, tiling, blocks * groups, work);
  if (problem.rows == 1) work[kCalls] /= together;
  choice.set_work(work);
  return true;
}

// Fills in the largest block that fits; smaller ones only repeat more of the border. What fits grows with the rows, which
// a hostile padding makes as many as it likes.
bool fit_rows(const Problem& problem, const Window& win, PlanChoice& choice) {
  const int64_t step = choice.tile.rows;
  const auto fits = [&](int64_t rows) {
    choice.block_rows = std::max<int64_t>(rows, 1);
    return price(problem, win, choice);
  };
  if (fits(problem.out[1])) return true;
  int64_t good = 0, bad = ceil_div(problem.out[1], step);
  while (bad - good > 1) {
    const int64_t middle = good + (bad - good) / 2;
    (fits(middle * step) ? good : bad) = middle;
  }
  return good > 0 && fits(good * step);
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

// Whether columns of the weight matrix are kept as 16-bit numbers, see Weights.
bool narrow(const ConvShape& shape) { return shape.group_channels() * shape.taps() <= UINT16_MAX + 1; }

void add_direct(const Problem& problem, std::vector<PlanChoice>& found) {
  const ConvShape& shape = problem.shape;
  const int64_t vector = problem.vector;
  const bool unpadded = shape.pad_begin == Extents{0, 0, 0} && shape.pad_end == Extents{0, 0, 0};
  const bool one_row = problem.in[0] == 1 && problem.out[0] == 1 && problem.in[1] == 1;
  if (shape.taps() != 1 || !unpadded || !one_row || shape.stride[2] != 1 || problem.out[2] < vector || !narrow(problem.shape)) return;
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
    tiling.results = 0;
    Work work{};
    const double groups = static_cast<double>(shape.group);
    work[kBlocks] = tiling.tiles * groups;
    add_tiles(problem, tiling, groups, work);
    choice.set_work(work);
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
        choice.layout = Layout::batch_lanes;
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
          tiling.results = static_cast<double>(problem.rows * out_rows * out_columns * lanes);
          const int64_t groups = ceil_div(batch, lanes);
          const int64_t turns = (threads > 1 ? round_up(groups, threads) : groups) * problem.shape.group;
          const double times = static_cast<double>(turns) / static_cast<double>(batch);
          Work work{};
          work[kTransposes] = times * static_cast<double>(step * (problem.channels * problem.in[1] * problem.in[2] +
                                                                  problem.rows * out_rows * out_columns));
          work[kBlocks] = times * tiling.splits;
          add_tiles(problem, tiling, times, work);
          choice.set_work(work);
          found.push_back(choice);
        }
        if (split == 1) break;
      }
    }
  }
}

}  // namespace

bool is_depthwise(const ConvShape& shape, const Extents& in, int64_t nonzeros) {
  const bool flat = shape.kernel == Extents{1, 3, 3} && in[0] == 1 && shape.pad_begin[0] == 0 && shape.pad_end[0] == 0;
  const bool plain = shape.dilation[1] == 1 && shape.dilation[2] == 1 && shape.stride[1] == shape.stride[2] && shape.stride[1] <= 2;
  return flat && plain && shape.group_channels() == 1 && nonzeros == 9 * shape.out_channels;
}

void PlanChoice::set_work(const Work& done) {
  work = done;
  cost = 0;
  for (size_t i = 0; i < kCostTerms; ++i) cost += kNanoseconds[i] * work[i];
}

std::vector<PlanChoice> candidates(const ConvShape& full, const Extents& in, int64_t nonzeros, int64_t batch, int threads) {
  Problem problem{full, in, output_extents(full, in), 0, 0, full.group_rows(), compute().lanes};
  fold(problem.shape, problem.in, problem.out);
  problem.channels = full.group_channels() * full.kernel[0];
  problem.nonzeros = static_cast<double>(nonzeros) / static_cast<double>(full.group);
  std::vector<PlanChoice> found;
  add_blocks(problem, Layout::padded, found);
  add_blocks(problem, Layout::expanded, found);
  add_direct(problem, found);
  add_lanes(problem, batch, threads, found);
  std::stable_sort(found.begin(), found.end(), [](const PlanChoice& a, const PlanChoice& b) { return a.cost < b.cost; });
  const double products = static_cast<double>(nonzeros) * static_cast<double>(product(problem.out));
  if (found.empty()) {
    found.emplace_back();
    found[0].cost = products;  // a nanosecond each
  }
  if (is_depthwise(full, in, nonzeros)) {
    // Nothing that the estimates of the others know comes near it.
    PlanChoice choice;
    choice.layout = Layout::depthwise;
    choice.cost = kNanoseconds[kVectors] * products / static_cast<double>(problem.vector);
    found.insert(found.begin(), choice);
  }
  return found;
}

}  // namespace hwprune
