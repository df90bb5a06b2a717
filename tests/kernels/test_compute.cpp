// The compute kernels against plain loops in double precision, over many shapes with fixed seeds.
// Exit code 0 when everything agrees. `test_compute [seeds]` sets how many random problems are tried.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../hwprune/kernels/src/conv.h"
#include "../../hwprune/kernels/src/kernel_api.h"

namespace {

using namespace hwprune;
using Random = std::mt19937;

int failures = 0;

int64_t pick(Random& random, int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); }

template <class T>
T one_of(Random& random, std::initializer_list<T> from) {
  return *(from.begin() + pick(random, 0, static_cast<int64_t>(from.size()) - 1));
}

std::vector<float> noise(Random& random, size_t count) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(random);
  return values;
}

SparseMatrix random_matrix(Random& random, int64_t rows, int64_t columns, double density) {
  SparseMatrix matrix;
  matrix.rows = rows;
  matrix.columns = columns;
  matrix.row_start.push_back(0);
  std::bernoulli_distribution lives(density), empty(0.1);
  for (int64_t row = 0; row < rows; ++row) {
    const bool skip = density < 1 && empty(random);
    for (int64_t column = 0; column < columns && !skip; ++column) {
      if (!lives(random)) continue;
      matrix.column.push_back(static_cast<uint32_t>(column));
      matrix.value.push_back(std::uniform_real_distribution<float>(-1, 1)(random));
    }
    matrix.row_start.push_back(static_cast<uint32_t>(matrix.value.size()));
  }
  return matrix;
}

double activate(double value, const Epilogue& epilogue) {
  switch (epilogue.activation) {
    case Activation::none: return value;
    case Activation::relu: return std::max(value, 0.0);
    case Activation::relu6: return std::min(std::max(value, 0.0), 6.0);
    case Activation::hard_swish: return value * std::min(std::max(value / 6 + 0.5, 0.0), 1.0);
    case Activation::silu: return value / (1 + std::exp(-value));
    default: return value < 0 ? value * static_cast<double>(epilogue.alpha) : value;
  }
}

struct Problem {
  ConvSpec spec;
  std::vector<int64_t> in, out;
  int64_t batch = 1;
  SparseMatrix weights;
  Epilogue epilogue;
  bool residual = false;
  std::string text;
};

int64_t count(const std::vector<int64_t>& extents) {
  int64_t product = 1;
  for (const int64_t extent : extents) product *= extent;
  return product;
}

// `scale` receives the sum of magnitudes behind every result: what rounding errors are relative to.
std::vector<double> reference(const Problem& p, const std::vector<float>& x, const std::vector<float>& residual, std::vector<double>& scale) {
  const size_t axes = p.in.size();
  const int64_t taps = count(p.spec.kernel), inputs = count(p.in), outputs = count(p.out);
  const int64_t group_channels = p.spec.in_channels / p.spec.group, group_rows = p.spec.out_channels / p.spec.group;
  std::vector<double> y(static_cast<size_t>(p.batch * p.spec.out_channels * outputs));
  scale.assign(y.size(), 1e-3);
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t o = 0; o < p.spec.out_channels; ++o) {
      for (int64_t position = 0; position < outputs; ++position) {
        const size_t at = static_cast<size_t>((n * p.spec.out_channels + o) * outputs + position);
        double sum = p.epilogue.bias.empty() ? 0.0 : p.epilogue.bias[static_cast<size_t>(o)];
        for (uint32_t i = p.weights.row_start[static_cast<size_t>(o)]; i < p.weights.row_start[static_cast<size_t>(o) + 1]; ++i) {
          const int64_t channel = o / group_rows * group_channels + p.weights.column[i] / taps;
          int64_t tap = p.weights.column[i] % taps, rest = position, from = 0, step = 1;
          bool inside = true;
          for (size_t axis = axes; axis-- > 0;) {
            const int64_t c = rest % p.out[axis] * p.spec.strides[axis] + tap % p.spec.kernel[axis] * p.spec.dilations[axis] - p.spec.pads[axis];
            rest /= p.out[axis];
            tap /= p.spec.kernel[axis];
            inside = inside && c >= 0 && c < p.in[axis];
            from += c * step;
            step *= p.in[axis];
          }
          if (!inside) continue;
          const double term = static_cast<double>(p.weights.value[i]) * x[static_cast<size_t>((n * p.spec.in_channels + channel) * inputs + from)];
          sum += term;
          scale[at] += std::abs(term);
        }
        if (!p.epilogue.bias.empty()) scale[at] += std::abs(p.epilogue.bias[static_cast<size_t>(o)]);
        if (p.residual) scale[at] += std::abs(residual[at]);
        if (p.residual) sum += residual[at];
        y[at] = activate(sum, p.epilogue);
      }
    }
  }
  return y;
}

// A pool that is as unkind as possible: new threads for every region, items handed out one by one.
Parallel threads(int count) {
  Parallel parallel;
  parallel.threads = count;
  parallel.run = [count](size_t items, const std::function<void(size_t)>& body) {
    std::atomic<size_t> next{0};
    std::vector<std::thread> pool;
    for (int i = 0; i < count; ++i) pool.emplace_back([&] { for (size_t k; (k = next++) < items;) body(k); });
    for (std::thread& thread : pool) thread.join();
  };
  return parallel;
}

void compare(const Problem& p, const std::string& how, const std::vector<float>& y, const std::vector<double>& expected, const std::vector<double>& scale) {
  for (size_t i = 0; i < y.size(); ++i) {
    if (std::abs(y[i] - expected[i]) <= 2e-6 * scale[i]) continue;
    std::printf("FAILED %s, %s: y[%zu] = %.9g, expected %.9g\n", p.text.c_str(), how.c_str(), i, static_cast<double>(y[i]), expected[i]);
    ++failures;
    return;
  }
}

std::string describe(const Problem& p, double density) {
  std::string text = "batch " + std::to_string(p.batch) + " channels " + std::to_string(p.spec.in_channels) + "->" +
                     std::to_string(p.spec.out_channels) + " group " + std::to_string(p.spec.group) + " density " + std::to_string(density);
  const auto list = [&](const char* name, const std::vector<int64_t>& values) {
    text += std::string(" ") + name;
    for (const int64_t value : values) text += ' ' + std::to_string(value);
  };
  list("in", p.in);
  list("kernel", p.spec.kernel);
  list("stride", p.spec.strides);
  list("dilation", p.spec.dilations);
  list("pads", p.spec.pads);
  return text;
}

void finish_problem(Random& random, Problem& p, double density) {
  p.out.resize(p.in.size());
  output_shape(p.spec, p.in.data(), p.out.data());
  p.weights = random_matrix(random, p.spec.out_channels, p.spec.in_channels / p.spec.group * count(p.spec.kernel), density);
  if (pick(random, 0, 1)) p.epilogue.bias = noise(random, static_cast<size_t>(p.spec.out_channels));
  p.epilogue.activation = static_cast<Activation>(pick(random, 0, 5));
  p.epilogue.alpha = 0.2f;
  p.residual = pick(random, 0, 2) == 0;
  p.text = describe(p, density);
}

Problem random_problem(Random& random) {
  Problem p;
  const size_t axes = one_of<size_t>(random, {2, 2, 2, 2, 1, 3});
  const int64_t same = one_of<int64_t>(random, {0, 1, 1, 3, 3, 5, 7});  // 0: every axis its own
  const int64_t stride = one_of<int64_t>(random, {0, 1, 1, 1, 2, 2, 3});
  const bool dilated = pick(random, 0, 5) == 0, plain_padding = pick(random, 0, 1);
  p.spec.pads.resize(2 * axes);
  for (size_t axis = 0; axis < axes; ++axis) {
    p.spec.kernel.push_back(same ? same : pick(random, 1, 4));
    p.spec.strides.push_back(stride ? stride : pick(random, 1, 3));
    p.spec.dilations.push_back(dilated ? pick(random, 1, 3) : 1);
    p.spec.pads[axis] = plain_padding ? p.spec.kernel[axis] / 2 : pick(random, 0, 3);
    p.spec.pads[axes + axis] = plain_padding ? p.spec.kernel[axis] / 2 : pick(random, 0, 3);
    p.in.push_back(axes == 3 ? pick(random, 1, 9) : one_of<int64_t>(random, {1, 2, 4, 7, 8, 14, 16, 28, 32, pick(random, 1, 40)}));
  }
  if (axes == 1) p.in[0] = one_of<int64_t>(random, {1, 3, 40, 400, 1000});
  p.batch = one_of<int64_t>(random, {1, 1, 1, 2, 3, 5, 8, 9, 33});
  const int64_t kind = pick(random, 0, 5);
  if (kind == 0) {  // depthwise
    p.spec.in_channels = p.spec.group = pick(random, 1, 20);
    p.spec.out_channels = p.spec.group * pick(random, 1, 2);
    if (axes == 2 && same == 3 && pick(random, 0, 1)) {  // the layout of their own, wide enough for whole strips
      p.spec.strides.assign(2, pick(random, 1, 2));
      p.spec.dilations.assign(2, 1);
      for (int64_t& extent : p.in) extent = pick(random, 1, 80);
      if (pick(random, 0, 3) == 0) p.spec.pads[static_cast<size_t>(pick(random, 0, 3))] = pick(random, 4, 24);
      finish_problem(random, p, 1);
      return p;
    }
  } else {
    p.spec.group = kind == 1 ? pick(random, 2, 4) : 1;
    p.spec.in_channels = p.spec.group * one_of<int64_t>(random, {1, 2, 3, 7, 16});
    p.spec.out_channels = p.spec.group * one_of<int64_t>(random, {1, 2, 5, 16});
  }
  const double density = one_of<double>(random, {0, 0.01, 0.05, 0.1, 0.2, 0.5, 1});
  finish_problem(random, p, density);
  return p;
}

void check_conv(Random& random, const Problem& p) {
  const size_t inputs = static_cast<size_t>(p.batch * p.spec.in_channels * count(p.in));
  const size_t outputs = static_cast<size_t>(p.batch * p.spec.out_channels * count(p.out));
  const std::vector<float> x = noise(random, inputs), residual = noise(random, p.residual ? outputs : 0);
  std::vector<double> scale;
  const std::vector<double> expected = reference(p, x, residual, scale);
  const SparseConv kernel(p.spec, p.weights, p.epilogue);
  const float* const add = p.residual ? residual.data() : nullptr;
  std::vector<float> y(outputs);
  const auto fresh = [&] { std::fill(y.begin(), y.end(), std::numeric_limits<float>::quiet_NaN()); };
  fresh();
  kernel.run(x.data(), p.batch, p.in.data(), y.data(), add, {});
  compare(p, "as chosen", y, expected, scale);
  for (const int workers : {2, 3}) {
    fresh();
    kernel.run(x.data(), p.batch, p.in.data(), y.data(), add, threads(workers));
    compare(p, std::to_string(workers) + " threads", y, expected, scale);
  }
  if (outputs == 0) return;
  // Every way the cost model could have chosen must give the same result, and the fallback, too.
  std::vector<PlanChoice> choices = kernel.choices(p.batch, p.in.data());
  choices.push_back({});
  for (const PlanChoice& choice : choices) {
    fresh();
    kernel.run_with(*kernel.plan_with(p.in.data(), choice), x.data(), p.batch, y.data(), add, {});
    compare(p, "layout " + std::to_string(static_cast<int>(choice.layout)) + " rows " + std::to_string(choice.block_rows) + " columns " +
                   std::to_string(choice.block_columns) + " tile " + std::to_string(choice.tile.rows) + "x" + std::to_string(choice.tile.vectors) +
                   " split " + std::to_string(choice.split_channels) + " lanes " + std::to_string(choice.lanes),
            y, expected, scale);
  }
}

void check_gemm(Random& random) {
  Problem p;
  p.spec.in_channels = one_of<int64_t>(random, {1, 3, 64, 300, 777});
  p.spec.out_channels = one_of<int64_t>(random, {1, 10, 33, 100});
  p.spec.kernel = p.spec.strides = p.spec.dilations = {1};
  p.spec.pads = {0, 0};
  p.in = {1};
  p.batch = one_of<int64_t>(random, {0, 1, 2, 4, 7, 8, 33, 64, 197});
  finish_problem(random, p, one_of<double>(random, {0, 0.02, 0.1, 0.5, 1}));
  const std::vector<float> x = noise(random, static_cast<size_t>(p.batch * p.spec.in_channels));
  std::vector<float> y(static_cast<size_t>(p.batch * p.spec.out_channels), std::numeric_limits<float>::quiet_NaN());
  const std::vector<float> residual = noise(random, p.residual ? y.size() : 0);
  std::vector<double> scale;
  const std::vector<double> expected = reference(p, x, residual, scale);
  const std::unique_ptr<GemmKernel> kernel = make_gemm(p.weights, p.epilogue);
  for (const int workers : {1, 2}) {
    kernel->run(x.data(), p.batch, y.data(), p.residual ? residual.data() : nullptr, workers == 1 ? Parallel{} : threads(workers));
    compare(p, "gemm with " + std::to_string(workers) + " threads", y, expected, scale);
  }
}

// Work that is estimated to take less than what handing it out is worth stays with the calling thread, in every layout.
void check_small_work_is_not_shared(Random& random) {
  for (const bool depthwise : {false, true}) {
    Problem p;
    p.spec = {16, 16, depthwise ? 16 : 1, {3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}};
    p.in = {16, 16};
    finish_problem(random, p, depthwise ? 1 : 0.5);
    const SparseConv kernel(p.spec, p.weights, p.epilogue);
    const std::vector<float> x(16 * 16 * 16), residual(x.size());
    std::vector<float> y(x.size());
    int sections = 0;
    Parallel parallel = threads(2);
    parallel.run = [&, inner = parallel.run](size_t items, const std::function<void(size_t)>& body) {
      ++sections;
      inner(items, body);
    };
    const auto run = [&](double least_ns) {
      sections = 0;
      parallel.least_ns = least_ns;
      kernel.run(x.data(), 1, p.in.data(), y.data(), p.residual ? residual.data() : nullptr, parallel);
      return sections;
    };
    const double cost = kernel.choices(1, p.in.data()).front().cost;
    if (cost > 0 && run(2 * cost) == 0 && run(cost / 2) > 0) continue;
    std::printf("FAILED %s: cost %g, %d sections\n", p.text.c_str(), cost, sections);
    ++failures;
  }
}

// One kernel, several threads at once, changing shapes: scratch and plans must not be mixed up.
void check_concurrent(Random& random) {
  Problem p;
  p.spec = {16, 24, 1, {3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}};
  p.in = {16, 16};
  finish_problem(random, p, 0.2);
  p.residual = false;
  const SparseConv kernel(p.spec, p.weights, p.epilogue);
  struct Case {
    Problem problem;
    std::vector<float> x, y;
    std::vector<double> expected, scale;
  };
  std::vector<Case> cases;
  for (const int64_t size : {1, 4, 7, 8, 12, 16, 19, 32}) {
    Case item{p, {}, {}, {}, {}};
    item.problem.in = item.problem.out = {size, size + 1};
    item.problem.batch = size == 4 ? 9 : 1;
    item.x = noise(random, static_cast<size_t>(item.problem.batch * 16 * size * (size + 1)));
    item.y.resize(static_cast<size_t>(item.problem.batch * 24 * size * (size + 1)));
    item.expected = reference(item.problem, item.x, {}, item.scale);
    cases.push_back(std::move(item));
  }
  std::vector<std::thread> pool;
  for (Case& item : cases) {
    pool.emplace_back([&] {
      for (int i = 0; i < 30; ++i) kernel.run(item.x.data(), item.problem.batch, item.problem.in.data(), item.y.data(), nullptr, {});
    });
  }
  for (std::thread& thread : pool) thread.join();
  for (const Case& item : cases) compare(item.problem, "concurrent", item.y, item.expected, item.scale);
  // Plans are bounded: many shapes later, what is held is a small multiple of the weights.
  const size_t before = kernel.resident_bytes();
  std::vector<float> x(16 * 40 * 40), y(24 * 40 * 40);
  for (int64_t size = 1; size <= 40; ++size) {
    const int64_t spatial[] = {size, size};
    kernel.run(x.data(), 1, spatial, y.data(), nullptr, {});
  }
  if (kernel.resident_bytes() > 4 * before) {
    std::printf("FAILED resident bytes grow with every shape: %zu after %zu\n", kernel.resident_bytes(), before);
    ++failures;
  }
}

void check_special_values() {
  // A pruned weight never meets an infinity; a stored one does, and a NaN passes the activation.
  Problem p;
  p.spec = {2, 2, 1, {1, 1}, {1, 1}, {1, 1}, {0, 0, 0, 0}};
  SparseMatrix weights;
  weights.rows = weights.columns = 2;
  weights.row_start = {0, 1, 2};
  weights.column = {0, 1};
  weights.value = {2.0f, 0.0f};
  Epilogue relu;
  relu.activation = Activation::relu;
  const int64_t spatial[] = {3, 5};
  std::vector<float> x(30, 1.0f), y(30);
  std::fill(x.begin() + 15, x.end(), std::numeric_limits<float>::infinity());
  make_conv(p.spec, weights, relu)->run(x.data(), 1, spatial, y.data(), nullptr, {});
  for (int i = 0; i < 15; ++i) {
    if (y[static_cast<size_t>(i)] == 2.0f && std::isnan(y[static_cast<size_t>(15 + i)])) continue;
    std::printf("FAILED special values: %g %g\n", static_cast<double>(y[static_cast<size_t>(i)]), static_cast<double>(y[static_cast<size_t>(15 + i)]));
    ++failures;
    return;
  }
}

// A pointwise layer whose only output position lies in the padding: its sum is empty.
void check_only_padding() {
  Random random(2);
  Problem p;
  p.spec = {8, 12, 1, {1, 1}, {4, 3}, {1, 1}, {1, 1, 1, 1}};
  p.in = {1, 1};
  finish_problem(random, p, 0.5);
  check_conv(random, p);
}

// Weights that no second-level cache holds are walked in one go where tiles are short; see kScattered in plan.h.
void check_streamed() {
  const ConvShape shape = make_shape({512, 512, 1, {3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}});
  const PlanChoice choice = candidates(shape, {1, 2, 2}, 512 * 512 * 9 / 10, 1, 1).front();
  if (choice.split_channels == 512) return;
  std::printf("FAILED streamed weights are split by %lld channels\n", static_cast<long long>(choice.split_channels));
  ++failures;
}

void check_refusals() {
  const auto refused = [](const char* what, const ConvSpec& spec, SparseMatrix weights, Epilogue epilogue) {
    try {
      make_conv(spec, std::move(weights), std::move(epilogue));
    } catch (const std::invalid_argument&) {
      return;
    }
    std::printf("FAILED not refused: %s\n", what);
    ++failures;
  };
  const ConvSpec spec{2, 2, 1, {1}, {1}, {1}, {0, 0}};
  const SparseMatrix good{2, 2, {0, 1, 2}, {0, 1}, {1, 1}};
  SparseMatrix bad = good;
  bad.column[1] = 2;
  refused("column outside", spec, bad, {});
  bad = good;
  bad.row_start = {0, 3, 2};
  refused("row_start falls", spec, bad, {});
  bad = good;
  bad.row_start.pop_back();
  refused("row_start short", spec, bad, {});
  bad = {2, 2, {0, 2, 2}, {1, 1}, {1, 1}};
  refused("column twice", spec, bad, {});
  ConvSpec wrong = spec;
  wrong.group = 3;
  refused("group does not divide", wrong, good, {});
  wrong = spec;
  wrong.kernel = {1, 1};
  refused("axes differ", wrong, good, {});
  refused("bias too short", spec, good, {{1.0f}, Activation::none, 0});
}

}  // namespace

int main(int count_of_arguments, char** arguments) {
  const int seeds = count_of_arguments > 1 ? std::atoi(arguments[1]) : 400;
  for (int seed = 0; seed < seeds; ++seed) {
    Random random(static_cast<unsigned>(seed));
    const Problem p = random_problem(random);
    check_conv(random, p);
    check_gemm(random);
  }
  Random random(1);
  check_concurrent(random);
  check_small_work_is_not_shared(random);
  check_special_values();
  check_only_padding();
  check_streamed();
  check_refusals();
  Problem empty;  // no images, and a map smaller than the kernel: nothing to write, nothing to read
  const int64_t spatial[] = {2, 2}, tall[] = {0, 4};
  const auto kernel = make_conv({1, 1, 1, {3, 3}, {1, 1}, {1, 1}, {0, 0, 0, 0}}, {1, 9, {0, 1}, {4}, {1}}, {});
  kernel->run(nullptr, 0, spatial, nullptr, nullptr, {});
  kernel->run(nullptr, 1, spatial, nullptr, nullptr, {});
  kernel->run(nullptr, 1, tall, nullptr, nullptr, {});
  std::printf("%s: %d seeds, %d failures\n", simd_name(), seeds, failures);
  return failures == 0 ? 0 : 1;
}
