"""decoders: standard operators decode what NumPy decodes, for any mask, at any opset."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from hwprune.encoding import CODECS, pack, unpack
from hwprune.export.body import DOMAIN
from hwprune.export.decoders import DECODERS, NIBBLES, VALUE_LABELS
from hwprune.export.operators import Operator, expand, function_for
from hwprune.ir import CodecName, Packed, ValueType

SHAPES = st.one_of(
    st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple),
    st.sampled_from([(3, 255), (2, 700), (2, 33_000), (1, 16), (16, 1)]),
)


def decoded(packed: Packed, opset: int) -> NDArray[np.float32]:
    """Return the weight that the bodies make: a linear layer without its last two nodes."""
    rows, columns = packed.shape[0], math.prod(packed.shape[1:])
    operator = Operator("Linear", packed.codec, packed.value_type, False)
    roles = operator.input_roles[1:]
    said: dict[str, Any] = {"shape": [rows, columns]}
    if packed.count is not None:
        said["count"] = packed.count
    node = helper.make_node(operator.name, ["x", *roles], ["y"], domain=DOMAIN, **said)
    *inner, transpose, _ = expand(node, "p_", opset)
    arrays = dict(packed.arrays)
    if "scale" in arrays:
        arrays["scale"] = arrays["scale"].reshape(-1, 1)
    graph = helper.make_graph(
        [*inner, helper.make_node("Identity", [transpose.input[0]], ["w"])], "g", [],
        [helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(np.ascontiguousarray(arrays[role]), role) for role in roles],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    weight: NDArray[np.float32] = session.run(None, {})[0]
    return weight


@pytest.mark.parametrize("codec", DECODERS.values())
@given(
    shape=SHAPES,
    density=st.sampled_from([0.0, 0.001, 0.05, 0.5, 1.0]),
    value_type=st.sampled_from(list(VALUE_LABELS)),
    opset=st.sampled_from([13, 15, 18]),
    seed=st.integers(0, 999),
)
@settings(max_examples=20, deadline=None)
def test_bodies_decode_what_numpy_decodes(
    codec: CodecName,
    shape: tuple[int, ...],
    density: float,
    value_type: ValueType,
    opset: int,
    seed: int,
) -> None:
    if not CODECS[codec].accepts(shape):
        return
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal(shape).astype(np.float32)
    mask = generator.random(shape) < density
    packed = pack("w", weight, mask, codec=codec, value_type=value_type, channel_axis=0)
    expected = unpack(packed).reshape(shape[0], -1)
    assert np.array_equal(decoded(packed, opset), expected)


@pytest.mark.parametrize("codec", DECODERS.values())
@pytest.mark.parametrize("places", [[], [0], [65_999], [0, 65_999], [14, 15, 16], [65_998, 65_999]])
@pytest.mark.parametrize("value_type", ["int4", "fp32"])
def test_single_values_and_the_longest_gaps(
    codec: CodecName, places: list[int], value_type: ValueType
) -> None:
    shape = (2, 33_000)
    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[places] = True
    weight = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    if not CODECS[codec].accepts(shape):
        return
    packed = pack("w", weight, mask, codec=codec, value_type=value_type, channel_axis=0)
    assert np.array_equal(decoded(packed, 18), unpack(packed))


def test_every_decoder_and_the_nibbles_have_a_body() -> None:
    for name in (*DECODERS, NIBBLES):
        function = function_for(name, 18)
        assert function is not None
        read = {source for node in function.node for source in node.input}
        made = {output for node in function.node for output in node.output} - set(function.output)
        # onnxruntime 1.15 does not load a function with a value that nothing reads.
        assert made <= read
