"""units: what people write is parsed exactly, and what cannot be meant is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune import units
from hwprune.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("65536", 65536),
        ("1_000", 1000),
        ("64KiB", 65536),
        ("64 kib", 65536),
        ("64KB", 64000),
        ("64kB", 64000),
        ("1.5MB", 1_500_000),
        ("1.5MiB", 1_572_864),
        ("2GB", 2_000_000_000),
        ("2GiB", 2 * 1024**3),
        ("10TB", 10**13),
        ("1e3", 1000),
        (".5KiB", 512),
        ("7B", 7),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "KiB", "12 apples", "-1", "0.3", "1.0001KB", "nan", "inf", "1 2"]
)
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_bytes(text)
    assert repr(text) in caught.value.message
    assert caught.value.hint


@given(st.integers(0, 10**15))
def test_a_bare_number_is_itself(size: int) -> None:
    assert units.parse_bytes(str(size)) == size
    assert units.parse_bytes(f"{size}KiB") == 1024 * size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3ms", 3.0), ("3", 3.0), ("250us", 0.25), ("250µs", 0.25), ("0.5s", 500.0)],
)
def test_durations_are_milliseconds(text: str, expected: float) -> None:
    assert units.parse_milliseconds(text) == expected


@pytest.mark.parametrize("text", ["-1ms", "3KiB", "soon"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_milliseconds(text)


@pytest.mark.parametrize(("text", "expected"), [("0.91", 0.91), ("91%", 0.91), ("-2 %", -0.02)])
def test_fractions(text: str, expected: float) -> None:
    assert units.parse_fraction(text) == pytest.approx(expected, abs=1e-15)


def test_a_fraction_with_another_unit_is_refused() -> None:
    with pytest.raises(UsageError, match="'ms'"):
        units.parse_fraction("3ms")


def test_formats() -> None:
    assert units.format_bytes(0) == "0 B"
    assert units.format_bytes(10239) == "10,239 B"
    assert units.format_bytes(65536) == "65,536 B (64.0 KiB)"
    assert units.format_bytes(2 * 1024**2) == "2,097,152 B (2048.0 KiB)"
    assert units.format_bytes(20 * 1024**2) == "20,971,520 B (20.0 MiB)"
    assert units.format_percent(0.91234) == "91.23 %"
    assert units.format_percent(0.5, 0) == "50 %"
    assert [units.format_seconds(s) for s in (0.336, 12.3, 185, 3599.6)] == [
        "0.34 s",
        "12 s",
        "3 min 05 s",
        "60 min 00 s",
    ]


def test_one_thing_is_not_several() -> None:
    assert [units.format_count(n, "tensor") for n in (0, 1, 2, 1000)] == [
        "0 tensors", "1 tensor", "2 tensors", "1,000 tensors",
    ]  # fmt: skip
