"""The benchmark per device: which rows are one measurement, and what its page says of a record."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from bench_record import BenchRecord, read

from hwprune.targets import load, names

ROOT = Path(__file__).resolve().parents[2]
SEED = 0


@pytest.fixture(scope="module")
def devices() -> Iterator[ModuleType]:
    """The script as a module; its folder is on the path while it is imported, as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        yield importlib.import_module("devices")


def of(configs: list[dict[str, Any]], network: str, target: str, budget: str) -> dict[str, Any]:
    wanted = {"network": network, "target": target, "budget": budget}
    (found,) = (c for c in configs if all(c[key] == value for key, value in wanted.items()))
    return found


def measured(**changes: Any) -> dict[str, Any]:
    """What a row holds beside its config, as if a pruned file had been measured on a board."""
    run = {"p50_ms": 0.25, "p90_ms": 0.5, "runs": 100, "threads": 1}
    return {
        "form": "functions",
        "strategy": "bidirectional",
        "strategy_options": {"depth": 0.9, "steps": 4},
        "value_types_used": ["int8"],
        "codecs_used": ["gap8"],
        "weights": 1000,
        "max_nonzeros": 95,
        "nonzeros": 90,
        "sparsity": 0.91,
        "artifact_bytes": 12_287,
        "dense_accuracy": 0.98,
        "accuracy": 0.9512,
        "samples": 359,
        "split": "test",
        "host_latency": {"dense": run, "artifact": {**run, "p50_ms": 0.375}, "host": "h"},
        "relative_error": 1e-7,
        "fits": True,
        "verified": True,
        "scope": "onnx file, on this host",
        "exit_code": 0,
        "trained_epochs": 12,
        "measured_with": "raspberry-pi-5",
        **changes,
    }


def row(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    cost = {"epochs": 12, "seconds": 8.5}
    return {"config": config, "seed": SEED, "status": "run", "cost": cost, **measured(**changes)}


def record(*rows: dict[str, Any]) -> BenchRecord:
    return BenchRecord.model_validate(
        {
            "experiment": "devices",
            "rows": rows,
            "environment": {"cpu": "Some CPU", "torch": None},
            "command": "python benchmarks/devices.py",
        }
    )


def line(page: str, config: dict[str, Any]) -> list[str]:
    """The cells of a row's line."""
    heading = "default budgets" if config["budget"] == "default" else "B everywhere"
    sections = page.split("\n## ")
    (section,) = (
        s for s in sections if s.startswith(config["network"]) and heading in s.split("\n")[0]
    )
    (found,) = (text for text in section.splitlines() if text.startswith(f"| {config['target']} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


# -- rows -----------------------------------------------------------------------------------------


def test_every_profile_has_two_demo_rows_and_one_resnet_row(devices: ModuleType) -> None:
    configs = devices.configs()
    for name in names():
        of(configs, "digits-cnn", name, "default")
        of(configs, "digits-cnn", name, "forced")
        of(configs, "cifar-resnet20", name, "default")
    assert len(configs) == 3 * len(names())


def test_default_budgets_are_those_of_the_profiles(devices: ModuleType) -> None:
    for config in devices.configs():
        if config["budget"] == "default":
            assert config["budget_bytes"] == load(config["target"]).budget_bytes


@pytest.mark.parametrize("epochs", [0, 3])
def test_epochs_can_be_given(devices: ModuleType, epochs: int) -> None:
    assert {config["epochs"] for config in devices.configs(epochs)} == {epochs}


def test_equal_boards_share_a_measurement(devices: ModuleType) -> None:
    configs = devices.configs()
    one = of(configs, "cifar-resnet20", "raspberry-pi-zero-2w", "default")
    other = of(configs, "cifar-resnet20", "raspberry-pi-3b-plus", "default")
    done = record(row(one)).rows
    assert devices.measured_like(other, SEED, done) is done[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "another"),
        ("budget_bytes", 1),
        ("epochs", 99),
        ("runtime", "firmware"),
        ("opset", 15),
        ("ir_version", 7),
        ("inline_functions", True),
        ("codecs", ["gap8"]),
        ("value_types", ["int8"]),
    ],
)
def test_whatever_changes_the_outcome_separates_rows(
    devices: ModuleType, field: str, value: Any
) -> None:
    config = of(devices.configs(), "digits-cnn", "raspberry-pi-5", "forced")
    assert config[field] != value
    assert devices.measured_like({**config, field: value}, SEED, record(row(config)).rows) is None


def test_neither_another_seed_nor_a_row_that_was_not_run_is_a_measurement(
    devices: ModuleType,
) -> None:
    config = devices.configs()[0]
    not_run = {"config": config, "seed": SEED, "status": "not-run", "cost": None}
    assert devices.measured_like(config, SEED, record(not_run).rows) is None
    assert devices.measured_like(config, SEED + 1, record(row(config)).rows) is None


def test_epochs_are_spent_only_where_weights_have_to_go(devices: ModuleType) -> None:
    sparse, whole = SimpleNamespace(limited_by="budget"), SimpleNamespace(limited_by="weights")
    assert devices.epochs_for({"fp32": sparse, "int8": sparse}, 12) == 12
    assert devices.epochs_for({"fp32": sparse, "int8": whole}, 12) == 0


def test_equal_rows_are_measured_once_and_kept(
    devices: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def fake(config: dict[str, Any], network: Any) -> dict[str, Any]:
        calls.append(config["target"])
        found = measured()
        del found["measured_with"]
        return found

    monkeypatch.setattr(devices, "measure", fake)
    experiment = devices.Experiment("devices", ["python", "benchmarks/devices.py"])
    experiment.path = tmp_path / "results" / "devices.json"
    wanted = [config for config in devices.configs() if config["budget"] == "forced"]
    devices.fill(wanted, experiment, {"digits-cnn": object()})
    keys = {repr(devices.outcome_key(config)) for config in wanted}
    assert len(calls) == len(keys) < len(wanted)
    kept = read(experiment.path)
    assert kept is not None
    rows = [kept.row(config, SEED) for config in wanted]
    assert {each.model_extra["measured_with"] for each in rows} == set(calls)
    assert sum(each.cost.epochs for each in rows) == 12 * len(calls)


def test_the_options_that_a_strategy_had_are_kept(devices: ModuleType) -> None:
    assert 0 < devices.defaults_of("bidirectional-single")["depth"] < 1
    assert "density" not in devices.defaults_of("bidirectional-single")
    assert devices.defaults_of("dense") == {}


# -- the page -------------------------------------------------------------------------------------


def test_a_measured_row_shows_its_numbers(devices: ModuleType) -> None:
    config = of(devices.configs(), "digits-cnn", "raspberry-pi-5", "forced")
    page = devices.devices_page.page(devices.configs(), SEED, record(row(config)))
    assert line(page, config) == [
        "raspberry-pi-5", "12,288 B", "95", "90", "91.00 %", "12,287 B", "int8", "functions",
        "bidirectional 0.9 (12)", "98.00 %", "95.12 %", "0.250, 0.375 ms",
        "fits, verified (onnx file, on this host)", "raspberry-pi-5",
    ]  # fmt: skip


def test_firmware_has_no_latency_and_is_not_linked(devices: ModuleType) -> None:
    config = of(devices.configs(), "digits-cnn", "nrf52840", "forced")
    scope = "onnx-size-only, not linked"
    page = devices.devices_page.page(
        [config], SEED, record(row(config, host_latency=None, scope=scope))
    )
    cells = line(page, config)
    assert cells[11] == "null"
    assert cells[12] == f"fits, verified ({scope})"


def test_what_was_not_run_is_visible(devices: ModuleType) -> None:
    configs = devices.configs()
    config = of(configs, "digits-cnn", "raspberry-pi-5", "forced")
    page = devices.devices_page.page(configs, SEED, record(row(config)))
    assert page.count("| not run |") == len(configs) - 1
    absent = of(configs, "cifar-resnet20", "jetson-nano", "default")
    assert line(page, absent)[2] == "not run"


def test_rows_of_a_profile_that_has_changed_are_not_shown(devices: ModuleType) -> None:
    config = of(devices.configs(), "digits-cnn", "raspberry-pi-5", "forced")
    page = devices.devices_page.page([config], SEED, record(row({**config, "opset": 99})))
    assert line(page, config)[2] == "not run"


def test_values_that_the_device_does_not_list_are_starred(devices: ModuleType) -> None:
    config = of(devices.configs(), "digits-cnn", "rp2040", "default")
    assert "fp32" not in config["value_types"]
    page = devices.devices_page.page([config], SEED, record(row(config, value_types_used=["fp32"])))
    assert line(page, config)[6] == "fp32 \\*"
    plain = devices.devices_page.page([config], SEED, record(row(config)))
    assert line(plain, config)[6] == "int8"
    assert "star" in page
    assert "star" not in plain


def test_a_budget_that_cannot_be_met_is_a_result(devices: ModuleType) -> None:
    config = of(devices.configs(), "digits-cnn", "raspberry-pi-5", "forced")
    failed = {
        "config": config, "seed": SEED, "status": "run", "cost": {"epochs": 0, "seconds": 1},
        "error": "the floor is\n9,000 B | too much", "exit_code": 4,
        "measured_with": "raspberry-pi-5",
    }  # fmt: skip
    page = devices.devices_page.page([config], SEED, record(failed))
    cells = line(page, config)
    assert len(cells) == 14
    assert cells[12] == "does not fit (exit code 4): the floor is 9,000 B / too much"


def test_every_table_line_has_as_many_cells_as_its_heading(devices: ModuleType) -> None:
    configs = devices.configs()
    rows = [row(config) for config in configs[::2]]
    page = devices.devices_page.page(configs, SEED, record(*rows))
    tables = [text for text in page.splitlines() if text.startswith("|")]
    assert {text.count("|") for text in tables} == {3, 15}


def test_the_page_in_docs_is_the_records(devices: ModuleType) -> None:
    kept = read(ROOT / "benchmarks" / "results" / "devices.json")
    if kept is None:
        pytest.skip("no record here: a source archive leaves the results out")
    written = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    assert written == devices.devices_page.page(devices.configs(), SEED, kept), (
        "run `python benchmarks/devices.py --page`, or measure the rows whose profile has changed"
    )
