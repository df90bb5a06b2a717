"""Which change of a field is for the worse, and by how much."""

from __future__ import annotations

from typing import Any

import pytest

from hwprune.errors import LimitError
from hwprune.verify.baseline import COMPARED, Baseline


def record(name: str, value: float) -> dict[str, Any]:
    made: dict[str, Any] = {"metric": {"name": "rmse", "higher_is_better": False}}
    if name == "metric":
        made["metric"]["final"] = value
    elif name == "miou":
        made["metric"] = {"name": "miou", "higher_is_better": True, "final": value}
    elif name == "size":
        made["artifact"] = {"bytes": value}
    elif name == "accuracy":
        made["accuracy"] = {"final": value}
    elif name == "ram":
        made["firmware"] = {"ram_bytes": value}
    else:
        latency = {"host": "h", "onnxruntime": "1", "stock": {"p50_ms": value}}
        made["latency"] = latency
    return made


def compared(name: str, old: float, new: float, **may_worsen: float) -> str:
    """What the comparison of one field says."""
    baseline = Baseline("before", record(name, old), may_worsen)
    field = "metric" if name == "miou" else name
    found = [each for each in baseline.comparisons(record(name, new)) if each.field.name == field]
    (one,) = found
    return one.sentence()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("size", 1000, 1001),
        ("ram", 1000, 1001),
        ("accuracy", 0.9, 0.89),
        ("metric", 0.5, 0.6),
        ("miou", 0.6, 0.5),
        # A latency is a share of what it was: 0.9 ms of 10 are its noise, 1.1 are not.
        ("latency.p50", 10.0, 11.1),
    ],
)
def test_each_field_has_a_direction(name: str, good: float, bad: float) -> None:
    assert {name} <= {*COMPARED, "miou"}
    with pytest.raises(LimitError, match="worse than the baseline"):
        compared(name, good, bad)
    assert "was" in compared(name, bad, good)
    assert "was" in compared(name, good, good)


def test_a_latency_may_vary_by_a_share_of_what_it_was() -> None:
    assert compared("latency.p50", 10.0, 10.9)
    with pytest.raises(LimitError) as caught:
        compared("latency.p50", 10.0, 10.9, **{"latency.p50": 0.05})
    assert "may worsen by 5%" in (caught.value.hint or "")
    with pytest.raises(LimitError):
        compared("latency.p50", 0.1, 0.12)
