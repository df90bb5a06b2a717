"""operators: a shipped name never changes meaning, and an altered body is noticed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from export_cases import Case, random_masks
from onnx import helper

from hwprune.export import decoders
from hwprune.export.body import DOMAIN
from hwprune.export.operators import (
    OPERATORS,
    altered_functions,
    expand,
    function_for,
    serialised,
)
from hwprune.ir import CodecName

GOLDEN = Path(__file__).with_name("golden_functions.json")
OPSETS = (13, 15, 18)
DECODERS = [*decoders.DECODERS, decoders.NIBBLES]


def test_every_body_is_the_one_that_was_shipped() -> None:
    """A failure means: give the new meaning a new name. Names are only added to the file.

    The bodies of one layer with all its epilogues are pinned together, in the order of their names.
    """
    bodies = {f"{n}@{opset}": [function_for(n, opset)] for n in DECODERS for opset in OPSETS}
    for name, operator in sorted(OPERATORS.items()):
        plain = replace(operator, bias=False, residual=False, activation="none").name
        for opset in OPSETS:
            bodies.setdefault(f"{plain}@{opset}", []).append(function_for(name, opset))
    found = {}
    for key, functions in bodies.items():
        digest = hashlib.sha256()
        for function in functions:
            digest.update(b"" if function is None else serialised(function))
        found[key] = digest.hexdigest()
    assert found == json.loads(GOLDEN.read_text())


def test_a_name_that_is_not_ours_has_no_body() -> None:
    assert function_for("CsrConvGap2I8", 18) is None
    assert function_for("DenseConvI4", 18) is None
    assert function_for("Conv", 18) is None


def test_names_say_what_an_operator_is() -> None:
    stored = len({(operator.codec, operator.value_type) for operator in OPERATORS.values()})
    # Conv, Depthwise, Gemm and Linear with or without bias and residual, six activations;
    # ConvTranspose with or without bias; MatMul; what only decodes a weight; lookups, stored dense.
    assert len(OPERATORS) == stored * (4 * 2 * 2 * 6 + 2 + 1 + 1) + 4
    operator = OPERATORS["CsrConvGap8I8Bias"]
    assert (operator.kind, operator.codec, operator.value_type, operator.bias) == (
        "Conv",
        "gap8",
        "int8",
        True,
    )
    assert operator.input_roles == ("input", "values", "index", "scale", "bias")
    assert operator.functions == ("DecodeGap8", "CsrConvGap8I8Bias")
    assert OPERATORS["DenseGemmF16"].input_roles == ("input", "values")
    assert OPERATORS["CsrWeightGap8I8"].input_roles == ("values", "index", "scale")
    assert OPERATORS["DenseGatherI8"].input_roles == ("input", "values", "scale")
    assert "CsrGatherGap8I8" not in OPERATORS
    assert OPERATORS["DenseGemmF16"].functions == ("DenseGemmF16",)
    assert OPERATORS["CsrConvRiceI4Bias"].functions == (
        "DecodeRice", "UnpackNibbles", "CsrConvRiceI4Bias",
    )  # fmt: skip
    assert OPERATORS["CsrGemmBitmapC4Bias"].input_roles == (
        "input", "values", "index", "codebook", "bias",
    )  # fmt: skip
    assert OPERATORS["DenseConvC8"].input_roles == ("input", "values", "codebook")
    assert OPERATORS["DenseDepthwiseF32BiasRelu6"].input_roles == ("input", "values", "bias")
    fused = OPERATORS["CsrConvGap8I8BiasAddHardSwish"]
    assert (fused.bias, fused.residual, fused.activation) == (True, True, "hard_swish")
    assert fused.input_roles == ("input", "values", "index", "scale", "bias", "residual")
    assert OPERATORS["CsrConvGap8I8Add"].input_roles[-1] == "residual"
    assert "CsrConvTransposeGap8I8Relu" not in OPERATORS
    assert "CsrMatMulGap8I8Bias" not in OPERATORS


@pytest.mark.parametrize("opset", OPSETS)
def test_bodies_hold_standard_operators_only(opset: int) -> None:
    found = set()
    for name in (*DECODERS, *OPERATORS):
        function = function_for(name, opset)
        if function is None:
            assert opset < 14
            assert name.endswith("HardSwish")
            continue
        for node in function.node:
            if node.domain == DOMAIN:  # a function of ours that is among these
                assert function_for(node.op_type, opset) is not None
            else:
                found.add(node.op_type)
    assert not any(onnx.defs.get_schema(name, opset, "").deprecated for name in found)


def _model(zoo: Case, codec: CodecName = "gap8") -> onnx.ModelProto:
    template = zoo.template(codecs=(codec,))
    return onnx.load_from_string(template.write_sparse(random_masks(template, 0.3), "int8").data)


@pytest.mark.parametrize("codec", ["gap8", "cols16", "dense"])
def test_a_file_as_written_is_not_altered(zoo: Case, codec: CodecName) -> None:
    assert altered_functions(_model(zoo, codec)) == []


def test_one_changed_operator_in_a_body_is_noticed(zoo: Case) -> None:
    model = _model(zoo)
    for function in model.functions:
        for node in function.node:
            before = node.op_type
            node.op_type = "Sub" if before == "Mul" else "Mul"
            assert altered_functions(model) == [function.name], (function.name, before)
            node.op_type = before
    assert altered_functions(model) == []


def test_a_missing_body_and_one_that_nobody_wrote_are_noticed(zoo: Case) -> None:
    model = _model(zoo)
    removed = [function.name for function in model.functions if function.name == "DecodeGap8"]
    kept = [function for function in model.functions if function.name != "DecodeGap8"]
    del model.functions[:]
    model.functions.extend(kept)
    assert altered_functions(model) == removed == ["DecodeGap8"]

    model = _model(zoo)
    foreign = helper.make_function(
        DOMAIN, "CsrConvSecret", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    model.functions.append(foreign)
    assert altered_functions(model) == ["CsrConvSecret"]


def test_another_opset_in_a_body_is_noticed(zoo: Case) -> None:
    model = _model(zoo)
    model.functions[0].opset_import[0].version = 17
    assert altered_functions(model) == [model.functions[0].name]


def test_a_second_body_of_the_same_name_is_noticed(zoo: Case) -> None:
    model = _model(zoo)
    twin = onnx.FunctionProto()
    twin.CopyFrom(model.functions[0])
    model.functions.append(twin)
    assert altered_functions(model) == [twin.name]  # readers differ in which they take
    twin.node[0].op_type = "Neg"
    model.functions[-1].CopyFrom(twin)
    assert altered_functions(model) == [twin.name]


def test_an_attribute_that_a_body_does_not_read_is_noticed(zoo: Case) -> None:
    """Stock onnxruntime would pass over it, and kernels would not."""
    model = _model(zoo)
    declared = {function.name: [*function.attribute] for function in model.functions}
    node = next(
        node for node in model.graph.node
        if "Conv" in node.op_type and "dilations" not in declared.get(node.op_type, "dilations")
    )  # fmt: skip
    node.attribute.append(helper.make_attribute("dilations", [2, 2]))
    assert altered_functions(model) == [node.op_type]


def test_a_body_that_reads_fewer_attributes_than_it_declares_is_noticed(zoo: Case) -> None:
    model = _model(zoo)
    function = next(each for each in model.functions if "strides" in each.attribute)
    function.attribute.remove("strides")
    assert altered_functions(model) == [function.name]


def test_serialised_does_not_depend_on_how_a_message_was_made() -> None:
    function = function_for("DecodeGap8", 18)
    assert function is not None
    again = onnx.FunctionProto.FromString(serialised(function))
    assert serialised(again) == serialised(function)


def test_an_expansion_keeps_its_inner_names_to_itself() -> None:
    node = helper.make_node(
        "CsrGemmCols8I8", ["x", "0v", "0i", "0s"], ["y"], domain=DOMAIN, shape=[4, 6], transB=1
    )
    inner = [*expand(node, "0_0_", 18), *expand(node, "1_0_", 18)]
    made = [name for part in inner for name in part.output if name != "y"]
    assert len(made) == len(set(made))
    assert all(name.startswith(("0_0_", "1_0_")) for name in made)
    constants = [part for part in inner if part.op_type == "Constant"]
    values = [
        list(a.t.int64_data) for part in constants for a in part.attribute if a.name == "value"
    ]
    assert [4, 6] in values


CONVOLUTIONS = [
    name
    for name, operator in OPERATORS.items()
    if operator.kind == "Conv" and not operator.bias and not operator.fused
]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_an_expansion_holds_no_list_that_onnxruntime_1_11_reads_as_one_number(name: str) -> None:
    roles = OPERATORS[name].input_roles
    given = {"shape": [4, 4, 3, 3], "count": 7}
    node = helper.make_node(name, [*roles], ["y"], domain=DOMAIN, **given)
    for inner in expand(node, "p", 15):
        assert not {entry.name for entry in inner.attribute} & {"value_ints", "value_floats"}
