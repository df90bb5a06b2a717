from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.errors import UsageError
from hwprune.tasks import METRICS
from hwprune.verify.fields import FIELDS
from hwprune.verify.limits import (
    Context,
    evaluate,
    explain,
    guard,
    parse_limit,
    require_measurable,
    why_not,
)


@pytest.mark.parametrize(
    ("text", "field", "op", "value", "relative"),
    [
        ("size<=512KiB", "size", "<=", 524_288, False),
        ("size < 500kB", "size", "<", 500_000, False),
        ("nonzeros<=40_000", "nonzeros", "<=", 40_000, False),
        ("accuracy>=0.91", "accuracy", ">=", 0.91, False),
        ("accuracy>=91%", "accuracy", ">=", 0.91, False),
        ("accuracy_drop<=0.01", "accuracy_drop", "<=", 0.01, False),
        ("accuracy_drop<=-0.01", "accuracy_drop", "<=", -0.01, False),  # better than dense
        ("latency.p50<=3ms", "latency.p50", "<=", 3, False),
        ("latency.p90<=0.5s", "latency.p90", "<=", 500, False),
        ("latency.load<=20ms", "latency.load", "<=", 20, False),
        ("latency.p50<=0.5x", "latency.p50", "<=", 0.5, True),
        ("latency.stock.p50>1.5 X", "latency.stock.p50", ">", 1.5, True),
        ("ram<=256KiB", "ram", "<=", 262_144, False),
        ("parity<=1e-4", "parity", "<=", 1e-4, False),
        ("sparsity>=0.9", "sparsity", ">=", 0.9, False),
        ("SPARSITY == 90%", "sparsity", "==", 0.9, False),
        ("budget.slack>=0", "budget.slack", ">=", 0, False),
    ],
)
def test_parses(text: str, field: str, op: str, value: float, relative: bool) -> None:
    limit = parse_limit(text)
    assert (limit.field, limit.op, limit.value, limit.relative) == (field, op, value, relative)


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("", "is not a limit", "FIELD OP VALUE"),
        ("size", "is not a limit", "FIELD OP VALUE"),
        ("<=5", "is not a limit", "FIELD OP VALUE"),
        ("siez<=5", "'siez' is not a field", "did you mean size"),
        ("latency.p95<=5ms", "'latency.p95' is not a field", "latency.p50"),
        ("latency.p50_ms<=5", "is not a field", "did you mean latency.p50?"),
        ("volts<=5", "'volts' is not a field", "expected one of size, nonzeros"),
        ("size=5", "'=' is not a comparison", "FIELD OP VALUE"),
        ("size=<5", "'=<' is not a comparison", "FIELD OP VALUE"),
        ("size!=5", "'!=' is not a comparison", "FIELD OP VALUE"),
        ("size<=", "'' is not a size", "64KiB"),
        ("size<=5ms", "'ms' is not a unit of size", "KiB"),
        ("size<=0.5x", "only a latency or a metric", "FIELD OP VALUE"),
        ("metric_drop<=1.1x", "only a latency or a metric", "FIELD OP VALUE"),
        ("rsme<=0.19", "'rsme' is not a field", "did you mean rmse?"),
        ("accuracy>=91", "91 is not a fraction", "write 91% or 0.91"),
        ("accuracy>=191%", "191% is not a fraction", "at most 100%"),
        ("nonzeros<=1.5", "'1.5' is not a whole number", "40000"),
        ("nonzeros<=inf", "'inf' is not a whole number", "40000"),
        ("accuracy>=nan", "not a fraction", "0.91"),
        ("latency.p50<=3KiB", "not a unit of time", "ms"),
    ],
)
def test_refuses_and_says_what_is_wrong(text: str, says: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_limit(text)
    assert says in caught.value.message
    assert hint in (caught.value.hint or "")


@given(st.text(max_size=40))
def test_any_text_parses_or_is_a_usage_error(text: str) -> None:
    try:
        limit = parse_limit(text)
    except UsageError:
        return
    assert limit.field in {*FIELDS, *METRICS}


def test_every_documented_field_reads_the_report(sample_record: dict[str, Any]) -> None:
    # All but the numbers that this report says were not measured.
    missing = {name for name in FIELDS if FIELDS[name].value(sample_record) is None}
    kernels = {f"latency.kernels.{part}" for part in ("p50", "p90", "load")}
    assert missing == {"ram", "flash", "instructions"} | kernels


@pytest.mark.parametrize(
    ("text", "met", "value"),
    [
        ("size<=64KiB", True, 65_100),
        ("size<65100", False, 65_100),
        ("accuracy>=90%", True, 0.9025),
        ("accuracy>0.9025", False, 0.9025),
        ("accuracy_drop<=0.0148", True, 0.0148),
        ("sparsity==0.904", True, 0.904),
        ("latency.p50<=2.2ms", True, 2.2),
        ("latency.p50<=1.0x", False, 2.2),
        ("latency.p50<=1.1x", True, 2.2),
        ("parity<=1e-7", False, 3e-7),
        ("budget.slack>=437", False, 436),
        ("ram<=1GiB", False, None),
    ],
)
def test_judges(sample_record: dict[str, Any], text: str, met: bool, value: float | None) -> None:
    result = evaluate(parse_limit(text), sample_record)
    assert (result.met, result.value) == (met, value)


def test_a_difference_is_not_spoilt_by_binary_fractions(sample_record: dict[str, Any]) -> None:
    sample_record["accuracy"] |= {"dense": 0.9173, "final": 0.9073}
    assert 0.9173 - 0.9073 > 0.01
    assert evaluate(parse_limit("accuracy_drop<=0.01"), sample_record).met


def test_kernels_count_where_they_ran(sample_record: dict[str, Any]) -> None:
    sample_record["latency"]["kernels"] = {**sample_record["latency"]["dense"], "p50_ms": 0.5}
    assert evaluate(parse_limit("latency.p50<=0.5x"), sample_record).value == 0.5


@pytest.mark.parametrize(
    ("text", "met", "value"),
    [
        ("metric<=0.2", True, 0.19),
        ("rmse<0.19", False, 0.19),
        ("RMSE<=1.05x", False, 0.19),
        ("rmse<=110%", True, 0.19),
        ("rmse<=1.1x", True, 0.19),
        ("metric_drop<=0.01", True, 0.01),
        ("metric_drop<0.01", False, 0.01),
        ("mae<=1", False, None),
    ],
)
def test_a_metric_of_which_less_is_better(
    sample_record: dict[str, Any], text: str, met: bool, value: float | None
) -> None:
    sample_record["metric"] |= {
        "name": "rmse", "higher_is_better": False, "dense": 0.18, "final": 0.19,
    }  # fmt: skip
    result = evaluate(parse_limit(text), sample_record)
    assert (result.met, result.value) == (met, value)


def test_the_callers_own_metric_is_a_field_by_its_name(sample_record: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not a field"):
        parse_limit("IoU@50>=0.5")
    sample_record["metric"]["name"] = "IoU@50"
    limit = parse_limit("iou@50>=0.98x", metric="IoU@50")
    assert evaluate(limit, sample_record).met
    assert why_not(limit, Context(metric="IoU@50")) is None
    assert "not iou@50" in (why_not(limit, Context(metric="rmse")) or "")
    assert "needs data" in (why_not(limit, Context()) or "")


def test_a_report_of_schema_1_has_accuracy_as_its_metric(sample_record: dict[str, Any]) -> None:
    del sample_record["metric"]
    for text, met in (("metric>=0.9", True), ("metric_drop<=0.01", False), ("metric>=0.9x", True)):
        assert evaluate(parse_limit(text), sample_record).met is met


def test_a_multiple_is_judged_in_milliseconds(sample_record: dict[str, Any]) -> None:
    result = evaluate(parse_limit("latency.p50<=0.5x"), sample_record)
    assert (result.limit, result.value, result.met) == (1.05, 2.2, False)
    sample_record["latency"]["dense"] = None
    assert not evaluate(parse_limit("latency.p50<=99x"), sample_record).met


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("size<=60KiB", "size is 65,100 B (63.6 KiB); the limit size<=60KiB is not met"),
        ("accuracy>=0.95", "accuracy is 90.25 %; the limit accuracy>=0.95 is not met"),
        ("latency.p50<=0.5x", "is 2.200 ms; the limit latency.p50<=0.5x (1.050 ms) is not met"),
        ("accuracy>=0.90251", "accuracy is 0.9025; the limit"),  # both would round to 90.25 %
        ("ram<=1KiB", "ram was not measured"),
    ],
)
def test_explains(sample_record: dict[str, Any], text: str, says: str) -> None:
    limit = parse_limit(text)
    assert says in explain(limit, evaluate(limit, sample_record))


@pytest.mark.parametrize(
    ("text", "context", "possible"),
    [
        ("size<=1", Context(), True),
        ("accuracy>=0.5", Context(labels=True), True),
        ("accuracy>=0.5", Context(labels=False), False),
        ("accuracy_drop<=0.5", Context(labels=False), False),
        ("latency.p50<=1", Context(kind="linux"), True),
        ("latency.p50<=1", Context(kind="microcontroller"), False),
        ("latency.p50<=1x", Context(dense=False), False),
        ("latency.p50<=1", Context(dense=False), True),
        ("latency.kernels.p50<=1", Context(), False),
        ("latency.kernels.p50<=1", Context(no_kernels=None), True),
        ("latency.kernels.p50<=1", Context(kind="microcontroller", no_kernels=None), False),
        ("ram<=1KiB", Context(kind="linux"), False),
        ("parity<=1", Context(parity=False), False),
        ("seconds<=1", Context(run=False), False),
        ("nonzeros<=1", Context(layers=False), False),
    ],
)
def test_what_cannot_be_measured_is_refused_before(
    text: str, context: Context, possible: bool
) -> None:
    limit = parse_limit(text)
    assert (why_not(limit, context) is None) is possible
    if not possible:
        with pytest.raises(UsageError, match="cannot be measured"):
            require_measurable([parse_limit("size<=1"), limit], context)


# -- the guard on what the metric may lose --------------------------------------------------------


def _measured(dense: float | None, final: float, **more: Any) -> dict[str, Any]:
    accuracy = {"name": "accuracy", "higher_is_better": True}
    return {"metric": {**accuracy, "dense": dense, "final": final, **more}}


@pytest.mark.parametrize(
    ("dense", "classes", "at_most"),
    [(0.9805, 10, 0.02), (0.25, 10, 0.015), (0.15, 0, 0.015)],
)
def test_accuracy_may_lose_two_points_or_a_tenth_of_what_is_above_chance(
    dense: float, classes: int, at_most: float
) -> None:
    record = _measured(dense, dense - at_most - 1e-6)
    limit = guard(record, [], None, classes)
    assert limit is not None
    assert limit.value == pytest.approx(at_most)
    assert not evaluate(limit, record).met
    assert evaluate(limit, _measured(dense, dense - at_most + 1e-6)).met


def test_another_metric_may_lose_a_tenth_of_what_it_was() -> None:
    rmse = {"name": "rmse", "higher_is_better": False}
    limit = guard(_measured(0.2, 0.3, **rmse), [], None, 0)
    assert limit is not None
    assert limit.value == pytest.approx(0.02)
    assert not evaluate(limit, _measured(0.2, 0.221, **rmse)).met
    assert evaluate(limit, _measured(0.2, 0.219, **rmse)).met
    assert evaluate(limit, _measured(0.2, 0.1, **rmse)).met


def test_the_guard_is_off_where_somebody_said_what_counts() -> None:
    record = _measured(0.9, 0.1)
    for text in ("accuracy>=5%", "accuracy_drop<=90%", "metric>=0", "metric_drop<=1", "f1>=0"):
        assert guard(record, [parse_limit(text, "f1")], None, 10) is None
    for text in ("size<=1MiB", "accuracy.dense>=0.5"):
        assert guard(record, [parse_limit(text)], None, 10) is not None
    asked = guard(record, [], 0.9, 10)
    assert asked is not None
    assert evaluate(asked, record).met
    assert guard(_measured(None, 0.1), [], None, 10) is None  # nothing to compare with
    assert guard(_measured(0.1, 0.0), [], None, 10) is None  # nothing above chance
    assert guard({}, [], None, 10) is None
