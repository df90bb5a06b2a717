"""Shortcuts through onnxscript give the same answers, and leave it as it was."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import pytest
from onnxscript import values
from onnxscript.function_libs.torch_lib import ops, registration
from onnxscript.rewriter.rules.common._basic_rules import slice_split_rule

from hwprune.export.registry import slices_paired_in_place, unparsed_functions


def _traced() -> list[values.TracedOnnxFunction]:
    assert ops
    functions = [f for entry in registration.default_registry.values() for f in entry.overloads]
    return [f for f in functions if isinstance(f, values.TracedOnnxFunction)]


def test_functions_answer_as_they_did() -> None:
    before = vars(values.TracedOnnxFunction)["function_ir"]
    some = _traced()[::60]
    assert some
    expected = [(f.function_ir.domain, f.function_ir.name, str(f.function_ir)) for f in some]
    with unparsed_functions():
        assert vars(values.TracedOnnxFunction)["function_ir"] is not before
        found = [(f.function_ir.domain, f.function_ir.name) for f in some]
    assert found == [(domain, name) for domain, name, _ in expected]
    assert vars(values.TracedOnnxFunction)["function_ir"] is before


def test_nothing_is_parsed_for_a_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: object) -> None:
        raise RuntimeError("parsed")

    one = _traced()[0]
    monkeypatch.setattr(values.TracedOnnxFunction, "function_ir", property(refuse))
    with unparsed_functions():
        assert one.function_ir.domain == "pkg.onnxscript.torch_lib"
        with pytest.raises(RuntimeError, match="parsed"):
            assert one.function_ir.name


# In the middle of other nodes, the two halves of h, which become a Split, and a lone Slice.
_HALVES = """<ir_version: 8, opset_import: ["": 18]>
g (float[1, 8] x) => (float[1, 4] y, float[1, 2] z)
<int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] eight = {8},
 int64[1] last = {1}>
{
    a = Tanh(x)
    h = Exp(a)
    right = Slice(h, four, eight, last)
    left = Slice(h, zero, four, last)
    y = Mul(left, right)
    z = Slice(y, zero, two, last)
}"""


def test_slices_are_looked_for_at_slices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = slice_split_rule._matcher
    search, searched = matcher.match, list[str]()

    def match(model: ir.Model, graph: ir.Graph, node: ir.Node, **options: object) -> object:
        searched.append(node.op_type)
        return search(model, graph, node, **options)

    monkeypatch.setattr(matcher, "match", match)
    whole, short = (ir.from_proto(onnx.parser.parse_model(_HALVES)) for _ in range(2))
    onnxscript.optimizer.optimize(whole)
    assert {"Tanh", "Exp", "Mul"} <= set(searched)
    searched.clear()
    with slices_paired_in_place():
        onnxscript.optimizer.optimize(short)
    assert set(searched) == {"Slice"}
    assert ir.to_proto(short) == ir.to_proto(whole)
    assert "Split" in [node.op_type for node in short.graph]
    assert matcher.match is match
