"""Whole files: predicted bytes are written bytes; stock onnxruntime computes what torch does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_cases import ALL_CODECS, Case, case_of, random_masks, relative_error, run
from onnx.reference import ReferenceEvaluator
from torch import nn

from hwprune.encoding import unpack
from hwprune.encoding.values import NIBBLE_TYPES
from hwprune.export.artifact import csr_arrays, read_artifact
from hwprune.export.body import DOMAIN
from hwprune.export.operators import altered_functions
from hwprune.export.pipeline import weights_of
from hwprune.ir import VALUE_TYPES, CodecName, Masks, TensorSpec, ValueType


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
@pytest.mark.parametrize("value_type", VALUE_TYPES)
@pytest.mark.parametrize("codec", ALL_CODECS)
def test_predicted_bytes_are_written_and_the_file_is_right(
    case: Case, codec: CodecName, value_type: ValueType, inline: bool, tmp_path: Path
) -> None:
    if codec == "dense" and value_type in NIBBLE_TYPES:
        return  # not offered
    # 16-bit columns stand in where a tensor cannot be stored in 8-bit columns.
    codecs = (codec,) if codec != "cols8" else ("cols8", "cols16")
    template = case.template(15 if inline else 18, inline=inline, codecs=codecs)
    masks = random_masks(template, 0.2)
    written = template.write_sparse(masks, value_type)
    assert written.encoding is not None
    assert set(written.encoding.codecs.values()) <= set(codecs)
    assert len(written.data) == written.encoding.file_bytes
    onnx.checker.check_model(written.data, full_check=True)

    feeds = case.feeds(3)
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert relative_error(run(written.data, feeds), expected) <= 1e-5

    path = tmp_path / "model.onnx"
    path.write_bytes(written.data)
    artifact = read_artifact(str(path))
    assert artifact.form == ("inlined" if inline else "functions")
    assert (artifact.opset, artifact.ir_version) == (15 if inline else 18, 8)
    assert artifact.bytes == len(written.data)
    assert {layer.name for layer in artifact.layers} == set(written.packed)
    arrays = csr_arrays(str(path))
    for layer in artifact.layers:
        packed = written.packed[layer.name]
        assert (layer.codec, layer.value_type, layer.shape) == (
            packed.codec,
            packed.value_type,
            packed.shape,
        )
        dense = unpack(packed)
        assert np.array_equal(arrays[layer.name].toarray(), dense.reshape(dense.shape[0], -1))
        assert layer.packed.count == packed.count
        assert layer.nonzeros == np.count_nonzero(dense)
    assert altered_functions(artifact.model) == []


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_the_emptiest_and_the_fullest_file(case: Case, density: float, inline: bool) -> None:
    for codec in ALL_CODECS:
        codecs: tuple[CodecName, ...] = (codec,) if codec != "cols8" else ("cols8", "cols16")
        template = case.template(inline=inline, codecs=codecs)
        written = template.write_sparse(random_masks(template, density), "int8")
        feeds = case.feeds(2)
        expected = case.run_torch(feeds, case.decoded(template, written))
        found = run(written.data, feeds)
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))


def test_layers_may_take_different_codecs() -> None:
    module = nn.Sequential(nn.Linear(40, 90), nn.ReLU(), nn.Linear(90, 200)).eval()
    case = case_of(module, (TensorSpec("x", (None, 40), "float32"),))
    template = case.template()
    full = np.ones((90, 40), np.bool_)
    sparse = np.random.default_rng(0).random((200, 90)) < 0.02
    written = template.write_sparse(Masks({"0.weight": full, "2.weight": sparse}), "int8")
    assert written.encoding is not None
    assert written.encoding.codecs == {"0.weight": "dense", "2.weight": "gap8"}
    feeds = case.feeds(4)
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert relative_error(run(written.data, feeds), expected) <= 1e-5


@pytest.mark.parametrize("opset", [18, 15, 13])
def test_the_dense_file_is_the_network(case: Case, opset: int) -> None:
    template = case.template(opset)
    written = template.write_dense()
    assert len(written.data) == template.dense_bytes()
    onnx.checker.check_model(written.data, full_check=True)
    model = onnx.load_from_string(written.data)
    assert [entry.version for entry in model.opset_import] == [opset]
    feeds = case.feeds(3)
    assert relative_error(run(written.data, feeds), case.run_torch(feeds)) <= 1e-5


@pytest.mark.parametrize("batch", [1, 33])
@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
def test_the_batch_is_dynamic(case: Case, inline: bool, batch: int) -> None:
    template = case.template(inline=inline)
    written = template.write_sparse(random_masks(template, 0.3), "fp32")
    feeds = case.feeds(batch)
    expected = case.run_torch(feeds, case.decoded(template, written))
    found = run(written.data, feeds)
    assert found.shape == expected.shape
    assert relative_error(found, expected) <= 1e-5


@pytest.mark.parametrize("value_type", VALUE_TYPES)
@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
def test_the_output_is_bit_for_bit_that_of_the_dense_file_with_the_decoded_weights(
    case: Case, value_type: ValueType, inline: bool
) -> None:
    template = case.template(inline=inline)
    written = template.write_sparse(random_masks(template, 0.3), value_type)
    tensors = {name: unpack(packed) for name, packed in written.packed.items()} | written.biases
    merged = replace(template.graph, tensors={**template.graph.tensors, **tensors})
    dense = type(template)(merged, template.prunable, 8, inline, template.codecs).write_dense()
    feeds = case.feeds(5)
    assert np.array_equal(run(written.data, feeds), run(dense.data, feeds))


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
def test_shape_inference_reaches_every_activation(case: Case, inline: bool) -> None:
    template = case.template(inline=inline)
    written = template.write_sparse(random_masks(template, 0.3), "int8")
    model = onnx.load_from_string(written.data)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    known = {
        entry.name: entry.type.tensor_type
        for entry in (*inferred.graph.value_info, *inferred.graph.output)
    }
    for node in inferred.graph.node:
        if inline and node.domain != DOMAIN and node.output[0][0].isdigit():
            continue  # inside a decoder
        for output in node.output:
            assert known[output].HasField("shape"), f"{node.op_type} {output}"
            sizes = known[output].shape.dim
            unknown = [d for d in sizes if not d.HasField("dim_value") and not d.dim_param]
            assert not unknown, f"{node.op_type} {output}"


def test_nothing_of_the_training_is_shipped(zoo: Case) -> None:
    template = zoo.template()
    written = template.write_sparse(random_masks(template, 0.1), "int8")
    model = onnx.load_from_string(written.data)
    assert not model.graph.value_info
    assert not model.doc_string
    assert not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    named = [node.name for node in model.graph.node if node.name]
    assert len(named) == len(set(named))
    names = [entry.name for entry in model.graph.initializer]
    assert len(names) == len(set(names))
    assert b"unused" not in written.data


def test_weights_that_become_equal_stay_apart(zoo: Case) -> None:
    before = zoo.template()
    values = {name: np.zeros_like(weight) for name, weight in weights_of(before).items()}
    module = zoo.model.module
    kept = {name: module.get_parameter(name).detach().clone() for name in values}
    try:
        for name in values:
            module.get_parameter(name).data.zero_()
        after = zoo.template()
    finally:
        for name, value in kept.items():
            module.get_parameter(name).data.copy_(value)
    assert after.prunable == before.prunable
    assert after.cost("int8").graph_bytes == before.cost("int8").graph_bytes


def test_functions_stand_behind_those_that_they_call(zoo: Case) -> None:
    template = zoo.template()
    written = template.write_sparse(random_masks(template, 0.1), "int4")
    seen: set[str] = set()
    for function in onnx.load_from_string(written.data).functions:
        called = {node.op_type for node in function.node if node.domain == DOMAIN}
        assert called <= seen, function.name
        seen.add(function.name)


@pytest.mark.parametrize("value_type", ["fp32", "int8", "codebook16"])
def test_onnxs_own_evaluator_runs_a_file_with_functions(zoo: Case, value_type: ValueType) -> None:
    """It asks for every attribute that a function declares: none has a default."""
    template = zoo.template()
    written = template.write_sparse(random_masks(template, 0.2), value_type)
    model = onnx.load_from_string(written.data)
    declared = {function.name: {*function.attribute} for function in model.functions}
    for node in (node for node in model.graph.node if node.domain == DOMAIN):
        assert {entry.name for entry in node.attribute} == declared[node.op_type]
    (found,) = ReferenceEvaluator(model).run(None, zoo.feeds(3))
    assert relative_error(found, run(written.data, zoo.feeds(3))) <= 1e-5


def test_onnxs_own_evaluator_runs_the_inlined_form(zoo: Case) -> None:
    template = zoo.template(inline=True)
    written = template.write_sparse(random_masks(template, 0.2), "int8")
    (found,) = ReferenceEvaluator(onnx.load_from_string(written.data)).run(None, zoo.feeds(3))
    assert relative_error(found, run(written.data, zoo.feeds(3))) <= 1e-5


class Bags(nn.Module):
    """Sums of looked-up rows, which torch exports as loops that read what lies around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.EmbeddingBag(12, 8, mode="sum") for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.first(ids), self.second(ids + 2)], 1))


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
def test_graphs_inside_nodes_find_what_they_read_outside(inline: bool) -> None:
    torch.manual_seed(0)
    case = case_of(Bags().eval(), (TensorSpec("ids", (None, 3), "int64"),))
    feeds = {"ids": np.arange(15).reshape(5, 3) % 10}
    template = case.template(15 if inline else 18, inline=inline)
    assert relative_error(run(template.write_dense().data, feeds), case.run_torch(feeds)) <= 1e-5
    written = template.write_sparse(random_masks(template, 0.5), "fp32")
    onnx.checker.check_model(written.data, full_check=True)
    expected = case.run_torch(feeds, case.decoded(template, written))
    assert relative_error(run(written.data, feeds), expected) <= 1e-5
