"""artifact: what is not an artifact is refused in words, and nothing is read out of range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_cases import Case, random_masks
from onnx import TensorProto, helper, numpy_helper

from hwprune.errors import ArtifactError, VerificationError
from hwprune.export.artifact import csr_arrays, read_artifact


@pytest.fixture(params=["functions", "inlined"])
def data(request: pytest.FixtureRequest, zoo: Case) -> bytes:
    template = zoo.template(inline=request.param == "inlined", codecs=("gap8", "cols8", "cols16"))
    return template.write_sparse(random_masks(template, 0.2), "int8").data


def _read(tmp_path: Path, data: bytes) -> object:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    return read_artifact(str(path))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"garbage, not a model", b"\x1f\x8b\x08" + bytes(50), b"PK\x03\x04" + bytes(99)],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"model\.onnx is not an ONNX"):
        _read(tmp_path, content)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for size in (1, 7, 100, 5000):
        for _ in range(20):
            with pytest.raises((ArtifactError, VerificationError)):
                _read(tmp_path, generator.bytes(size))


def test_a_file_that_was_cut_off_never_passes(tmp_path: Path, data: bytes) -> None:
    whole = _read(tmp_path, data)
    assert isinstance(whole.layers, tuple)  # type: ignore[attr-defined]
    graph_end = len(data) - sum(2 + 2 + f.ByteSize() for f in onnx.load_from_string(data).functions)
    for length in [*range(0, graph_end - 20, 37)]:
        with pytest.raises((ArtifactError, VerificationError)):
            _read(tmp_path, data[:length])


def test_one_flipped_byte_is_read_or_refused_but_never_crashes(tmp_path: Path, data: bytes) -> None:
    generator = np.random.default_rng(1)
    for place in generator.choice(len(data), 300, replace=False):
        broken = bytearray(data)
        broken[place] ^= int(generator.integers(1, 256))
        try:
            _read(tmp_path, bytes(broken))
        except (ArtifactError, VerificationError) as error:
            assert error.message  # noqa: PT017 - either outcome is right


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no file"):
        read_artifact(str(tmp_path / "none.onnx"))
    with pytest.raises(ArtifactError, match="is a folder") as caught:
        read_artifact(str(tmp_path))
    assert "model.onnx" in (caught.value.hint or "")


def _external(tensor: onnx.TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"


def _in_initializer(model: onnx.ModelProto) -> None:
    _external(model.graph.initializer[-1])


def _in_constant(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "inner")
    node = helper.make_node("Constant", [], ["extra"], value=tensor)
    _external(node.attribute[0].t)
    model.graph.node.append(node)


def _in_function(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "inner")
    node = helper.make_node("Constant", [], ["extra"], value=tensor)
    _external(node.attribute[0].t)
    model.functions.append(
        helper.make_function("other", "F", [], ["extra"], [node], [helper.make_opsetid("", 18)])
    )


def _in_branch(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "inner")
    _external(tensor)
    branch = helper.make_graph([], "b", [], [], [tensor])
    model.graph.node.append(
        helper.make_node("If", ["c"], ["extra"], then_branch=branch, else_branch=branch)
    )


@pytest.mark.parametrize("hide", [_in_initializer, _in_constant, _in_function, _in_branch])
def test_external_data_are_refused_wherever_they_are(
    tmp_path: Path, data: bytes, hide: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load_from_string(data)
    hide(model)
    with pytest.raises(VerificationError, match="lies in another file"):
        _read(tmp_path, model.SerializeToString())


def _tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(entry for entry in model.graph.initializer if entry.name == name)


def test_a_malformed_index_is_refused(tmp_path: Path, data: bytes) -> None:
    model = onnx.load_from_string(data)
    index = _tensor(model, "0i")
    index.raw_data = b"\xff" * len(index.raw_data)
    with pytest.raises(VerificationError, match="malformed"):
        _read(tmp_path, model.SerializeToString())


def test_packed_arrays_that_are_gone_or_cut_are_refused(tmp_path: Path, data: bytes) -> None:
    model = onnx.load_from_string(data)
    model.graph.initializer.remove(_tensor(model, "0v"))
    with pytest.raises(VerificationError, match=r"values of layer .* are not stored"):
        _read(tmp_path, model.SerializeToString())
    model = onnx.load_from_string(data)
    _tensor(model, "0v").raw_data = b"\x01"
    with pytest.raises(VerificationError, match="'0v' cannot be read"):
        _read(tmp_path, model.SerializeToString())


def test_a_shape_that_lies_is_refused(tmp_path: Path, zoo: Case) -> None:
    template = zoo.template(codecs=("gap8",))
    written = template.write_sparse(random_masks(template, 0.2), "int8").data
    for shape in ([2**40, 2**40], [-1, 4], [1, 1], []):
        model = onnx.load_from_string(written)
        node = next(node for node in model.graph.node if node.domain == "hwprune")
        attribute = next(entry for entry in node.attribute if entry.name == "shape")
        del attribute.ints[:]
        attribute.ints.extend(shape)
        with pytest.raises(VerificationError):
            _read(tmp_path, model.SerializeToString())


def test_an_operator_of_a_newer_version_is_named(tmp_path: Path, zoo: Case) -> None:
    template = zoo.template()
    model = onnx.load_from_string(template.write_sparse(random_masks(template, 0.2), "int8").data)
    node = next(node for node in model.graph.node if node.domain == "hwprune")
    node.op_type = "CsrConvRice"
    with pytest.raises(VerificationError, match="CsrConvRice") as caught:
        _read(tmp_path, model.SerializeToString())
    assert "upgrade" in (caught.value.hint or "")


def test_the_bytes_of_an_artifact_add_up(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    artifact = read_artifact(str(path))
    layers = sum(layer.bytes for layer in artifact.layers)
    others = sum(size for _, _, size in artifact.dense_tensors)
    counted = layers + others + artifact.function_bytes + artifact.graph_bytes
    assert 0 <= artifact.bytes - counted <= 40  # header and imports
    assert artifact.metadata == {"producer_name": "hwprune"}
    assert len(artifact.sha256) == 64


def test_a_shared_tensor_is_one_layer(tmp_path: Path, data: bytes, zoo: Case) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    names = [layer.name for layer in read_artifact(str(path)).layers]
    assert sorted(names) == sorted(tensor.name for tensor in zoo.template().prunable)
    assert names.count("mix.weight") == 1
    assert set(csr_arrays(str(path))) == set(names)


def test_a_dense_file_has_no_layers(tmp_path: Path, zoo: Case) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(zoo.template().write_dense().data)
    artifact = read_artifact(str(path))
    assert (artifact.form, artifact.layers, artifact.function_bytes) == ("dense", (), 0)
    assert csr_arrays(str(path)) == {}
