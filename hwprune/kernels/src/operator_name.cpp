#include "operator_name.h"

#include <string_view>

namespace hwprune {
namespace {

template <typename T>
struct Label {
  T value;
  const char* text;
};

constexpr Label<Kind> kKinds[] = {
    {Kind::conv, "Conv"},     {Kind::depthwise, "Depthwise"}, {Kind::gemm, "Gemm"},
    {Kind::matmul, "MatMul"}, {Kind::linear, "Linear"}};
constexpr Label<Codec> kCodecs[] = {
    {Codec::gap4, "Gap4"},     {Codec::gap8, "Gap8"},     {Codec::gap16, "Gap16"}, {Codec::cols8, "Cols8"},
    {Codec::cols16, "Cols16"}, {Codec::bitmap, "Bitmap"}, {Codec::rice, "Rice"},   {Codec::dense, ""}};
constexpr Label<ValueType> kValueTypes[] = {{ValueType::f32, "F32"}, {ValueType::f16, "F16"},
                                            {ValueType::i8, "I8"},   {ValueType::i4, "I4"},
                                            {ValueType::c4, "C4"},   {ValueType::c8, "C8"}};
constexpr Label<Activation> kActivations[] = {
    {Activation::none, ""},         {Activation::relu, "Relu"},
    {Activation::relu6, "Relu6"},   {Activation::hard_swish, "HardSwish"},
    {Activation::silu, "Silu"},     {Activation::leaky_relu, "LeakyRelu"}};

template <typename T, size_t size>
const char* label(const Label<T> (&table)[size], T value) {
  for (const Label<T>& entry : table) {
    if (entry.value == value) return entry.text;
  }
  return "";
}

bool exists(const Operator& op) {
  const bool half_bytes = op.value_type == ValueType::i4 || op.value_type == ValueType::c4;
  if (op.codec == Codec::dense && half_bytes) return false;
  return op.kind != Kind::matmul || (!op.bias && !op.residual && op.activation == Activation::none);
}

// Removes `prefix` from the begin of `rest`, where it is there.
bool take(std::string_view& rest, std::string_view prefix) {
  if (rest.substr(0, prefix.size()) != prefix) return false;
  rest.remove_prefix(prefix.size());
  return true;
}

// No label of a table is the begin of another one of it, but for the empty ones, which are last.
template <typename T, size_t size>
bool take(std::string_view& rest, const Label<T> (&table)[size], T& value) {
  for (const Label<T>& entry : table) {
    if (take(rest, entry.text)) {
      value = entry.value;
      return true;
    }
  }
  return false;
}

}  // namespace

std::string Operator::name() const {
  std::string result = codec == Codec::dense ? "Dense" : "Csr";
  result += label(kKinds, kind);
  result += label(kCodecs, codec);
  result += label(kValueTypes, value_type);
  if (bias) result += "Bias";
  if (residual) result += "Add";
  return result + label(kActivations, activation);
}

std::optional<Operator> parse_operator(const std::string& name) {
  Operator op;
  std::string_view rest = name;
  if (take(rest, "Dense")) {
    op.codec = Codec::dense;
  } else if (!take(rest, "Csr")) {
    return std::nullopt;
  }
  if (!take(rest, kKinds, op.kind)) return std::nullopt;
  if (op.codec != Codec::dense && !take(rest, kCodecs, op.codec)) return std::nullopt;
  if (!take(rest, kValueTypes, op.value_type)) return std::nullopt;
  op.bias = take(rest, "Bias");
  op.residual = take(rest, "Add");
  for (const auto& activation : kActivations) {
    if (rest == activation.text) op.activation = activation.value;
  }
  // What was not understood is missing from the name that was.
  if (!exists(op) || op.name() != name) return std::nullopt;
  return op;
}

std::vector<Operator> all_operators() {
  std::vector<Operator> all;
  for (const auto& kind : kKinds) {
    for (const auto& codec : kCodecs) {
      for (const auto& value_type : kValueTypes) {
        for (int flags = 0; flags < 4; ++flags) {
          for (const auto& activation : kActivations) {
            const Operator op{kind.value,        codec.value,        value_type.value,
                              (flags & 1) != 0, (flags & 2) != 0, activation.value};
            if (exists(op)) all.push_back(op);
          }
        }
      }
    }
  }
  return all;
}

}  // namespace hwprune
