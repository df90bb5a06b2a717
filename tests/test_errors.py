"""errors: every class has the exit code that the contract promises, and the drawn tree is true."""

from __future__ import annotations

import re

import pytest

from hwprune import errors
from hwprune.errors import HwpruneError


def _classes() -> dict[str, type[HwpruneError]]:
    found = vars(errors).values()
    return {c.__name__: c for c in found if isinstance(c, type) and issubclass(c, HwpruneError)}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, tuple[str | None, int]] = {}
    open_at: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([| +-]*)(\w+Error) +(\d)  \w", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        open_at = [entry for entry in open_at if entry[0] < depth]
        drawn[match[2]] = (open_at[-1][1] if open_at else None, int(match[3]))
        open_at.append((depth, match[2]))
    actual = {
        name: (None if kind is HwpruneError else kind.__bases__[0].__name__, kind.exit_code)
        for name, kind in _classes().items()
    }
    assert drawn == actual


def test_exit_codes_are_those_of_the_contract() -> None:
    codes = {name: kind.exit_code for name, kind in _classes().items()}
    assert codes["HwpruneError"] == 1
    assert codes["LimitError"] == 3
    assert codes["InfeasibleError"] == 4
    assert codes["VerificationError"] == 5
    inputs = {name for name, kind in _classes().items() if issubclass(kind, errors.InputError)}
    assert {codes[name] for name in inputs} == {2}


def test_message_and_hint_are_kept() -> None:
    error = errors.ModelError("given 3, expected 4", hint="give 4")
    assert (str(error), error.message, error.hint) == ("given 3, expected 4",) * 2 + ("give 4",)
    assert errors.ModelError("x").hint is None


@pytest.mark.parametrize(
    ("codes", "worst"),
    [([], 0), ([0], 0), ([0, 3], 3), ([3, 4], 4), ([4, 5, 3], 5), ([5, 2], 2), ([2, 1, 0], 1)],
)
def test_several_codes_at_once(codes: list[int], worst: int) -> None:
    assert errors.worst_exit_code(codes) == worst
