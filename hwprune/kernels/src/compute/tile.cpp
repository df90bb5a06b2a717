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
  if (vectors <= kMaxVectors / 2 && vectors < 7) return 2;
  return 1;
}

// Adds what lies in memory, bounds and stores; Part: only `count` lanes of the vector exist.
template <int N, bool Part>
HWPRUNE_INLINE void finish(const TileJob& job, Vector<N> sum, float* output, const float* residual, size_t count) {
  if (job.accumulate) sum += Part ? load_part<N>(output, count) : load<N>(output);
  if (residual) sum += Part ? load_part<N>(residual, count) : load<N>(residual);
  sum = clamp<N>(sum, splat<N>(job.low), splat<N>(job.high));
  if (Part) store_part<N>(output, sum, count);
  else store<N>(output, sum);
}

template <int N, int Rows, int Vectors>
HWPRUNE_INLINE void add(Vector<N> (&sum)[Rows * Vectors], Vector<N> weight, const float* from, size_t row_stride) {
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
    for (int v = 0; v < Vectors; ++v) sum[r * Vectors + v] += weight * load<N>(from + v * N);
    from += row_stride;
  }
}

template <int N, int Rows, int Vectors>
void tile(const TileJob& job) {
  constexpr int kTotal = Rows * Vectors;
  constexpr int kSets = accumulator_sets(kTotal);
  const size_t scale = job.offset_scale, row_stride = job.input_row_stride;
  const float* input = job.input;
  float* output = job.output;
  const float* residual = job.residual;
  // Lanes of the last vector of a row that exist; all the other vectors are whole.
  const size_t before = static_cast<size_t>(Vectors - 1) * N;
  const size_t rest = job.columns - before < static_cast<size_t>(N) ? job.columns - before : N;
  const bool plain = !job.accumulate && residual == nullptr && rest == static_cast<size_t>(N);
  const Vector<N> low = splat<N>(job.low), high = splat<N>(job.high);
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
        add<N, Rows, Vectors>(sum[u], weight, from, row_stride);
      }
    }
    if (kSets > 1) {
      for (; i < end; ++i) {
        const Vector<N> weight = splat<N>(values[i]);
        const float* from = input + offsets[i] * scale;
        add<N, Rows, Vectors>(sum[0], weight, from, row_stride);
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
    if (plain) {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
        for (int v = 0; v < Vectors; ++v) {
          store<N>(output + r * job.output_row_stride + v * N, clamp<N>(sum[0][r * Vectors + v], low, high));
        }
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 32
        for (int v = 0; v < Vectors; ++v) {
          const size_t at = r * job.output_row_stride + static_cast<size_t>(v) * N;
          const float* const add = residual ? residual + at : nullptr;
          if (v + 1 < Vectors || rest == static_cast<size_t>(N)) {
            finish<N, false>(job, sum[0][r * Vectors + v], output + at, add, N);
          } else {
            finish<N, true>(job, sum[0][r * Vectors + v], output + at, add, rest);
          }
        }
      }
    }
    input += job.input_step;
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
