"""What a file's metadata say of its input: anybody may have written them."""

from __future__ import annotations

import pytest

from hwprune.preprocessing import parse


@pytest.mark.parametrize(
    "text",
    [
        None, "", "[]", "{}", '{"layout": "NCHW"}', "[" * 100_000,
        '{"layout": "NCHW", "scale": ' + "9" * 400 + "}",
        '{"layout": "NCHW", "scale": 1, "mean": 3}',
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_none(text: str | None) -> None:
    assert parse(text) is None


def test_a_recipe_is_read() -> None:
    found = parse('{"layout": "NCHW", "scale": 255, "mean": [0.5], "std": [2]}')
    assert found is not None
    assert (found.layout, found.scale, found.mean, found.embedded) == ("NCHW", 255, (0.5,), False)
