from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hwprune.report import Record, render
from hwprune.report.comparison import compare, rows, scatter


@pytest.fixture
def runs(sample_record: dict[str, Any]) -> list[tuple[str, Record]]:
    """Return runs with a frontier of four points that bends at the second."""

    def run(label: str, size: int, final: float | None, **more: Any) -> tuple[str, Record]:
        artifact = {**sample_record["artifact"], "bytes": size}
        metric = {**sample_record["metric"], "final": final}
        record = {**sample_record, "artifact": artifact, "metric": metric, **more}
        return label, Record.model_validate(record)

    verdict = sample_record["verdict"]
    return [
        run("d", 64 * 1024, 0.912),
        run("a", 8 * 1024, 0.60),
        run("worse", 17 * 1024, 0.85),
        run("beside b", 16 * 1024, 0.87),
        run("b", 16 * 1024, 0.88),
        run("c", 32 * 1024, 0.90),
        run("unmeasured", 9 * 1024, None),
        run("wrong", 4 * 1024, 0.99, verdict={**verdict, "verified": False, "exit_code": 5}),
        run("other", 4 * 1024, 0.2, model="other"),
    ]


def test_the_frontier_and_its_knee(runs: list[tuple[str, Record]]) -> None:
    found = compare(runs)
    marks = {run.label: run.mark for run in found}
    assert marks == {
        "a": "frontier", "b": "knee", "c": "frontier", "d": "frontier", "worse": "",
        "beside b": "", "unmeasured": "", "wrong": "", "other": "frontier",
    }  # fmt: skip
    sizes = [run.size_bytes for run in found if run.record.model != "other"]
    assert sizes == sorted(sizes)
    assert rows(found)[1][0] == "a"
    assert rows(found)[0][-2] == "failed"
    assert rows([run for run in found if run.label == "b"])[0][7] == "+3.73 points"


def test_where_less_is_better(runs: list[tuple[str, Record]]) -> None:
    def turned(record: Record) -> Record:
        value = None if record.metric.final is None else 1 - record.metric.final
        change = {"name": "rmse", "higher_is_better": False, "final": value, "dense": 0.1}
        return record.model_copy(update={"metric": record.metric.model_copy(update=change)})

    found = compare([(label, turned(record)) for label, record in runs])
    assert {run.label: run.mark for run in found} == {run.label: run.mark for run in compare(runs)}
    assert next(row for row in rows(found) if row[0] == "b")[6:8] == ("0.12", "+0.02")


def test_two_points_have_no_knee(runs: list[tuple[str, Record]]) -> None:
    assert not any(run.is_knee for run in compare(runs[:2]))


def test_the_plot_has_every_measured_run_inside(runs: list[tuple[str, Record]]) -> None:
    plot = scatter(compare(runs))
    assert plot is not None
    assert len(plot.dots) == len(runs) - 1
    assert all(64 <= dot.x <= 740 and 20 <= dot.y <= 290 for dot in plot.dots)
    by_label = {dot.tip.partition(":")[0]: dot for dot in plot.dots}
    assert by_label["a"].x < by_label["b"].x < by_label["c"].x < by_label["d"].x
    assert by_label["a"].y > by_label["b"].y > by_label["d"].y
    assert [label for _, label in plot.sizes] == ["4 KiB", "8 KiB", "16 KiB", "32 KiB", "64 KiB"]
    assert scatter(compare(runs[:1])) is None


def test_pages(runs: list[tuple[str, Record]]) -> None:
    found = compare(runs)
    page = render.comparison_html(found, "a <b> title", ["a | note"])
    assert "a &lt;b&gt; title" in page
    drawing = page[page.index("<svg") : page.index("</svg>") + 6]
    assert len(ElementTree.fromstring(drawing).findall(".//circle")) == len(runs) - 1
    text = render.comparison_markdown(found, "title", ["a | note"])
    assert text.count("\n| ") == len(runs) + 1
    assert text.endswith("a \\| note\n")
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render.comparison_terminal(found, console, ["a note"])
    shown = console.export_text()
    assert "knee" in shown
    assert "seed" not in shown  # all have the same


@pytest.mark.parametrize("width", [60, 80])
def test_runs_side_by_side_stay_on_their_lines(runs: list[tuple[str, Record]], width: int) -> None:
    stream = io.StringIO()
    render.comparison_terminal(compare(runs), Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert len(lines) == 1 + len(runs)
    assert any(line.startswith("b ") and "16,384 B" in line and "knee" in line for line in lines)
