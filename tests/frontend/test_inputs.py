from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.errors import ModelError, UsageError
from hwprune.frontend.inputs import DTYPES, InputSources, choose_inputs, describe, parse_input
from hwprune.ir import TensorSpec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("x:Nx3x224x224:float32", TensorSpec("x", (None, 3, 224, 224), "float32")),
        ("x:N,3,32,32:float32", TensorSpec("x", (None, 3, 32, 32), "float32")),
        ("tokens:Nx128:int64", TensorSpec("tokens", (None, 128), "int64")),
        ("x:1x10", TensorSpec("x", (1, 10), "float32")),
        ("seq:16xNx8:float32", TensorSpec("seq", (16, None, 8), "float32")),
    ],
)
def test_an_input_is_parsed(text: str, spec: TensorSpec) -> None:
    assert parse_input(text) == spec


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x", "NAME:SHAPE:DTYPE"),
        ("x:1:2:3", "NAME:SHAPE:DTYPE"),
        (":Nx3:float32", "is not a name"),
        ("a b:Nx3:float32", "is not a name"),
        ("x::float32", "is not a size"),
        ("x:Nx0x3", "is not a size"),
        ("x:Nx-3", "is not a size"),
        ("x:Nx3.5", "is not a size"),
        ("x:NxN", "one dimension only"),
        ("x:Nx3:float", "is not an input type"),
        ("x:Nx3:float16", "is not an input type"),
    ],
)
def test_a_wrong_input_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_input(text)
    assert caught.value.hint


@given(
    name=st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
    sizes=st.lists(st.integers(1, 512), min_size=1, max_size=4),
    batch=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_what_is_described_parses_back(
    name: str, sizes: list[int], batch: bool, dtype: str
) -> None:
    spec = TensorSpec(name, ((None,) if batch else ()) + tuple(sizes), dtype)
    assert parse_input(describe([spec])) == spec


X = TensorSpec("x", (None, 3, 32, 32), "float32")
OTHER = TensorSpec("y", (None, 1, 28, 28), "float32")


def test_the_users_input_comes_before_the_architectures() -> None:
    chosen, _ = choose_inputs(InputSources(given=(OTHER,), known=(X,)), fixed_batch=False)
    assert chosen == (OTHER,)


def test_the_architecture_comes_before_the_default() -> None:
    chosen, notes = choose_inputs(InputSources(known=(X,), default=(OTHER,)), fixed_batch=False)
    assert chosen == (X,)
    assert notes == ()


def test_the_datas_shapes_come_before_the_default_and_are_named_after_the_forward_method() -> None:
    sources = InputSources(sample_shapes=((3, 8, 8), (4,)), default=(X,), names=("image", "extra"))
    chosen, notes = choose_inputs(sources, fixed_batch=False)
    assert chosen == (
        TensorSpec("image", (None, 3, 8, 8), "float32"),
        TensorSpec("extra", (None, 4), "float32"),
    )
    assert "image:Nx3x8x8" in notes[0]


def test_a_default_is_a_note() -> None:
    chosen, notes = choose_inputs(InputSources(default=(X,)), fixed_batch=False)
    assert chosen == (X,)
    assert "assumed" in notes[0]


def test_nothing_known_asks_for_input() -> None:
    with pytest.raises(ModelError, match="not known") as caught:
        choose_inputs(InputSources(), fixed_batch=False)
    assert "--input" in (caught.value.hint or "")


def test_a_first_dimension_of_one_is_the_batch_unless_it_is_fixed() -> None:
    one = InputSources(given=(TensorSpec("x", (1, 3), "float32"),))
    assert choose_inputs(one, fixed_batch=False)[0][0].shape == (None, 3)
    assert choose_inputs(one, fixed_batch=True)[0][0].shape == (1, 3)


def test_a_fixed_batch_fixes_what_the_architecture_leaves_open() -> None:
    chosen, _ = choose_inputs(InputSources(known=(X,)), fixed_batch=True)
    assert chosen[0].shape == (1, 3, 32, 32)


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(ModelError, match="samples have shape 1x28x28"):
        choose_inputs(InputSources(known=(X,), sample_shapes=((1, 28, 28),)), fixed_batch=False)


def test_inputs_follow_the_forward_methods_order() -> None:
    sources = InputSources(given=(OTHER, X), names=("x", "y"))
    assert choose_inputs(sources, fixed_batch=False)[0] == (X, OTHER)


def test_the_same_input_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        choose_inputs(InputSources(given=(X, X)), fixed_batch=False)


@pytest.mark.parametrize("shape", ["Nx3x" + "9" * 400, "Nx3x100000x100000", "x".join(["2"] * 200)])
def test_inputs_that_no_memory_holds_are_refused(shape: str) -> None:
    given = InputSources(given=(parse_input(f"x:{shape}"),))
    with pytest.raises(UsageError, match="too large to be tried"):
        choose_inputs(given, fixed_batch=False)
