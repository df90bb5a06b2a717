// The convolution kernel; linear layers are convolutions over a single position.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kernel_api.h"
#include "plan.h"

namespace hwprune {

class SparseConv final : public ConvKernel {
 public:
  SparseConv(const ConvSpec& spec, SparseMatrix weights, Epilogue epilogue);
  size_t resident_bytes() const override;
  void run(const float* x, int64_t batch, const int64_t* spatial, float* y, const float* residual,
           const Parallel& parallel) const override;

  // For measurements: what plan() chooses from, and a run with a given choice.
  std::vector<PlanChoice> choices(int64_t batch, const int64_t* spatial) const;
  void run_with(const Plan& plan, const float* x, int64_t batch, float* y, const float* residual, const Parallel& parallel) const;
  std::shared_ptr<const Plan> plan_with(const int64_t* spatial, const PlanChoice& choice) const;

 private:
  struct Call;
  struct CachedPlan {
    Extents in;
    int64_t batch;
    int threads;
    std::shared_ptr<const Plan> plan;
  };

  std::shared_ptr<const Plan> plan(int64_t batch, const int64_t* spatial, int threads) const;
  void run_blocks(const Call& call) const;
  void run_lanes(const Call& call) const;
  void run_naive(const Call& call) const;
  void run_vector(const Call& call) const;
  void run_depthwise(const Call& call) const;
  void tiles(const Call& call, TileJob& job, const float* input, float* output, const float* residual, int64_t rows, int64_t columns,
             int64_t output_row_stride, int64_t lanes) const;
  bool has_curve() const;
  void finish_rows(float* data, size_t count) const;
  // The parts of the epilogue that belong to the first and to the last split of the channels.
  void set_epilogue(TileJob& job, int64_t split, int64_t splits, const float* bias, const float* residual) const;

  size_t axes_;
  ConvShape shape_;
  Weights weights_;
  Epilogue epilogue_;
  float low_, high_;
  mutable std::mutex mutex_;
  mutable std::vector<CachedPlan> plans_;  // latest use last
};

}  // namespace hwprune
