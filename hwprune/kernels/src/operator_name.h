// What an operator's name says; the grammar of hwprune/export/operators.py.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "decode.h"
#include "kernel_api.h"

namespace hwprune {

enum class Kind { conv, depthwise, gemm, matmul, linear };

// {Csr|Dense}{kind}{codec}{value type}{"Bias"}{"Add"}{activation}
// y = activation(op(x, w) + bias + residual); inputs x, values, [index], [scale | codebook], [bias], [residual].
struct Operator {
  Kind kind = Kind::conv;
  Codec codec = Codec::gap8;
  ValueType value_type = ValueType::f32;
  bool bias = false;
  bool residual = false;
  Activation activation = Activation::none;

  std::string name() const;
  bool has_index() const { return codec != Codec::dense; }
  bool has_table() const { return value_type != ValueType::f32 && value_type != ValueType::f16; }
  // Places among the inputs; meaningful only where the input exists.
  size_t table_input() const { return 2 + has_index(); }
  size_t bias_input() const { return table_input() + has_table(); }
  size_t residual_input() const { return bias_input() + bias; }
  size_t inputs() const { return residual_input() + residual; }
};

// Nothing for a name that is not one of these: its node runs the function that the file carries.
std::optional<Operator> parse_operator(const std::string& name);

// Every operator there is.
std::vector<Operator> all_operators();

}  // namespace hwprune
