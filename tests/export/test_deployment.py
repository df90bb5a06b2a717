"""What a file holds beside the network: its size is predicted, its input may be bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from export_cases import CASES, Case

from hwprune.export.deployment import SHARE, Deployment, chosen
from hwprune.ir import Masks
from hwprune.preprocessing import Preprocessing, parse

KNOWN = {
    "preprocessing": '{"layout":"NCHW","scale":255}', "hwprune": "1.2.3", "target": "a-device",
    "budget": "65536", "nonzeros": "", "data": "some 0123456789ab", "classes": '["a","ü"]' * 40,
}  # fmt: skip
COLOURS = Preprocessing("NCHW", 255.0, (0.1, 0.5, 0.9), (0.2, 0.3, 0.4))


def some(case: Case, part: int) -> Masks:
    draw = np.random.default_rng(part)
    tensors = case.template().prunable
    return Masks({each.name: draw.random(each.shape) < part / 10 for each in tensors})


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("layout", [None, "NCHW", "NHWC"])
def test_sizes_are_predicted_with_what_is_beside_the_network(
    inline: bool, layout: str | None
) -> None:
    case = CASES["zoo"]()
    embedded = None if layout is None else replace(COLOURS, layout=layout, embedded=True)
    said = chosen(KNOWN, 1 << 20, embedded=embedded)
    template = replace(case.template(inline=inline), deployment=said)
    for part in (0, 1, 7):
        masks = some(case, part)
        data = template.write_sparse(masks, "int8").data  # refuses another size than predicted
        held = {each.key: each.value for each in onnx.load_from_string(data).metadata_props}
        assert held == {**KNOWN, "nonzeros": held["nonzeros"]}
        assert int(held["nonzeros"]) == masks.nonzeros
    dense = template.write_dense().data
    assert len(dense) == template.dense_bytes()
    props = onnx.load_from_string(dense).metadata_props
    assert [int(p.value) for p in props if p.key == "nonzeros"] == [template.weights]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("opset", [13, 18])
def test_bytes_in_give_what_normalised_floats_gave(layout: str, opset: int) -> None:
    case = CASES["zoo"]()
    bare = case.template(opset, inline=True)
    shape = case.model.inputs[0].with_batch(3)
    how = replace(COLOURS, layout=layout, embedded=True)
    stored = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    given = np.moveaxis(stored, 1, -1) if layout == "NHWC" else stored
    floats = how.inputs(given)
    assert np.array_equal(how.stored(floats), given)
    outputs = []
    for template, inputs in (
        (bare, floats), (replace(bare, deployment=Deployment({}, how)), given),
    ):  # fmt: skip
        data = template.write_sparse(some(case, 5), "fp32").data
        onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        extra = {name: array for name, array in case.feeds(3).items() if name != "image"}
        image = session.get_inputs()[0].name
        outputs.append(session.run(None, {image: inputs, **extra})[0])
    assert np.array_equal(*outputs)


def test_metadata_take_at_most_their_share() -> None:
    for budget in (0, 100, 3_000, 6_000, 12_000, 24_000, 1 << 17):
        said = chosen(KNOWN, budget)
        model = onnx.ModelProto()
        said.put_into(model, 123, 123_456_789)
        assert model.ByteSize() <= SHARE * budget
    assert list(chosen(KNOWN, 1 << 17).metadata) == list(KNOWN)
    assert "classes" not in chosen(KNOWN, 24_000).metadata  # too long; what is behind may go
    how = replace(COLOURS, embedded=True)
    assert list(chosen(KNOWN, 0, embedded=how).metadata) == ["preprocessing"]


def test_a_recipe_goes_through_json() -> None:
    how = Preprocessing("NHWC", 16.0, (1 / 3,), (2.0,), "resize to 8 × 8", embedded=True)
    assert parse(how.as_json()) == replace(how, mean=(0.3333333,))
    for text in (None, "", "[]", "{}", '{"layout":"NCHW","scale":"x"}', "{", '{"scale":1}'):
        assert parse(text) is None
