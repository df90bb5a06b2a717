// Fuzzing what comes after the decoder: names of operators, specifications, plans and runs. A weight that
// was decoded, any strides, pads and groups, and a small input: it is refused, or every way to compute it
// gives what plain loops give. Inputs and outputs lie in memory of exactly their size, for the sanitizers.
//
// With Clang this is a libFuzzer target. Otherwise main() takes random bytes, always the same.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "conv.h"
#include "fuzz_input.h"
#include "operator_name.h"

namespace hwprune::testing {
namespace {

constexpr int64_t kMostFloats = 1 << 13, kMostPad = 16;
int ran = 0;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// Or now and then as hostile as the operator lets it be.
int64_t small(Reader& reader, int64_t least, unsigned most) {
  const int64_t wild = reader.byte() % 64 == 0 ? reader.extent() : 0;
  constexpr int64_t most_wild = int64_t{1} << 31;
  return wild && wild >= -most_wild && wild <= most_wild ? wild : least + reader.byte() % most;
}

// Well-formed weights of a convolution, as the decoder gives them; or hostile ones that it accepts.
SparseMatrix read_matrix(Reader& reader, std::vector<int64_t>& shape) {
  if (reader.byte() % 8 == 0) {
    Owned owned = read_owned(reader);
    shape = owned.packed.shape;
    if (!shape.empty() && shape[0] > 4096) throw MalformedWeight("large");
    return decode(owned.packed);
  }
  for (unsigned axis = 0, rank = 3 + reader.byte() % 3; axis < rank; ++axis) shape.push_back(1 + reader.byte() % (axis < 2 ? 24 : 4));
  SparseMatrix matrix;
  matrix.rows = shape[0];
  matrix.columns = 1;
  for (size_t axis = 1; axis < shape.size(); ++axis) matrix.columns *= shape[axis];
  if (matrix.rows * matrix.columns > 1 << 14) throw MalformedWeight("large");
  const unsigned step = 1 + reader.byte() % 32;
  matrix.row_start.push_back(0);
  for (int64_t row = 0; row < matrix.rows; ++row) {
    for (int64_t column = reader.byte() % step; column < matrix.columns; column += 1 + (reader.byte() + column) % step) {
      matrix.column.push_back(static_cast<uint32_t>(column));
      matrix.value.push_back(static_cast<float>(static_cast<int>(reader.byte()) - 128) / 64);
    }
    matrix.row_start.push_back(static_cast<uint32_t>(matrix.value.size()));
  }
  return matrix;
}

void try_run(Reader& reader) {
  std::vector<int64_t> shape;
  SparseMatrix weights = read_matrix(reader, shape);
  if (shape.size() < 3 || shape.size() > 5) return;
  const size_t axes = shape.size() - 2;
  ConvSpec spec;
  spec.group = small(reader, 1, 3);
  if (reader.byte() % 4 == 0) spec.group = shape[0] / std::max<int64_t>(1, 1 + reader.byte() % 2);
  spec.out_channels = shape[0];
  if (spec.group < 0 || spec.group > shape[0]) spec.group = 1;
  spec.in_channels = shape[1] * spec.group;
  spec.kernel.assign(shape.begin() + 2, shape.end());
  for (size_t i = 0; i < axes; ++i) {
    spec.strides.push_back(small(reader, 1, 4));
    spec.dilations.push_back(small(reader, 1, 3));
    const int64_t most = int64_t{1} << 31;  // the operator refuses more
    if (spec.dilations[i] < -most || spec.kernel[i] * std::abs(spec.dilations[i]) > most) return;
  }
  for (size_t i = 0; i < 2 * axes; ++i) spec.pads.push_back(small(reader, 0, 4));
  if (std::any_of(spec.pads.begin(), spec.pads.end(), [](int64_t pad) { return pad > kMostPad; })) return;
  const unsigned activation = reader.byte();
  Epilogue epilogue;
  epilogue.activation = static_cast<Activation>(activation % 6);
  if (reader.byte() % 2) epilogue.bias.assign(static_cast<size_t>(shape[0] + (reader.byte() == 0)), 0.5f);
  bool exact = true;
  double magnitude = 1;
  for (const float value : weights.value) {
    exact = exact && (value == 0 || (std::abs(value) > 1e-3f && std::abs(value) < 1e3f));
    magnitude += std::abs(static_cast<double>(value));
  }
  const SparseConv kernel(spec, std::move(weights), std::move(epilogue));
  std::vector<int64_t> in, out(axes);
  int64_t inputs = 1 + reader.byte() % 9, outputs = inputs;
  const int64_t batch = inputs;
  inputs *= spec.in_channels;
  outputs *= spec.out_channels;
  for (size_t i = 0; i < axes; ++i) {
    in.push_back(reader.byte() % 40);
    inputs *= in[i];
  }
  if (inputs > kMostFloats) return;
  output_shape(spec, in.data(), out.data());
  for (const int64_t extent : out) {
    if (extent > kMostFloats) return;
    outputs *= extent;
  }
  if (outputs > kMostFloats) return;
  std::unique_ptr<float[]> x(new float[static_cast<size_t>(inputs)]), y(new float[static_cast<size_t>(outputs)]),
      expected(new float[static_cast<size_t>(outputs)]), residual;
  for (int64_t i = 0; i < inputs; ++i) x[static_cast<size_t>(i)] = static_cast<float>(static_cast<int>(reader.byte() % 16) - 8);
  if (reader.byte() % 2) {
    residual.reset(new float[static_cast<size_t>(outputs)]);
    std::fill_n(residual.get(), outputs, 0.25f);
  }
  kernel.run(x.get(), batch, in.data(), y.get(), residual.get(), {});
  ++ran;
  if (outputs == 0) return;
  std::vector<PlanChoice> choices = kernel.choices(batch, in.data());
  kernel.run_with(*kernel.plan_with(in.data(), {}), x.get(), batch, expected.get(), residual.get(), {});
  const PlanChoice other = choices[reader.byte() % choices.size()];
  for (const bool chosen : {true, false}) {
    if (!chosen) kernel.run_with(*kernel.plan_with(in.data(), other), x.get(), batch, y.get(), residual.get(), {});
    for (int64_t i = 0; exact && i < outputs; ++i) {
      const auto at = static_cast<size_t>(i);
      const double far = std::abs(static_cast<double>(y[at]) - static_cast<double>(expected[at]));
      require(far <= 1e-5 * 8 * magnitude, chosen ? "the chosen plan computes something else" : "a plan computes something else");
    }
  }
}

}  // namespace
}  // namespace hwprune::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hwprune::testing;
  Reader reader{data, size};
  if (reader.byte() % 32 == 0) {
    const std::string name(reinterpret_cast<const char*>(reader.data), reader.size);
    const auto op = hwprune::parse_operator(name);
    require(!op || op->name() == name, "an operator's name is not its own");
    return 0;
  }
  try {
    try_run(reader);
  } catch (const hwprune::MalformedWeight&) {
  } catch (const std::invalid_argument&) {
  }
  return 0;
}

#ifndef HWPRUNE_LIBFUZZER
int main(int count, char** arguments) {
  using namespace hwprune::testing;
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 20000;
  Random random(20240301);
  for (int round = 0; round < rounds; ++round) {
    Bytes noise(static_cast<size_t>(below(random, 1200)));
    for (uint8_t& byte : noise) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(noise.data(), noise.size());
  }
  std::printf("%d of %d ran\n", ran, rounds);
  // If hardly any input gets as far as a run, nothing is tested.
  return ran < rounds / 20;
}
#endif
