// One run of a convolution, and how its work is shared out.
#pragma once

#include <functional>
#include <vector>

#include "conv.h"

namespace hwprune {

// Runs the body serially when there is nothing to share out.
void for_each(const Parallel& parallel, size_t count, const std::function<void(size_t)>& body);

int thread_count(const Parallel& parallel);

// Bounds of `parts` runs of weight rows in [first, last) with about as many nonzeros each.
std::vector<int64_t> balanced_rows(const std::vector<uint32_t>& row_start, int64_t first, int64_t last, int64_t parts);

struct SparseConv::Call {
  const Plan& plan;
  const float* x;
  int64_t batch;
  float* y;
  const float* residual;
  const Parallel& parallel;
};

}  // namespace hwprune
