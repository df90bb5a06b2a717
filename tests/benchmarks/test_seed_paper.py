"""The seed paper's figures: rows that can be run, arms at equal cost, tables, plots."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hwprune.sparsity import make

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy"
NAMES = (
    "common", "networks", "staged", "study", "fig1", "fig2", "bytes_at_accuracy",
    "published", "figures", "train_dense",
)  # fmt: skip
BENCHMARKS = ("fig1", "fig2", "bytes_at_accuracy", "train_dense")


class Modules:
    """The benchmarks, freshly imported, with records in a folder of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
        monkeypatch.syspath_prepend(str(FOLDER))
        monkeypatch.syspath_prepend(str(FOLDER.parent))
        for name in NAMES:
            sys.modules.pop(name, None)
        for name in NAMES:
            setattr(self, name, importlib.import_module(name))
        monkeypatch.setattr(sys.modules["common"], "RESULTS", results)
        monkeypatch.setattr(sys.modules["common"], "build", lambda: "0 (a test)")

    def __getattr__(self, name: str) -> ModuleType:
        raise AttributeError(name)

    def scales(self, name: str) -> tuple[dict[str, Any], ...]:
        module = getattr(self, name)
        smoke = module.SMOKE if name == "train_dense" else self.study.SMOKE
        return module.FULL, module.SHORT, smoke


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Modules:
    return Modules(monkeypatch, tmp_path)


def unique(rows: list[tuple[dict[str, Any], int]]) -> bool:
    keys = [json.dumps(row, sort_keys=True) for row in rows]
    return len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_row_is_there_once_and_its_course_can_be_made(modules: Modules, name: str) -> None:
    for scale in modules.scales(name):
        rows = getattr(modules, name).rows(scale)
        assert rows
        assert unique(rows)
        for config, _ in rows:
            assert config["network"] in modules.networks.NETWORKS
            assert config["train_images"] == scale["train_images"]
            assert modules.networks.is_smoke(config) == ("eval_images" in scale)
            if "stages" in config:
                strategy = modules.staged.course(config["stages"], **config.get("regrow", {}))
                assert len(strategy.restarts) == len(config["stages"]) - 1
            elif name != "train_dense":
                make(config["strategy"], density=0.05, **config["options"])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_was_not_run_is_shown_as_not_run(modules: Modules, name: str) -> None:
    experiment = modules.common.Experiment("nothing", ["python"])
    for scale in modules.scales(name):
        lines = getattr(modules, name).table(experiment, scale).splitlines()[2:]
        assert lines
        assert all("not run" in line for line in lines)


def test_rows_of_the_larger_networks_keep_their_weight_decay(modules: Modules) -> None:
    for config, _ in modules.fig1.rows(modules.fig1.FULL):
        asked = config.get("recipe", {}).get("weight_decay", 1e-4)
        assert asked == modules.networks.dense_recipe(config["network"])["weight_decay"]


def test_one_way_pruning_costs_what_the_trajectory_has_cost_there(modules: Modules) -> None:
    fig2, scale = modules.fig2, modules.fig2.FULL
    for mode, states in fig2.STATES.items():
        whole = fig2.trajectory(mode, scale)["stages"]
        for number, sparsity in enumerate(states):
            straight = fig2.one_way(mode, number, scale)["stages"]
            at = len(whole) - len(states) + number
            assert whole[at] == straight[-1] == sparsity
            assert len(straight) == at + 1
            assert straight == sorted(straight)


def test_stages_prune_regrow_and_stay(modules: Modules) -> None:
    course = modules.staged.course([0.9, 0.99, 0.95, 0.95], regrow_score="random")
    assert [(e.progress, e.action, e.score) for e in course.events] == [
        (0.0, "prune", "lamp"), (0.25, "prune", "lamp"), (0.5, "regrow", "random"),
    ]  # fmt: skip
    assert [e.budget_fraction for e in course.events] == [None, None, 1.0]
    assert course.restarts == (0.25, 0.5, 0.75)
    assert modules.staged.rounds(20)[-1] == pytest.approx(0.9885, abs=1e-4)


def stage(sparsity: float, accuracy: float) -> dict[str, float]:
    return {"sparsity": sparsity, "accuracy": accuracy, "epochs": 1, "nonzeros": 1}


def filled(modules: Modules) -> Any:
    """Return a record of fig2 with what three seeds of the short scale might have measured."""
    fig2, scale = modules.fig2, modules.fig2.SHORT
    experiment = modules.common.Experiment("fig2", ["python"])
    for seed in range(3):
        states = [stage(s, 0.90 + 0.01 * n) for n, s in enumerate(fig2.STATES["one-shot"])]
        config = fig2.trajectory("one-shot", scale)
        experiment.add(config, seed, 1.0, 4, accuracy=0.93, stages=states)
        config = fig2.one_way("one-shot", 1, scale)
        straight = [stage(0.982, 0.5), stage(0.982, 0.90 - 0.01 * seed)]
        experiment.add(config, seed, 1.0, 2, accuracy=0.90 - 0.01 * seed, stages=straight)
    return experiment


def test_a_state_is_compared_with_one_way_pruning_by_seed(modules: Modules) -> None:
    lines = modules.fig2.table(filled(modules), modules.fig2.SHORT).splitlines()
    line = next(each for each in lines if "98.20 %" in each and "one-shot" in each)
    # Differences 1, 2 and 3 points: mean 2, t(0.975, 2) = 4.303.
    assert line == (
        "| one-shot | 98.20 % | 2 | 91.00 ± 0.00 | 89.00 ± 1.00 | not run | 3 | "
        "+2.00 [-0.48, +4.48] |"
    )


def test_figures_hold_what_was_run_and_what_was_published(modules: Modules, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure = modules.figures.draw_fig2(pyplot, filled(modules))
    done, waiting = figure.axes
    labels = done.get_legend_handles_labels()[1]
    assert "hwprune, regrown, 3 seeds" in labels
    assert "hwprune, one-way at the same cost, 3 seeds" in labels
    assert not any("random" in label for label in labels)
    assert "1 epoch a stage, 10,000 images only" in done.get_title()
    assert [text.get_text() for text in waiting.texts] == ["hwprune: not run"]
    for axis in (done, waiting):
        assert any(
            modules.published.PAPER in label for label in axis.get_legend_handles_labels()[1]
        )
    grown = done.containers[0].lines[0].get_xydata()
    assert grown[0] == pytest.approx((0.01, 90.0))
    pyplot.close(figure)

    assert modules.figures.main([], tmp_path) == 0
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert set(drawn) == {f"{name}.svg" for name in modules.figures.FIGURES}
    assert modules.figures.main(["fig2"], tmp_path) == 0
    assert (tmp_path / "fig2.svg").read_bytes() == drawn["fig2.svg"]
    assert modules.figures.main(["fig9"], tmp_path) == 2
