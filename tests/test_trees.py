"""Nested arrays: their leaves by name, and functions of trees that are alike."""

from __future__ import annotations

from collections import namedtuple

import pytest

from hwprune.trees import Outputs, leaves, outputs_of, tree_map

Pair = namedtuple("Pair", ["box", "score"])


def test_leaves_are_named_by_the_way_to_them() -> None:
    tree = {"a": (1, [2, {"b": 3}]), "c": Pair(4, 5), "d": Outputs([6, 7], ["x", "y"])}
    assert list(leaves(tree)) == [
        ("a.0", 1), ("a.1.0", 2), ("a.1.1.b", 3), ("c.box", 4), ("c.score", 5), ("d.x", 6),
        ("d.y", 7),
    ]  # fmt: skip
    assert list(leaves(8)) == [("", 8)]


def test_a_function_is_applied_to_each_leaf_of_trees_that_are_alike() -> None:
    one, two = {"a": (1, 2)}, {"a": (10, 20)}
    assert tree_map(lambda *each: sum(each), one, two) == {"a": (11, 22)}
    named = tree_map(lambda each: -each, Outputs([1, 2], ["x", "y"]))
    assert (named["y"], named.names) == (-2, ("x", "y"))
    with pytest.raises(ValueError, match="shorter"):
        tree_map(lambda *each: each, (1, 2), (1,))


def test_one_output_is_itself() -> None:
    class Shaped:
        shape = (2,)

    alone, other = Shaped(), Shaped()
    assert outputs_of([alone, None]) is alone
    assert outputs_of({"a": alone, "b": other}).names == ("a", "b")
