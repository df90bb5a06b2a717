from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from pydantic import ValidationError
from report_cases import kinds
from rich.console import Console

from hwprune.report import charts, record, render, summary
from hwprune.report.record import MetricPoint, from_mapping

HOSTILE = "<script>alert(1)</script>\"'&[bold]|`*"


class Page(HTMLParser):
    """Collects what a page refers to, its text and its elements."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def hostile(sample_record: dict[str, Any]) -> dict[str, Any]:
    sample_record["result"]["layers"][0]["name"] = HOSTILE
    return {
        **sample_record, "model": HOSTILE, "target": HOSTILE, "command": HOSTILE,
        "notes": [HOSTILE], "environment": {"cpu": HOSTILE},
    }  # fmt: skip


def test_the_page_is_self_contained(sample_record: dict[str, Any]) -> None:
    text = render.html(from_mapping(sample_record))
    page = Page(text)
    assert page.links == []
    assert "script" not in page.tags
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 100_000


def test_the_page_says_everything(sample_record: dict[str, Any]) -> None:
    page = Page(render.html(from_mapping(sample_record)))
    for expected in (
        "Fits and verified: 65,100 B (63.6 KiB) of 65,536 B (64.0 KiB)", "91.73 %", "-1.48 points",
        "layer8.<b>conv</b>.weight", "1,840 B", "2.200 ms", "this host: Some CPU", "epoch",
        "nonzeros, log scale", "native kernels: this installation has no native kernels",
        "ab" * 32,
    ):  # fmt: skip
        assert expected in page.text
    assert page.tags.count("polyline") == 2
    assert page.tags.count("i") == 8 + 2  # one bar per layer and per measured file


def test_text_is_escaped_in_the_page(sample_record: dict[str, Any]) -> None:
    page = Page(render.html(from_mapping(hostile(sample_record))))
    assert "script" not in page.tags
    assert HOSTILE in page.text


def test_text_is_escaped_in_markdown(sample_record: dict[str, Any]) -> None:
    text = render.markdown(from_mapping(hostile(sample_record)))
    outside_code = [line for line in text.splitlines() if not line.startswith("    ")]
    assert not any("<script>" in line.replace("\\<", "") for line in outside_code)
    rows = [line for line in outside_code if "alert" in line and line.startswith("|")]
    assert rows
    columns = {len(re.findall(r"(?<!\\)\|", line)) - 1 for line in rows}
    assert columns <= {2, len(summary.LAYER_COLUMNS)}


def test_a_note_about_a_weight_is_kept(sample_record: dict[str, Any]) -> None:
    tied = "head.weight: stored once, as embed.weight, with which it is tied"
    noted = {**sample_record, "notes": [tied, "latency.dense: not measured", "metric.x: nothing"]}
    shown = summary.notes(from_mapping(noted))
    assert tied in shown
    assert "metric.x: nothing" not in shown


def test_a_failed_run_says_so(sample_record: dict[str, Any]) -> None:
    sample_record["verdict"] |= {"verified": False, "exit_code": 5}
    found = from_mapping(sample_record)
    assert summary.headline(found).startswith("Verification failed: ")
    assert 'class="verdict good"' not in render.html(found)
    assert render.markdown(found).count("❌") == 1


def test_a_microcontroller_never_fits_by_a_file_alone(sample_record: dict[str, Any]) -> None:
    sample_record["verdict"]["scope"] = "onnx-size-only, not linked"
    assert summary.headline(from_mapping(sample_record)).startswith("ONNX-size-only, not linked: ")
    sample_record["verdict"] |= {"verified": False, "exit_code": 5}  # that goes before
    assert summary.headline(from_mapping(sample_record)).startswith("Verification failed: ")


@pytest.mark.parametrize(
    ("field", "value", "shown_as"),
    [
        ("size", 65_536.0, "65,536 B"),
        ("budget.slack", 12.0, "12 B"),
        ("latency.p50", 0.084016, "0.084 ms"),
        ("sparsity", 0.905, "90.5 %"),
        ("nonzeros", 40_000.0, "40,000"),
        ("budget.max_nonzeros", 40_000.0, "40,000"),
        ("parity", 1e-4, "0.0001"),
    ],
)
def test_limits_are_shown_with_their_units(
    sample_record: dict[str, Any], field: str, value: float, shown_as: str
) -> None:
    sample_record["verdict"]["limits"] = [
        {"field": field, "op": "<=", "limit": value, "value": None, "met": False}
    ]
    rows = summary.limit_rows(from_mapping(sample_record))
    assert rows == [(f"{field} <= {shown_as}", "not measured", "NO")]


def test_a_drop_is_shown_in_points(sample_record: dict[str, Any]) -> None:
    limit = {"field": "metric_drop", "op": "<=", "limit": 0.02, "value": 0.00279, "met": True}
    sample_record["verdict"]["limits"] = [limit, {**limit, "field": "accuracy_drop", "limit": 0.01}]
    assert summary.limit_rows(from_mapping(sample_record)) == [
        ("drop of accuracy <= 2 points", "0.279 points", "yes"),
        ("drop of accuracy <= 1 point", "0.279 points", "yes"),
    ]


def test_an_extreme_point_is_shown_where_there_was_one(sample_record: dict[str, Any]) -> None:
    states = [state for state, _ in summary.metric_rows(from_mapping(sample_record))]
    assert states == ["dense", "extreme (validation split)", "final", "final - dense"]
    for part in ("metric", "accuracy"):
        sample_record[part]["extreme"] = None
    states = [state for state, _ in summary.metric_rows(from_mapping(sample_record))]
    assert states == ["dense", "final", "final - dense"]


def test_a_file_that_fits_and_is_bad_says_so_first(sample_record: dict[str, Any]) -> None:
    sample_record["verdict"] |= {
        "exit_code": 3,
        "limits": [{"field": "metric_drop", "op": "<=", "limit": 0.02, "value": 0.8, "met": False}],
    }
    sample_record["metric"] |= {"dense": 0.978, "final": 0.128}
    headline = summary.headline(from_mapping(sample_record))
    assert headline.startswith("Fits, but accuracy fell from 97.80 % to 12.80 %: 65,100 B")
    sample_record["metric"] |= {
        "name": "rmse", "higher_is_better": False, "dense": 0.1, "final": 0.5,
    }  # fmt: skip
    headline = summary.headline(from_mapping(sample_record))
    assert headline.startswith("Fits, but rmse rose from 0.1 to 0.5: ")
    sample_record["verdict"]["limits"] += [
        {"field": "size", "op": "<=", "limit": 1, "value": 2, "met": False}
    ]
    assert summary.headline(from_mapping(sample_record)).startswith("A limit is not met: ")


def test_what_was_not_done_is_said_first(sample_record: dict[str, Any]) -> None:
    for part in ("accuracy", "metric"):
        sample_record[part] = dict.fromkeys(sample_record[part]) | {"trajectory": []}
    headline = summary.headline(from_mapping(sample_record))
    assert headline.startswith("Fits and verified; accuracy unknown: ")
    sample_record["strategy"] = "dense"
    sample_record["result"]["sparsity"] = 0.0
    headline = summary.headline(from_mapping(sample_record))
    assert headline.startswith("Fits as it is, and nothing was pruned, which starts below ")
    assert "accuracy unknown" in headline


def test_over_budget_is_said(sample_record: dict[str, Any]) -> None:
    sample_record["budget"] |= {"bytes": 60_000, "slack_bytes": -5100}
    sample_record["verdict"] |= {"fits": False, "exit_code": 3}
    assert "over the budget of 60,000 B" in summary.headline(from_mapping(sample_record))


def test_a_record_with_nothing_measured_renders(sample_record: dict[str, Any]) -> None:
    for part in ("accuracy", "metric"):
        sample_record[part] = dict.fromkeys(sample_record[part]) | {"trajectory": []}
    sample_record["latency"] = dict.fromkeys(sample_record["latency"])
    sample_record["parity"] = dict.fromkeys(sample_record["parity"])
    sample_record["verdict"]["limits"] = []
    sample_record["result"]["layers"] = []
    sample_record["budget"] |= {"floor_bytes": None, "max_nonzeros": None}
    found = from_mapping(sample_record)
    Page(render.html(found))
    assert "not measured" in render.markdown(found)
    assert "not measured" in shown(found)


def shown(found: Any) -> str:
    stream = io.StringIO()
    render.terminal(found, Console(file=stream, width=100, color_system=None))
    return stream.getvalue()


def test_the_terminal_shows_the_verdict_first(sample_record: dict[str, Any]) -> None:
    lines = shown(from_mapping(sample_record)).splitlines()
    assert lines[0].startswith("✓ Fits and verified")
    assert any("layer3.<b>conv</b>.weight" in line and "690" in line for line in lines)


@pytest.mark.parametrize(
    ("scope", "mark"),
    [
        ("linked, run on QEMU microbit, bit-equal", "✓ Fits and verified"),
        ("linked, not run", "○ Linked, not run"),
        ("not linked, not run", "○ Not linked, not run"),
        ("onnx-size-only, not linked", "○ ONNX-size-only, not linked"),
    ],
)
def test_only_what_was_run_gets_a_tick(
    sample_record: dict[str, Any], scope: str, mark: str
) -> None:
    sample_record["verdict"] |= {"scope": scope}
    found = from_mapping(sample_record)
    assert shown(found).startswith(mark)
    assert mark[0] in render.html(found)
    sample_record["verdict"] |= {"exit_code": 5}
    assert shown(from_mapping(sample_record)).startswith("✗ Verification failed")


def test_the_terminal_does_not_read_markup(sample_record: dict[str, Any]) -> None:
    sample_record["notes"] = ["[bold red]not markup[/bold red] [/]"]
    assert "[bold red]not markup[/bold red] [/]" in shown(from_mapping(sample_record))


def numbers_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of a record's numbers; of lists, the first two entries."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_of(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value[:2]):
            yield from numbers_of(inner, (*path, place))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize(
    "number", [10**400, 10**40, 2**53, -(10**400), -1, 1e308, 5e-324, 1e-300, 0, 0.5]
)
def test_any_number_is_shown_or_refused(sample_record: dict[str, Any], number: float) -> None:
    sample_record["recipe"] = {"lr": 0.1}
    sample_record["metric"]["trajectory"][0]["loss"] = 1.0
    shown_ones = 0
    for *parents, last in numbers_of(sample_record):
        data = copy.deepcopy(sample_record)
        place: Any = data
        for key in parents:
            place = place[key]
        place[last] = number
        try:
            found = record.Record.model_validate_json(json.dumps(data))
        except ValidationError:
            continue
        shown_ones += 1
        Page(render.html(found))
        render.markdown(found)
        shown(found)
    assert shown_ones


def test_many_layers_are_cut_and_said(sample_record: dict[str, Any]) -> None:
    layer = sample_record["result"]["layers"][0]
    sample_record["result"]["layers"] = [
        {**layer, "name": f"w{number}", "bytes": number} for number in range(100)
    ]
    found = from_mapping(sample_record)
    bars, left_out = charts.layer_bars(found)
    assert (len(bars), left_out) == (40, 60)
    assert {bar.label for bar in bars} == {f"w{number}" for number in range(60, 100)}
    assert "60 smaller ones are in the table" in Page(render.html(found)).text
    assert "and 40 layers more" in shown(found)


# -- charts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nonzeros",
    [[270_000, 22_000, 25_000], [10, 10, 10], [0, 0, 5], [1, 100_000_000, 1], [5, 4, 3], [0, 0, 0]],
)
def test_the_trajectory_stays_inside_its_axes(nonzeros: list[int]) -> None:
    points = [
        MetricPoint(epoch=epoch, nonzeros=count, value=0.9) for epoch, count in enumerate(nonzeros)
    ]
    plot = charts.trajectory(points)
    assert plot is not None
    for curve in plot.curves:
        high, low = curve.ticks[-1].at, curve.ticks[0].at
        assert 2 <= len(curve.ticks) <= 9
        assert len({tick.label for tick in curve.ticks}) == len(curve.ticks)
        for x, y, _ in curve.dots:
            assert plot.left <= x <= plot.right
            assert high - 0.1 <= y <= low + 0.1


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_metric_that_never_moves_is_drawn(value: float) -> None:
    points = [MetricPoint(epoch=epoch, nonzeros=9, step=epoch, value=value) for epoch in (1, 2)]
    plot = charts.trajectory(points)
    assert plot is not None
    for _, y, _ in plot.curves[0].dots:
        assert plot.top <= y <= plot.bottom


def test_points_inside_an_epoch_are_placed_by_their_step() -> None:
    points = [MetricPoint(epoch=min(step // 5, 1), nonzeros=9, step=step) for step in range(6)]
    plot = charts.trajectory(points)
    assert plot is not None
    across = [x for x, _, _ in plot.curves[0].dots]
    assert across[1] - across[0] == pytest.approx((plot.right - plot.left) / 5, abs=0.2)


def test_no_plot_of_a_single_point() -> None:
    assert charts.trajectory([MetricPoint(epoch=0, nonzeros=1)]) is None


# -- runs of every kind -------------------------------------------------------------------------


NARROW = {"layer", "kept", "codec", "bytes"}


@pytest.mark.parametrize("kind", ["trained", "untrained", "dense", "firmware"])
def test_runs_of_every_kind(sample_record: dict[str, Any], kind: str) -> None:
    found = from_mapping(kinds(sample_record)[kind])
    page = Page(render.html(found))
    for text in (page.text, render.markdown(found).replace("\\", ""), in_terminal(found, 80)):
        assert "dense fp32" in text
        assert "1,100,000 B" in text
        assert "int8 alone" in text
        assert "290,000 B" in text
        for internal in ("latency.kernels:", "weight_bytes", "memory_bytes", "metric_drop"):
            assert internal not in text
    assert ("polyline" in page.tags) == (kind in ("trained", "firmware"))
    assert ("extreme point" in page.text) == (kind in ("trained", "firmware"))
    assert ("0.40 times as long as the dense" in page.text) == (kind in ("trained", "untrained"))
    assert ("Nothing was pruned: the file runs as" in page.text) == (kind == "dense")
    if kind == "trained":
        row = next(line for line in render.markdown(found).splitlines() if "this file" in line)
        assert [cell.strip() for cell in row.strip("|").split("|")] == [
            "this file", "65,100 B", "16.9x", "90.25 %", "0.840 ms",
        ]  # fmt: skip
        assert "200" in summary.layer_rows(found)[0]  # as inspect counts it


def in_terminal(found: record.Record, width: int, **environment: str) -> str:
    stream = io.StringIO()
    terminal = bool(environment)
    console = Console(
        file=stream, width=width, markup=False, highlight=False, force_terminal=terminal,
        _environ=environment,
    )  # fmt: skip
    render.terminal(found, console)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    "environment", [{}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "xterm"}],
    ids=["pipe", "dumb", "no-colour", "colour"],
)  # fmt: skip
def test_the_terminal_page_is_readable(
    sample_record: dict[str, Any], width: int, environment: dict[str, str]
) -> None:
    text = in_terminal(from_mapping(kinds(sample_record)["trained"]), width, **environment)
    width = 80 if environment.get("TERM") == "dumb" else width  # rich's own choice there
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = plain.splitlines()
    # Rows of tables are whole: what would not fit beside the rest is left out, not folded.
    names = [layer["name"] for layer in sample_record["result"]["layers"]]
    for name in (*names, "artifact, stock onnxruntime", "int8 alone"):
        assert sum(name in line for line in lines) == 1, name
    heads = next(line for line in lines if line.startswith("layer ")).split()
    assert set(heads) >= NARROW
    assert max(len(line.rstrip()) for line in lines if "layer8" in line) <= width
    coloured = environment == {"TERM": "xterm"}
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", text)) == coloured
    if environment.get("TERM") != "xterm":
        assert "\x1b" not in text
