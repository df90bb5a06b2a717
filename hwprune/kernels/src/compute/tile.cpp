// The inner loop of everything sparse: a nonzero times several vectors of input.
#include "../compute_api.h"
#include "simd.h"
#include "tables.h"

namespace hwprune {
namespace HWPRUNE_ISA {
namespace {

// Independent accumulator sets, so that short tiles do not wait for the latency of their own sum:
// about eight multiply-adds must be in flight.
constexpr int accumulator_sets(int vectors) {
  if (vectors == 1) return 8;
  if (vectors == 2) return 4;
  if (vectors <= kMaxVectors / 2 && vectors < 8) return 2;
  return 1;
}

template <int N>
HWPRUNE_INLINE void finish(const TileJob& job, Vector<N> sum, float* output, const float* residual, size_t count) {
  const Vector<N> low = splat<N>(job.low), high = splat<N>(job.high);
  if (count >= static_cast<size_t>(N)) {
    if (job.accumulate) sum += load<N>(output);
    if (residual) sum += load<N>(residual);
    store<N>(output, clamp<N>(sum, low, high));
  } else if (count > 0) {
    if (job.accumulate) sum += load_part<N>(output, count);
    if (residual) sum += load_part<N>(residual, count);
    store_part<N>(output, clamp<N>(sum, low, high), count);
  }
}

template <int N, int Rows, int Vectors>
void tile(const TileJob& job) {
  constexpr int kTotal = Rows * Vectors;
  constexpr int kSets = accumulator_sets(kTotal);
  const size_t scale = job.offset_scale, row_stride = job.input_row_stride;
  const float* const input = job.input;
  float* output = job.output;
  const float* residual = job.residual;
  for (size_t row = job.first_row; row < job.last_row; ++row) {
    size_t i = job.segments[row * job.segment_step];
    const size_t end = job.segments[row * job.segment_step + 1];
    Vector<N> sum[kSets][kTotal];
    const Vector<N> bias = splat<N>(job.bias ? job.bias[row] : 0.0f);
#pragma GCC unroll 32
    for (int t = 0; t < kTotal; ++t) sum[0][t] = bias;
#pragma GCC unroll 8
    for (int u = 1; u < kSets; ++u) {
#pragma GCC unroll 32
      for (int t = 0; t < kTotal; ++t) sum[u][t] = Vector<N>{};
    }
    const float* values = job.values;
    const uint16_t* offsets = job.offsets;
    for (; i + kSets <= end; i += kSets) {
#pragma GCC unroll 8
      for (int u = 0; u < kSets; ++u) {
        const Vector<N> weight = splat<N>(values[i + u]);
        const float* from = input + offsets[i + u] * scale;
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
          for (int v = 0; v < Vectors; ++v) sum[u][r * Vectors + v] += weight * load<N>(from + r * row_stride + v * N);
        }
      }
    }
    if (kSets > 1) {
      for (; i < end; ++i) {
        const Vector<N> weight = splat<N>(values[i]);
        const float* from = input + offsets[i] * scale;
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
          for (int v = 0; v < Vectors; ++v) sum[0][r * Vectors + v] += weight * load<N>(from + r * row_stride + v * N);
        }
      }
#pragma GCC unroll 8
      for (int step = kSets / 2; step > 0; step /= 2) {
#pragma GCC unroll 8
        for (int u = 0; u < step; ++u) {
#pragma GCC unroll 32
          for (int t = 0; t < kTotal; ++t) sum[u][t] += sum[u + step][t];
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
      for (int v = 0; v < Vectors; ++v) {
        const size_t begin = static_cast<size_t>(v) * N;
        const size_t at = r * job.output_row_stride + begin;
        finish<N>(job, sum[0][r * Vectors + v], output + at, residual ? residual + at : nullptr,
                  job.columns > begin ? job.columns - begin : 0);
      }
    }
    output += job.output_stride;
    if (residual) residual += job.output_stride;
  }
}

using TileFunction = void (*)(const TileJob&);

// kTiles.at[rows][vectors], filled for every shape that fits the registers.
struct TileTable {
  TileFunction at[kMaxVectors + 1][kMaxVectors + 1];
};

template <int Rows, int Vectors>
constexpr void fill_tiles(TileTable& table) {
  if constexpr (Rows * Vectors <= kMaxVectors) {
    table.at[Rows][Vectors] = &tile<kLanes, Rows, Vectors>;
    fill_tiles<Rows, Vectors + 1>(table);
  }
}

template <int Rows>
constexpr void fill_rows(TileTable& table) {
  if constexpr (Rows <= kMaxVectors && Rows <= kMaxTileRows) {
    fill_tiles<Rows, 1>(table);
    fill_rows<Rows + 1>(table);
  }
}

constexpr TileTable make_tiles() {
  TileTable table{};
  fill_rows<1>(table);
  return table;
}

constexpr TileTable kTiles = make_tiles();

}  // namespace

void run_tile(int width, int rows, int vectors, const TileJob& job) {
  if (width == kLanes) {
    kTiles.at[rows][vectors](job);
    return;
  }
#if defined(__AVX512F__)
  if (width == 8) {
    tile<8, 1, 1>(job);
    return;
  }
#endif
  tile<4, 1, 1>(job);
}

void run_dot(const TileJob& job) {
  const float* const x = job.input;
  for (size_t row = job.first_row; row < job.last_row; ++row) {
    size_t i = job.segments[row * job.segment_step];
    const size_t end = job.segments[row * job.segment_step + 1];
    constexpr int kSets = 8;
    float sum[kSets] = {};
    for (; i + kSets <= end; i += kSets) {
#pragma GCC unroll 8
      for (int u = 0; u < kSets; ++u) sum[u] += job.values[i + u] * x[job.offsets[i + u] * job.offset_scale];
    }
    for (; i < end; ++i) sum[0] += job.values[i] * x[job.offsets[i] * job.offset_scale];
    float total = ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
    const size_t at = (row - job.first_row) * job.output_stride;
    if (job.bias) total += job.bias[row];
    if (job.accumulate) total += job.output[at];
    if (job.residual) total += job.residual[at];
    total = job.low > total ? job.low : total;
    job.output[at] = job.high < total ? job.high : total;
  }
}

}  // namespace HWPRUNE_ISA
}  // namespace hwprune
