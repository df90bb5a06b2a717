// Times the convolution kernels layer by layer, without a model and without onnxruntime.
//
// Build, from the root of the repository, on the objects of the library:
//   cmake -B build -S . && cmake --build build &&
//   g++ -std=c++17 -O2 benchmarks/kernels_micro.cpp $(find build -path '*hwprune_*.dir*' -name '*.o') -o build/kernels_micro -lpthread
//
// Usage: kernels_micro NETWORK DENSITY [batch] [threads] [--all]
//   networks: vgg16 resnet20 mobilenetv1 mobilenetv2 resnet50; --all also times every layout that was not chosen, --sum
//   prints the total only, --in-turn runs the layers one after the other as a network does, which leaves the caches to none of
//   them, --fit what benchmarks/fit_kernels.py fits the constants of choice.cpp to.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../hwprune/kernels/src/conv.h"
#include "../hwprune/kernels/src/kernel_api.h"

namespace {

using namespace hwprune;

struct Layer {
  int64_t in, out, size, kernel, stride, group;
};

void add(std::vector<Layer>& net, int64_t in, int64_t out, int64_t size, int64_t kernel, int64_t stride, int64_t group = 1) {
  net.push_back({in, out, size, kernel, stride, group});
}

std::vector<Layer> network(const std::string& name) {
  std::vector<Layer> net;
  if (name == "vgg16") {
    int64_t in = 3, size = 32;
    for (const int64_t width : {64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512}) {
      if (width == 0) size /= 2;
      else add(net, in, width, size, 3, 1), in = width;
    }
  } else if (name == "resnet20") {
    add(net, 3, 16, 32, 3, 1);
    int64_t in = 16, size = 32;
    for (const int64_t width : {16, 32, 64}) {
      for (int block = 0; block < 3; ++block) {
        const int64_t stride = width != 16 && block == 0 ? 2 : 1;
        add(net, in, width, size, 3, stride);
        if (stride == 2) add(net, in, width, size, 1, 2);
        size /= stride;
        add(net, width, width, size, 3, 1);
        in = width;
      }
    }
  } else if (name == "resnet50") {
    add(net, 3, 64, 224, 7, 2);
    int64_t in = 64, size = 56;
    const int64_t blocks[] = {3, 4, 6, 3};
    for (int stage = 0; stage < 4; ++stage) {
      const int64_t width = 64 << stage;
      for (int64_t block = 0; block < blocks[stage]; ++block) {
        const int64_t stride = stage > 0 && block == 0 ? 2 : 1;
        add(net, in, width, size, 1, 1);
        add(net, width, width, size, 3, stride);
        if (block == 0) add(net, in, 4 * width, size, 1, stride);
        size /= stride;
        add(net, width, 4 * width, size, 1, 1);
        in = 4 * width;
      }
    }
  } else if (name == "mobilenetv1") {
    add(net, 3, 32, 224, 3, 2);
    int64_t in = 32, size = 112;
    const int64_t widths[] = {64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024};
    for (int i = 0; i < 13; ++i) {
      const int64_t stride = i == 1 || i == 3 || i == 5 || i == 11 ? 2 : 1;
      add(net, in, in, size, 3, stride, in);
      size /= stride;
      add(net, in, widths[i], size, 1, 1);
      in = widths[i];
    }
  } else if (name == "mobilenetv2") {
    add(net, 3, 32, 224, 3, 2);
    int64_t in = 32, size = 112;
    const int64_t stages[][4] = {{1, 16, 1, 1}, {6, 24, 2, 2}, {6, 32, 3, 2}, {6, 64, 4, 2}, {6, 96, 3, 1}, {6, 160, 3, 2}, {6, 320, 1, 1}};
    for (const auto& stage : stages) {
      for (int64_t block = 0; block < stage[2]; ++block) {
        const int64_t stride = block == 0 ? stage[3] : 1, wide = in * stage[0];
        if (stage[0] > 1) add(net, in, wide, size, 1, 1);
        add(net, wide, wide, size, 3, stride, wide);
        size /= stride;
        add(net, wide, stage[1], size, 1, 1);
        in = stage[1];
      }
    }
    add(net, 320, 1280, 7, 1, 1);
  }
  return net;
}

SparseMatrix weights_of(const Layer& layer, double density, std::mt19937& random) {
  SparseMatrix matrix;
  matrix.rows = layer.out;
  matrix.columns = layer.in / layer.group * layer.kernel * layer.kernel;
  matrix.row_start.push_back(0);
  // Depthwise layers stay dense: there is next to nothing to prune in them.
  std::bernoulli_distribution lives(layer.group > 1 ? 1.0 : density);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t column = 0; column < matrix.columns; ++column) {
      if (!lives(random)) continue;
      matrix.column.push_back(static_cast<uint32_t>(column));
      matrix.value.push_back(std::uniform_real_distribution<float>(-1, 1)(random));
    }
    matrix.row_start.push_back(static_cast<uint32_t>(matrix.value.size()));
  }
  return matrix;
}

// Milliseconds so far: of this thread's work with one thread, so that a busy machine disturbs less.
double now(bool wall) {
  timespec time;
  clock_gettime(wall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &time);
  return 1e3 * static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_nsec);
}

// The fastest fifth of many runs ends here, in ms. (Not the fastest: the clock of a thread can slip.)
template <class Body>
double best_of(bool wall, const Body& body, double limit = 60) {
  std::vector<double> times;
  double spent = 0;
  for (int i = 0; i < 200 && (i < 5 || spent < limit); ++i) {
    const double begin = now(wall);
    body();
    times.push_back(now(wall) - begin);
    spent += times.back();
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 5];
}

const char* layout_name(Layout layout) {
  static const char* const names[] = {"direct", "padded", "expanded", "lanes", "depthwise", "naive"};
  return names[static_cast<int>(layout)];
}

// Threads that wait for work in a loop: what an inference runtime's pool does between the layers.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { wait(); });
  }
  ~Pool() {
    stop_ = true;
    for (std::thread& worker : workers_) worker.join();
  }
  void run(size_t count, const std::function<void(size_t)>& body) {
    body_ = &body;
    count_ = count;
    next_ = 0;
    busy_ = static_cast<int>(workers_.size());
    ++round_;
    work();
    while (busy_ != 0) {
    }
  }

 private:
  void work() {
    for (size_t i; (i = next_++) < count_;) (*body_)(i);
  }
  void wait() {
    for (int seen = 0; !stop_;) {
      if (round_ == seen) continue;
      seen = round_;
      work();
      --busy_;
    }
  }
  std::vector<std::thread> workers_;
  const std::function<void(size_t)>* body_ = nullptr;
  size_t count_ = 0;
  std::atomic<size_t> next_{0};
  std::atomic<int> busy_{0}, round_{0};
  std::atomic<bool> stop_{false};
};

// All layers one after the other, as a network runs them: the weights of one drive those of the others out of the caches.
void in_turn(const std::vector<Layer>& net, double density, int64_t batch, bool wall, const Parallel& parallel) {
  struct Stage {
    std::unique_ptr<SparseConv> kernel;
    int64_t spatial[2];
    double gigaflops;
    std::vector<float> x, y;
    std::vector<double> times;
  };
  std::mt19937 random(1);
  std::vector<Stage> stages;
  for (const Layer& layer : net) {
    const int64_t pad = layer.kernel / 2;
    const ConvSpec spec{layer.in, layer.out, layer.group, {layer.kernel, layer.kernel}, {layer.stride, layer.stride}, {1, 1}, {pad, pad, pad, pad}};
    Epilogue epilogue;
    epilogue.bias.assign(static_cast<size_t>(layer.out), 0.1f);
    epilogue.activation = Activation::relu;
    Stage stage;
    SparseMatrix matrix = weights_of(layer, density, random);
    const double nonzeros = static_cast<double>(matrix.value.size());
    stage.kernel = std::make_unique<SparseConv>(spec, std::move(matrix), epilogue);
    stage.spatial[0] = stage.spatial[1] = layer.size;
    int64_t out[2];
    output_shape(spec, stage.spatial, out);
    stage.x.assign(static_cast<size_t>(batch * layer.in * layer.size * layer.size), 0.5f);
    stage.y.assign(static_cast<size_t>(batch * layer.out * out[0] * out[1]), 0.0f);
    stage.gigaflops = 2e-9 * nonzeros * static_cast<double>(batch * out[0] * out[1]);
    stages.push_back(std::move(stage));
  }
  for (double spent = 0; spent < 1000;) {
    for (Stage& stage : stages) {
      const double begin = now(wall);
      stage.kernel->run(stage.x.data(), batch, stage.spatial, stage.y.data(), nullptr, parallel);
      stage.times.push_back(now(wall) - begin);
      spent += stage.times.back();
    }
  }
  double sums[2] = {};
  size_t bytes = 0;
  for (size_t i = 0; i < stages.size(); ++i) {
    std::vector<double>& times = stages[i].times;
    std::sort(times.begin(), times.end());
    const double fifth = times[times.size() / 5], median = times[times.size() / 2];
    sums[0] += fifth;
    sums[1] += median;
    bytes += stages[i].kernel->resident_bytes();
    std::printf("%5lld -> %5lld %3lldx%-3lld fifth %8.4f ms %6.1f GFLOP/s median %8.4f ms\n", static_cast<long long>(net[i].in),
                static_cast<long long>(net[i].out), static_cast<long long>(net[i].size), static_cast<long long>(net[i].size), fifth,
                stages[i].gigaflops / fifth * 1e3, median);
  }
  std::printf("in turn: sum of fifths %.3f ms, of medians %.3f ms, %zu bytes resident\n", sums[0], sums[1], bytes);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "vgg16";
  const double density = count > 2 ? std::atof(arguments[2]) : 0.1;
  const int64_t batch = count > 3 ? std::atoll(arguments[3]) : 1;
  const int threads = count > 4 ? std::atoi(arguments[4]) : 1;
  const bool all = count > 5 && std::strcmp(arguments[5], "--all") == 0;
  const bool quiet = count > 5 && std::strcmp(arguments[5], "--sum") == 0;
  Pool pool(threads);
  Parallel parallel;
  parallel.threads = threads;
  if (threads > 1) parallel.run = [&](size_t items, const std::function<void(size_t)>& body) { pool.run(items, body); };
  std::mt19937 random(1);
  if (count > 5 && std::strcmp(arguments[5], "--in-turn") == 0) {
    in_turn(network(name), density, batch, threads > 1, parallel);
    return 0;
  }
  double total = 0, pruned = 0;
  for (const Layer& layer : network(name)) {
    const int64_t pad = layer.kernel / 2;
    const ConvSpec spec{layer.in, layer.out, layer.group, {layer.kernel, layer.kernel}, {layer.stride, layer.stride}, {1, 1}, {pad, pad, pad, pad}};
    Epilogue epilogue;
    epilogue.bias.assign(static_cast<size_t>(layer.out), 0.1f);
    epilogue.activation = Activation::relu;
    const SparseMatrix matrix = weights_of(layer, density, random);
    const SparseConv kernel(spec, matrix, epilogue);
    const int64_t spatial[] = {layer.size, layer.size};
    int64_t out[2];
    output_shape(spec, spatial, out);
    std::vector<float> x(static_cast<size_t>(batch * layer.in * layer.size * layer.size), 0.5f);
    std::vector<float> y(static_cast<size_t>(batch * layer.out * out[0] * out[1]));
    const double gigaflops = 2e-9 * static_cast<double>(matrix.value.size()) * static_cast<double>(batch * out[0] * out[1]);
    const double ms = best_of(threads > 1, [&] { kernel.run(x.data(), batch, spatial, y.data(), nullptr, parallel); });
    total += ms;
    if (layer.group == 1) pruned += ms;
    const auto print = [&](const PlanChoice& choice, double time, char mark) {
      std::printf("%c %5lld -> %5lld %3lldx%-3lld k%lld s%lld %c %8.4f ms %6.1f GFLOP/s  %-8s rows %3lld columns %4lld tile %lldx%-2lld split %4lld lanes %3lld  estimate %8.4f ms (%.2f)\n",
                  mark, static_cast<long long>(layer.in), static_cast<long long>(layer.out), static_cast<long long>(layer.size),
                  static_cast<long long>(layer.size), static_cast<long long>(layer.kernel), static_cast<long long>(layer.stride),
                  layer.group > 1 ? 'd' : ' ', time, gigaflops / time * 1e3, layout_name(choice.layout), static_cast<long long>(choice.block_rows),
                  static_cast<long long>(choice.block_columns), static_cast<long long>(choice.tile.rows),
                  static_cast<long long>(choice.tile.vectors), static_cast<long long>(choice.split_channels), static_cast<long long>(choice.lanes),
                  choice.cost * static_cast<double>(batch) * 1e-6, choice.cost * static_cast<double>(batch) / time * 1e-6);
    };
    const std::vector<PlanChoice> choices = kernel.choices(batch, spatial);
    const bool fit = count > 5 && std::strcmp(arguments[5], "--fit") == 0;
    for (size_t i = 0, step = choices.size() / 40 + 1; fit && i < choices.size(); i += i < 10 ? 1 : step) {
      if (choices[i].cost > 6 * choices.front().cost) break;
      const auto plan = kernel.plan_with(spatial, choices[i]);
      const double time = best_of(threads > 1, [&] { kernel.run_with(*plan, x.data(), batch, y.data(), nullptr, parallel); }, 6);
      std::printf("fit %.4f", time * 1e6 / static_cast<double>(batch));
      for (const double amount : choices[i].work) std::printf(" %.6g", amount);
      std::printf("\n");
    }
    if (!quiet && !fit) print(choices.front(), ms, '*');
    for (size_t i = 1; all && i < choices.size(); ++i) {
      if (choices[i].cost > 3 * choices.front().cost) break;
      const auto plan = kernel.plan_with(spatial, choices[i]);
      print(choices[i], best_of(threads > 1, [&] { kernel.run_with(*plan, x.data(), batch, y.data(), nullptr, parallel); }), ' ');
    }
  }
  std::printf("%s %s density %.3f batch %lld threads %d: %.3f ms, of it %.3f ms in pruned layers\n", simd_name(), name.c_str(), density,
              static_cast<long long>(batch), threads, total, pruned);
}
