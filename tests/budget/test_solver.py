"""solver: the longest prefix that fits, the floor and its parts, and what a ranking must hold."""

from __future__ import annotations

import math
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.budget import Prefixes, fit, floor_of, plan, ranking_limit
from hwprune.encoding import CODECS, VALUE_DTYPES, FileCost, Form, TensorCost
from hwprune.encoding.values import NIBBLE_TYPES
from hwprune.errors import InfeasibleError
from hwprune.ir import VALUE_TYPES, CodecName, Ranking, ValueType


def make_cost(
    shapes: list[tuple[int, ...]],
    *,
    codecs: tuple[CodecName, ...] = tuple(CODECS),
    function_bytes: int = 90,
) -> FileCost:
    """A size model of tensors that share one operator kind."""
    tensors = tuple(
        TensorCost(
            f"t{number}",
            shape,
            f"{number}v",
            f"{number}i",
            MappingProxyType(
                {
                    (codec, kind): Form(
                        30 + 4 * shape[0],
                        (f"Op{codec}", f"Decode{codec}"),
                        (40,) if kind in NIBBLE_TYPES else (),
                    )
                    for codec in codecs
                    for kind in VALUE_TYPES
                    if CODECS[codec].accepts(shape)
                    and not (codec == "dense" and kind in NIBBLE_TYPES)
                }
            ),
        )
        for number, shape in enumerate(shapes)
    )
    functions = {f"{kind}{c}": function_bytes for kind in ("Op", "Decode") for c in codecs}
    return FileCost(25, 400, tensors, functions, (("the graph", 400), ("header", 25)))


def random_ranking(cost: FileCost, seed: int, *, limit: int | None = None) -> Ranking:
    """All connections in random order."""
    generator = np.random.default_rng(seed)
    tensor = np.concatenate([np.full(t.weights, n) for n, t in enumerate(cost.tensors)])
    position = np.concatenate([np.arange(t.weights) for t in cost.tensors])
    order = generator.permutation(tensor.size)[:limit]
    shapes = {t.name: t.shape for t in cost.tensors}
    return Ranking(shapes, tensor[order].astype(np.int32), position[order].astype(np.int64))


def size_of(cost: FileCost, ranking: Ranking, count: int, value_type: ValueType) -> int:
    return cost.encoding(ranking.top(count), value_type).file_bytes


SHAPES = st.lists(
    st.sampled_from([(3, 5), (8, 3, 3), (4, 300), (1, 700), (16, 16)]), min_size=1, max_size=4
)


@given(
    shapes=SHAPES,
    value_type=st.sampled_from(VALUE_TYPES),
    seed=st.integers(0, 999),
    part=st.floats(0, 1.1),
    codecs=st.sampled_from(
        [tuple(CODECS), ("gap8",), ("cols16", "dense", "gap4"), ("rice",), ("bitmap", "gap8")]
    ),
)
@settings(max_examples=120, deadline=None)
def test_a_fit_is_the_longest_prefix(
    shapes: list[tuple[int, ...]],
    value_type: ValueType,
    seed: int,
    part: float,
    codecs: tuple[CodecName, ...],
) -> None:
    cost = make_cost(shapes, codecs=codecs)
    ranking = random_ranking(cost, seed)
    floor, most = (size_of(cost, ranking, count, value_type) for count in (0, len(ranking)))
    budget = floor + int(part * (most - floor))
    found = fit(cost, ranking, budget, value_type)
    assert found.file_bytes == size_of(cost, ranking, found.count, value_type) <= budget
    if found.count < len(ranking):
        assert size_of(cost, ranking, found.count + 1, value_type) > budget
        # Sizes never shrink, so no longer prefix fits either.
        later = np.linspace(found.count + 1, len(ranking), 7).astype(int)
        assert all(size_of(cost, ranking, int(n), value_type) > budget for n in later)
    for name, mask in found.masks.by_name.items():
        prefix = ranking.masks(found.count)[name]
        if found.encoding.codecs[name] == "dense":
            assert mask.all()
        else:
            assert np.array_equal(mask, prefix)


@given(
    shapes=SHAPES,
    value_type=st.sampled_from(VALUE_TYPES),
    seed=st.integers(0, 99),
    part=st.floats(0, 1.1),
    codecs=st.sampled_from(
        [tuple(CODECS), ("gap8", "dense"), ("cols16",), ("rice", "dense"), ("bitmap",)]
    ),
)
@settings(max_examples=120, deadline=None)
def test_a_limited_ranking_never_cuts_what_fits(
    shapes: list[tuple[int, ...]],
    value_type: ValueType,
    seed: int,
    part: float,
    codecs: tuple[CodecName, ...],
) -> None:
    cost = make_cost(shapes, codecs=codecs, function_bytes=seed % 3)
    whole = random_ranking(cost, seed)
    floor, most = (size_of(cost, whole, count, value_type) for count in (0, len(whole)))
    budget = floor + int(part * (most - floor))
    limit = ranking_limit(cost, budget, value_type)
    expected = fit(cost, whole, budget, value_type)
    found = fit(cost, random_ranking(cost, seed, limit=limit), budget, value_type)
    assert found.count == expected.count
    assert found.encoding == expected.encoding


def test_a_ranking_is_no_longer_than_the_budget_needs() -> None:
    cost = make_cost([(1000, 1000)])
    # A value, and a bit: Rice codes of neighbours take no more.
    assert ranking_limit(cost, 20_000, "int8") == 160_000 // 9 + 1
    assert ranking_limit(cost, 20_000, "fp32") == 160_000 // 33 + 1
    assert ranking_limit(cost, 20_000, "int4") == 160_000 // 5 + 1
    eight = make_cost([(1000, 1000)], codecs=("gap8", "cols16"))
    assert ranking_limit(eight, 20_000, "int8") == 10_001
    assert ranking_limit(cost, 10**9, "int8") == 1_000_000
    assert ranking_limit(cost, 0, "int8") == 1
    # A tensor that fits as a whole is stored dense: then a weight is its value and nothing else.
    small = make_cost([(100, 100), (1000, 1000)])
    assert ranking_limit(small, 20_000, "int8") == 10_000 + 80_000 // 9 + 1


@pytest.mark.parametrize("value_type", VALUE_TYPES)
def test_a_budget_below_the_floor_says_the_floor_and_its_parts(value_type: ValueType) -> None:
    cost = make_cost([(8, 9), (4, 8)])
    ranking = random_ranking(cost, 0)
    floor, parts = floor_of(cost, value_type)
    assert floor == size_of(cost, ranking, 0, value_type)
    assert sum(size for _, size in parts) == floor
    assert [size for _, size in parts] == sorted((size for _, size in parts), reverse=True)
    with pytest.raises(InfeasibleError) as caught:
        fit(cost, ranking, floor - 1, value_type)
    assert caught.value.exit_code == 4
    assert f"{floor:,} B" in caught.value.message
    for what, size in parts:
        assert what in caught.value.message
        assert f"{size:,} B" in caught.value.message
    assert str(floor) in (caught.value.hint or "")
    assert fit(cost, ranking, floor, value_type).file_bytes == floor


def test_two_thousand_million_weights() -> None:
    """Sizes are counted in 64 bits; of more weights than 31 bits count no position is stored."""
    cost = make_cost([(46_340, 46_340)], codecs=("gap16",))
    (tensor,) = cost.tensors
    for kind, bits in (("fp32", 32), ("int8", 8), ("int4", 4)):
        size = tensor.bytes("gap16", kind, tensor.weights, tensor.weights)
        assert 0 < size - tensor.weights * bits // 8 - 2 * tensor.weights < 300_000
    last = tensor.weights - 1
    none = cost.encoding({"t0": np.empty(0, np.int64)}, "int8").file_bytes
    two = cost.encoding({"t0": np.array([0, last])}, "int8").file_bytes
    entries = 2 + (last - 1) // 65_535  # an entry of 0 goes on by as much
    assert 0 <= two - none - 2 - 2 * entries < 20
    larger = make_cost([(46_342, 46_342)]).tensors[0]
    assert larger.weights > 2**31
    assert {codec for codec, _ in larger.forms} <= {"dense"}


def test_a_plan_says_what_limits_it() -> None:
    cost = make_cost([(8, 9), (4, 80)])
    ranking = random_ranking(cost, 1)
    everything = size_of(cost, ranking, len(ranking), "int8")
    full = plan(cost, Prefixes(ranking), everything + 1000, "int8", dense_bytes=5000)
    assert (full.limited_by, full.max_nonzeros, full.weights) == ("weights", 392, 392)
    assert full.slack_bytes == 1000
    tight = plan(cost, Prefixes(ranking), everything - 150, "int8", dense_bytes=5000)
    assert tight.limited_by == "budget"
    assert tight.max_nonzeros < 392
    assert 0 <= tight.slack_bytes < 10
    assert tight.max_nonzeros == sum(layer.nonzeros for layer in tight.layers)
    assert (tight.dense_bytes, tight.value_type) == (5000, "int8")
    assert tight.floor_bytes == floor_of(cost, "int8")[0]
    assert [layer.name for layer in tight.layers] == ["t0", "t1"]
    for layer in tight.layers:
        assert layer.nonzeros <= layer.weights == math.prod(layer.shape)
        assert layer.bytes >= layer.nonzeros * VALUE_DTYPES["int8"].itemsize


def test_a_tensor_stored_dense_lives_in_full() -> None:
    cost = make_cost([(8, 9), (4, 80)], function_bytes=0)
    ranking = random_ranking(cost, 1)
    count = int(0.9 * len(ranking))
    found = fit(cost, ranking, size_of(cost, ranking, count, "int8"), "int8")
    assert set(found.encoding.codecs.values()) == {"dense"}
    assert all(mask.all() for mask in found.masks.by_name.values())
    # Also those that a prefix does not reach.
    prefixes, dense = Prefixes(ranking), frozenset({"t0"})
    counts = prefixes.counts(100, dense)
    masks = prefixes.masks(100, dense)
    assert counts["t0"] == 72
    assert counts == {name: int(masks[name].sum()) for name in masks}
