"""What an ONNX file may ask for before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from hwprune.errors import ArtifactError, ModelError
from hwprune.export.artifact import read_artifact
from hwprune.frontend import load_model
from hwprune.onnx_size import MOST_ELEMENTS, MOST_TEXT, too_large

LONG = "a" * (MOST_TEXT + 1)


def network() -> onnx.ModelProto:
    """Return a small network that is accepted."""
    value = helper.make_tensor_value_info
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
            [value("x", TensorProto.FLOAT, ["n", 4])], [value("y", TensorProto.FLOAT, ["n", 2])],
            [helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [1.0] * 8)],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    onnx.checker.check_model(made)
    return made


def long_name(made: onnx.ModelProto) -> None:
    made.graph.node[0].name = LONG


def long_note(made: onnx.ModelProto) -> None:
    made.metadata_props.add(key="note", value=LONG)


def long_attribute(made: onnx.ModelProto) -> None:
    made.graph.node[0].attribute.append(helper.make_attribute("text", LONG))


def long_attribute_deep_inside(made: onnx.ModelProto) -> None:
    inner = network().graph
    long = helper.make_node("Constant", [], ["c"], value_string=LONG)
    inner.node.append(long)
    made.graph.node[0].attribute.append(helper.make_attribute("body", inner))


def stored_tensor(made: onnx.ModelProto) -> None:
    made.graph.initializer.add(name="t", dims=[MOST_ELEMENTS, 2], data_type=TensorProto.FLOAT)


def constant(made: onnx.ModelProto) -> None:
    tensor = onnx.TensorProto(name="t", dims=[2**20, 2**20], data_type=TensorProto.FLOAT)
    made.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def declared_shape(made: onnx.ModelProto) -> None:
    made.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2**33]))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (long_name, "name of 16,777,217 characters"),
        (long_note, "value of 16,777,217 characters"),
        (long_attribute, "s of 16,777,217 characters"),
        (long_attribute_deep_inside, "s of 16,777,217 characters"),
        (stored_tensor, "'t' declares 4294967296x2 elements"),
        (constant, "'t' declares 1048576x1048576 elements"),
        (declared_shape, "shape declares 8589934592 elements"),
    ],
)
def test_what_is_over_a_bound_is_refused_before_work(
    tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], says: str
) -> None:
    made = network()
    spoil(made)
    path = tmp_path / "net.onnx"
    path.write_bytes(made.SerializeToString())
    for read, error in ((read_artifact, ArtifactError), (load_model, ModelError)):
        with pytest.raises(error, match=says) as raised:
            read(str(path))
        assert len(raised.value.message) < 300


def test_what_is_within_the_bounds_is_read(tmp_path: Path) -> None:
    made = network()
    made.graph.node[0].name = LONG[1:]
    made.graph.node[0].doc_string = LONG[1:]
    made.graph.value_info.append(helper.make_tensor_value_info("z", 1, [MOST_ELEMENTS, 0]))
    assert too_large(made) is None
