"""Bytes, durations and percentages: parsing what people write, formatting what people read.

KB and kB are 1000 bytes, KiB is 1024; MB, MiB, GB, GiB, TB, TiB likewise; a bare number is bytes.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from hwprune.errors import UsageError

_BYTE_UNITS: dict[str, int] = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "kib": 1024,
    "mb": 1000**2,
    "mib": 1024**2,
    "gb": 1000**3,
    "gib": 1024**3,
    "tb": 1000**4,
    "tib": 1024**4,
}
_DURATION_UNITS_MS: dict[str, Decimal] = {
    "": Decimal(1),
    "us": Decimal("0.001"),
    "µs": Decimal("0.001"),
    "ms": Decimal(1),
    "s": Decimal(1000),
}
_NUMBER = re.compile(
    r"\s*([-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE
)


def _split(text: str, what: str, example: str) -> tuple[Decimal, str]:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not {what}", hint=f"write it like {example}")
    try:
        return Decimal(match[1].replace("_", "")), match[2].lower()
    except InvalidOperation:  # pragma: no cover - the pattern admits numbers only
        raise UsageError(f"{text!r} is not {what}", hint=f"write it like {example}") from None


def parse_bytes(text: str) -> int:
    """Parse a size such as ``64KiB``, ``1.5MB`` or ``65536`` into whole bytes.

    Raises:
        UsageError: not a size, negative, or not a whole number of bytes.
    """
    number, unit = _split(text, "a size", "64KiB, 500kB or 65536")
    if unit not in _BYTE_UNITS:
        raise UsageError(
            f"{text!r}: {unit!r} is not a unit of size", hint="use B, kB, KiB, MB, MiB, GB or GiB"
        )
    size = number * _BYTE_UNITS[unit]
    if size < 0:
        raise UsageError(f"{text!r} is negative", hint="a size is zero or more bytes")
    if size != size.to_integral_value():
        raise UsageError(f"{text!r} is not a whole number of bytes", hint="use a smaller unit")
    return int(size)


def parse_milliseconds(text: str) -> float:
    """Parse a duration such as ``3ms``, ``250us`` or ``0.5s`` into milliseconds.

    Raises:
        UsageError: not a duration, or negative.
    """
    number, unit = _split(text, "a duration", "3ms, 250us or 0.5s")
    if unit not in _DURATION_UNITS_MS:
        raise UsageError(f"{text!r}: {unit!r} is not a unit of time", hint="use us, ms or s")
    if number < 0:
        raise UsageError(f"{text!r} is negative", hint="a duration is zero or more")
    return float(number * _DURATION_UNITS_MS[unit])


def parse_fraction(text: str) -> float:
    """Parse ``0.91`` or ``91%`` into a fraction.

    Raises:
        UsageError: neither a number nor a percentage.
    """
    number, unit = _split(text, "a fraction", "0.91 or 91%")
    if unit not in ("", "%"):
        raise UsageError(
            f"{text!r}: {unit!r} is not a unit of a fraction", hint="write 0.91 or 91%"
        )
    return float(number / 100 if unit == "%" else number)


def format_bytes(size_bytes: int) -> str:
    """Format a size for people: the exact bytes, from 10 KiB on with KiB or MiB beside."""
    if abs(size_bytes) < 10 * 1024:
        return f"{size_bytes:,} B"
    if abs(size_bytes) < 10 * 1024**2:
        return f"{size_bytes:,} B ({size_bytes / 1024:.1f} KiB)"
    return f"{size_bytes:,} B ({size_bytes / 1024**2:.1f} MiB)"


def format_percent(fraction: float, digits: int = 2) -> str:
    """Format a fraction as a percentage: ``0.91234`` becomes ``91.23 %``."""
    return f"{100 * fraction:.{digits}f} %"


def format_count(count: int, noun: str) -> str:
    """Format a number of things: ``1 tensor``, ``2,000 tensors``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Return text without what could steer a terminal or turn it around: names come from files."""
    return "".join(mark if mark.isprintable() or mark in "\n\t" else "\ufffd" for mark in text)


def format_seconds(seconds: float) -> str:
    """Format a duration for people: ``0.34 s``, ``12 s``, ``3 min 05 s``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
