"""What was timed decides which of its two ways a file runs; here the times are given."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from kernel_cases import make_layer, model_bytes

import hwprune
from hwprune.export.operators import Operator
from hwprune.kernels import dense_path, library, timed_choice

pytestmark = pytest.mark.skipif(library.path() is None, reason="the kernels are not built here")
NAME = "CsrConvGap8I8Bias"
X = np.random.default_rng(0).standard_normal((2, 8, 6, 5)).astype(np.float32)
Given = Callable[[float, float], list[str]]


def file_of(seed: int = 1) -> bytes:
    operator = Operator("Conv", "gap8", "int8", True)
    layer = make_layer(operator, (12, 8, 3, 3), density=0.2, seed=seed, pads=[1, 1, 1, 1])
    return model_bytes(layer, 4, 4)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Given:
    """Say what a run takes with kernels and without; what was timed is in the list returned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def times(kernels_ms: float, stock_ms: float) -> list[str]:
        timed: list[str] = []

        def fastest(make: Callable[[], Any], shapes: Any) -> float:
            make().run(None, {"x": X})
            timed.append("stock" if timed else "kernels")
            return stock_ms if timed[-1] == "stock" else kernels_ms

        monkeypatch.setattr(timed_choice, "_fastest_ms", fastest)
        return timed

    return times


def ran(session: Any) -> Any:
    return session.run(None, {"x": X})[0]


def test_what_was_faster_is_used_and_kept(given: Given) -> None:
    timed = given(3.0, 2.0)
    session = hwprune.session(file_of(), time_both=True, threads=1)
    assert timed == ["kernels", "stock"]
    assert session.hwprune.registered == session.hwprune.dense == ()
    assert "2 ms a run, with kernels 3 ms" in session.hwprune.reason
    stock = onnxruntime.InferenceSession(file_of(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(ran(session), ran(stock))
    # Not timed again, and not overruled by other times.
    timed = given(1.0, 2.0)
    assert hwprune.session(file_of(), time_both=True, threads=1).hwprune.registered == ()
    assert timed == []


def test_kernels_that_are_as_fast_run(given: Given) -> None:
    given(2.0, 2.0)
    session = hwprune.session(file_of(), time_both=True, threads=1)
    assert session.hwprune == hwprune.kernels.Speed((NAME,), None)


def test_layers_left_to_onnxruntime_stay_there_where_kernels_win(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_path, "density_limit", lambda layer: 0.1)
    timed = given(1.0, 2.0)
    session = hwprune.session(file_of(), time_both=True)
    assert len(session.hwprune.dense) == 1
    assert timed == []  # no kernel is left that could be slower


@pytest.mark.parametrize("other", ["file", "threads", "shapes"])
def test_another_question_is_timed_anew(given: Given, other: str) -> None:
    given(3.0, 2.0)
    hwprune.session(file_of(), time_both=True, threads=1)
    timed = given(1.0, 2.0)
    hwprune.session(
        file_of(seed=2 if other == "file" else 1),
        time_both=True,
        threads=2 if other == "threads" else 1,
        input_shapes={"x": (2, 8, 6, 5)} if other == "shapes" else None,
    )
    assert len(timed) == 2


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b'{"kernels_ms": "a"}', b"9" * 5000])
def test_what_is_kept_and_unreadable_is_timed_anew(
    given: Given, tmp_path: Path, kept: bytes
) -> None:
    given(3.0, 2.0)
    hwprune.session(file_of(), time_both=True, threads=1)
    (place,) = (tmp_path / "cache" / "hwprune" / "speeds").iterdir()
    place.write_bytes(kept)
    timed = given(1.0, 2.0)
    session = hwprune.session(file_of(), time_both=True, threads=1)
    assert len(timed) == 2
    assert session.hwprune.registered == (NAME,)


def test_a_folder_that_cannot_be_written_only_costs_time(given: Given, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    for _ in range(2):
        timed = given(3.0, 2.0)
        assert hwprune.session(file_of(), time_both=True).hwprune.registered == ()
        assert len(timed) == 2


def test_a_file_that_does_not_run_on_random_inputs_keeps_its_kernels(
    given: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(make: Any, shapes: Any) -> float:
        raise RuntimeError("Gather: index out of bounds")

    monkeypatch.setattr(timed_choice, "_fastest_ms", fails)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert hwprune.session(file_of(), time_both=True).hwprune.registered == (NAME,)
    assert not (tmp_path / "none").exists()


def test_only_machines_that_were_not_timed_are_asked(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = given(3.0, 2.0)
    assert hwprune.session(file_of()).hwprune.registered == (NAME,)
    assert timed == []
    monkeypatch.undo()
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert not timed_choice.needed()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert timed_choice.needed()


def test_both_ways_are_really_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With its own clock: which is faster is not asserted, only that both were timed and kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timed_choice, "SECONDS", 0.0)
    shapes = {"x": X.shape}
    session = hwprune.session(file_of(), time_both=True, threads=1, input_shapes=shapes)
    (place,) = (tmp_path / "hwprune" / "speeds").iterdir()
    kept = timed_choice.times(file_of(), 1, shapes, lambda: None, lambda: None)
    assert kept is not None
    assert min(kept) > 0
    assert (session.hwprune.registered == (NAME,)) == kept.kernels_win
    assert place.stat().st_size < 200
    assert ran(session).shape == (2, 12, 6, 5)
