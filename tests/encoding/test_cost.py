"""cost and wire: sizes by arithmetic are the sizes of protocol buffers, and grow with the masks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from hwprune.encoding import CODECS, FileCost, Form, TensorCost, spacing
from hwprune.encoding.wire import field_bytes, tensor_field_bytes, varint_bytes
from hwprune.ir import CodecName

CODEC_NAMES: tuple[CodecName, ...] = tuple(CODECS)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**31 - 1])
def test_a_varint_is_as_long_as_protobuf_writes_it(size: int) -> None:
    # ir_version is a varint with a one-byte tag.
    assert 1 + varint_bytes(size) == onnx.ModelProto(ir_version=size).ByteSize()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384])
def test_a_field_is_as_long_as_protobuf_writes_it(size: int) -> None:
    assert field_bytes(size) == onnx.GraphProto(name="x" * size).ByteSize()
    function = onnx.FunctionProto(name="x" * size)
    model = onnx.ModelProto(functions=[function])
    assert field_bytes(function.ByteSize(), 2) == model.ByteSize()


@given(
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=150),
    shape=st.lists(st.sampled_from([0, 1, 3, 127, 128, 300]), max_size=3).map(tuple),
    dtype=st.sampled_from([np.int8, np.uint8, np.uint16, np.float16, np.float32]),
)
@settings(max_examples=50)
@example(name="0v", shape=(), dtype=np.float32)
def test_a_tensor_is_as_long_as_onnx_writes_it(
    name: str, shape: tuple[int, ...], dtype: type[np.generic]
) -> None:
    if math.prod(shape) > 100_000:
        return
    array = np.zeros(shape, dtype)
    graph = onnx.GraphProto(initializer=[numpy_helper.from_array(array, name)])
    assert tensor_field_bytes(name, shape, array.nbytes) == graph.ByteSize()


@st.composite
def file_costs(draw: st.DrawFn) -> FileCost:
    """Up to three tensors whose nodes share some function bodies and not others."""
    kinds = draw(st.lists(st.sampled_from(["A", "B", "C", "AB"]), min_size=1, max_size=3))
    sizes = st.integers(0, 60)
    functions = {f"{k}{c}": draw(sizes) for k in "ABC" for c in CODEC_NAMES}
    functions |= {f"Decode{codec}": draw(sizes) for codec in CODEC_NAMES}
    tensors = []
    for number, kind in enumerate(kinds):
        shape = draw(st.sampled_from([(2, 3), (3, 40), (2, 2, 150), (1, 300)]))
        forms = {
            (codec, "int8"): Form(
                draw(st.integers(0, 9)), (*(f"{k}{codec}" for k in kind), f"Decode{codec}")
            )
            for codec in CODEC_NAMES
            if CODECS[codec].accepts(shape)
        }
        tensors.append(TensorCost(f"t{number}", shape, "v", "i", forms))  # type: ignore[arg-type]
    return FileCost(40, draw(st.integers(0, 200)), tuple(tensors), functions, ())


def _masks(cost: FileCost, seed: int, density: float) -> dict[str, NDArray[np.bool_]]:
    generator = np.random.default_rng(seed)
    return {
        t.name: generator.random(t.weights) < density * generator.random() for t in cost.tensors
    }


def _bytes(cost: FileCost, masks: dict[str, NDArray[np.bool_]]) -> int:
    positions = {name: np.flatnonzero(mask) for name, mask in masks.items()}
    return cost.encoding(positions, "int8").file_bytes


@given(cost=file_costs(), seed=st.integers(0, 999), density=st.sampled_from([0.0, 0.05, 0.6, 1.0]))
@settings(max_examples=50, deadline=None)
def test_one_more_nonzero_never_makes_the_file_smaller(
    cost: FileCost, seed: int, density: float
) -> None:
    masks = _masks(cost, seed, density)
    dead = [(name, place) for name in masks for place in np.flatnonzero(~masks[name])]
    generator = np.random.default_rng(seed)
    before = _bytes(cost, masks)
    for choice in generator.permutation(len(dead))[:12]:
        name, place = dead[choice]
        masks[name][place] = True
        after = _bytes(cost, masks)
        assert after >= before
        before = after


@given(cost=file_costs(), seed=st.integers(0, 999), density=st.sampled_from([0.0, 0.1, 0.7]))
@settings(max_examples=60, deadline=None)
def test_no_choice_of_codecs_is_better(cost: FileCost, seed: int, density: float) -> None:
    shared = any(len(t.forms["dense", "int8"].functions) > 2 for t in cost.tensors)
    positions = {name: np.flatnonzero(m) for name, m in _masks(cost, seed, density).items()}
    found = cost.encoding(positions, "int8")
    best = math.inf
    for codecs in itertools.product(*(tensor.codecs("int8") for tensor in cost.tensors)):
        sizes, needed = [], set()
        for tensor, codec in zip(cost.tensors, codecs, strict=True):
            where = positions[tensor.name]
            entries = CODECS[codec].index_entries(spacing(where), tensor.shape)
            sizes.append(tensor.bytes(codec, "int8", where.size, entries))
            needed |= set(tensor.forms[codec, "int8"].functions)
        functions = sum(cost.functions[name] for name in needed)
        total = cost.frame_bytes + field_bytes(cost.graph_bytes + sum(sizes)) + functions
        best = min(best, total)
        if list(codecs) == list(found.codecs.values()):
            assert found.file_bytes == total
            assert list(found.tensor_bytes.values()) == sizes
            assert found.function_bytes == functions
    # A length may take a byte less elsewhere; what layers share is searched less widely.
    assert found.file_bytes - best <= (1 if not shared else 200)


def test_many_kinds_of_nodes_are_chosen_for_as_well_as_one_at_a_time() -> None:
    """Each kind has a tensor of its own and decoders are free: the best of each is the best."""
    generator = np.random.default_rng(0)
    functions = {f"Decode{codec}": 0 for codec in CODEC_NAMES}
    tensors = []
    for kind in range(40):
        forms = {}
        for codec in CODEC_NAMES:
            functions[f"{kind}{codec}"] = int(generator.integers(0, 400))
            forms[codec, "int8"] = Form(3, (f"{kind}{codec}", f"Decode{codec}"))
        tensors.append(TensorCost(f"t{kind}", (20, 12, 3, 3), "v", "i", forms))  # type: ignore[arg-type]
    cost = FileCost(40, 0, tuple(tensors), functions, ())
    positions = {
        name: np.flatnonzero(mask) for name, mask in _masks(cost, seed=1, density=0.6).items()
    }
    found = cost.encoding(positions, "int8")
    for tensor in tensors:
        where = positions[tensor.name]
        totals = {
            codec: functions[tensor.forms[codec, "int8"].functions[0]]
            + tensor.bytes(
                codec, "int8", where.size, CODECS[codec].index_entries(spacing(where), tensor.shape)
            )
            for codec in CODEC_NAMES
        }
        assert totals[found.codecs[tensor.name]] == min(totals.values())
