"""What is seen of a run while it goes on: in a terminal, in a file, in a notebook."""

from __future__ import annotations

import io
import sys
import types
from typing import Any

import pytest
from rich.console import Console

from hwprune import notebook
from hwprune.cli import options, watching
from hwprune.ir import Artifact, Status, Verdict

EPOCH = {"epoch": 1, "loss": 0.5, "accuracy": 0.9, "nonzeros": 1000, "bytes": 2000}
RUN = (
    Status("plan", "solving the budget"),
    Status("train", "prune to 1,000 nonzeros", 1, 20),
    Status("train", "epoch 1 of 2", 5, 20),
    Status("train", "epoch 1 of 2, loss 0.5, validation 90 %", 10, 20, EPOCH),
    Status("train", "epoch 2 of 2", 15, 20),
    Status("train", "epoch 2 of 2, loss 0.4, validation 91 %", 20, 20, EPOCH),
    Status("done", "out/model.onnx"),
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds pass between any two looks at the clock."""
    ticks = iter(range(0, 10_000, 2))
    monkeypatch.setattr(watching.time, "monotonic", lambda: float(next(ticks)))


def shown(**options: Any) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=100, markup=False, highlight=False, **options)
    with watching._shown(console) as say:
        for status in RUN:
            say(status)
    return stream.getvalue()


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "environment",
    [{}, {"TERM": "dumb"}, {"TERM": "xterm"}, {"TERM": "xterm", "NO_COLOR": "1"}],
    ids=["pipe", "dumb", "terminal", "no-colour"],
)
def test_stages_and_epochs_are_lines_that_stay(environment: dict[str, str]) -> None:
    terminal = "TERM" in environment
    text = shown(force_terminal=terminal, _environ=environment)
    lines = [line for line in text.splitlines() if "epoch" in line and "validation" in line]
    kept = [line for line in lines if "━" not in line]
    assert any("50 %  epoch 1 of 2, loss 0.5, validation 90 %, " in line for line in kept)
    assert any("100 %  epoch 2 of 2, loss 0.4, validation 91 %" in line for line in kept)
    assert any(" s left" in line for line in kept)
    assert any("solving the budget" in line for line in text.splitlines())
    bar = terminal and environment["TERM"] != "dumb"
    assert ("━" in text) == bar
    assert ("\x1b" in text) == bar
    if "NO_COLOR" in environment:
        assert "\x1b[36m" not in text


def test_a_dumb_terminal_keeps_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert options.console(stderr=True).width == 60


def test_a_notebook_has_a_bar_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notebook.bar() is None
    seen: list[str] = []
    handle = types.SimpleNamespace(update=seen.append)
    display = types.SimpleNamespace(HTML=str, display=lambda html, display_id: handle)
    ipython = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    say = notebook.bar()
    assert say is not None
    for status in RUN:
        say(status)
    assert '<progress value="5" max="20">' in seen[2]
    assert seen[-1].count("validation") == 2
    say(Status("read", "<b>"))
    assert "<b>" not in seen[-1]


def test_an_artifact_shows_itself_in_a_line_and_in_a_table() -> None:
    report = {
        "budget": {"bytes": 65536}, "result": {"nonzeros": 10, "weights": 1000, "sparsity": 0.99},
        "metric": {"name": "accuracy", "dense": 0.97, "final": 0.96},
    }  # fmt: skip
    whole = Artifact("out/<b>.onnx", 65_000, "ab" * 32, Verdict(True, True, "here"), report)
    assert len(repr(whole)) < 200
    for text in (repr(whole), whole._repr_html_()):
        for part in ("65,000 B of 65,536 B", "fits and verified", "10 of 1,000", "accuracy 0.96"):
            assert part in text
    assert "<b>" not in whole._repr_html_()
    bare = Artifact("x.onnx", 5, "", Verdict(False, False, "here", exit_code=5))
    assert repr(bare) == "<Artifact x.onnx: 5 B; exit code 5>"
