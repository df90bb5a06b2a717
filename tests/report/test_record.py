from __future__ import annotations

import copy
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hwprune.errors import ArtifactError, HwpruneError, OutputError
from hwprune.report import record
from hwprune.report.record import Record


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with one value replaced, or removed where ``value`` is Ellipsis."""
    copied = copy.deepcopy(data)
    *parents, last = path.split(".")
    place = copied
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copied


def test_round_trip(tmp_path: Path, sample_record: dict[str, Any]) -> None:
    first = record.from_mapping(sample_record)
    record.write(first, tmp_path / "report.json")
    assert record.read(tmp_path / "report.json") == first
    assert record.read(tmp_path) == first  # the folder will do
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_file_is_what_other_programs_expect(
    tmp_path: Path, sample_record: dict[str, Any]
) -> None:
    record.write(record.from_mapping(sample_record), tmp_path / "report.json")
    document = json.loads((tmp_path / "report.json").read_text())
    assert list(document) == [
        "schema_version", "verdict", "model", "target", "strategy", "epochs", "artifact", "budget",
        "result", "metric", "accuracy", "latency", "parity", "environment", "command", "seed",
        "seconds", "notes", "recipe", "cost_epochs", "firmware", "metadata", "left_out",
    ]  # fmt: skip
    assert set(document["verdict"]) == {"fits", "verified", "scope", "limits", "exit_code"}
    assert set(document["verdict"]["limits"][0]) == {"field", "op", "limit", "value", "met"}
    assert set(document["artifact"]) == {"path", "bytes", "sha256", "form"}
    assert set(document["budget"]) == {
        "bytes", "floor_bytes", "max_nonzeros", "used_bytes", "slack_bytes",
    }  # fmt: skip
    assert set(document["result"]) == {
        "dense_bytes", "int8_bytes",
        "nonzeros", "weights", "sparsity", "artifact_bytes", "layers",
        "function_bytes", "bound_bytes",
    }  # fmt: skip
    assert set(document["result"]["layers"][0]) == {
        "name", "shape", "nonzeros", "codec", "value_type", "bytes", "packed_bytes",
        "index_bytes", "value_bytes", "index_bound_bytes", "value_bound_bytes", "stored_shape",
    }  # fmt: skip
    assert set(document["accuracy"]) == {
        "dense", "extreme", "final", "metric", "split", "samples", "trajectory",
    }  # fmt: skip
    assert set(document["metric"]) == {
        "name", "higher_is_better", "dense", "extreme", "final", "split", "samples", "trajectory",
    }  # fmt: skip
    assert set(document["latency"]) == {"dense", "stock", "kernels", "host", "onnxruntime"}
    assert {"p50_ms", "p90_ms", "runs", "threads", "batch"} <= set(document["latency"]["dense"])
    assert set(document["parity"]) == {"relative_error", "top1_agreement"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", 3),
        ("verdict", None),
        ("verdict.fits", ...),
        ("model", 3),
        ("surprise", 1),
        ("budget.surprise", 1),
        ("artifact.bytes", -1),
        ("accuracy.final", 90.25),
        ("result.sparsity", 1.5),
        ("parity.relative_error", "nan"),
        ("latency.dense.p50_ms", ...),
        ("environment", ...),
    ],
)
def test_what_is_not_a_report_is_refused(
    tmp_path: Path, sample_record: dict[str, Any], path: str, value: Any
) -> None:
    data = changed(sample_record, path, value)
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError) as caught:
        record.read(tmp_path)
    assert path.split(".")[-1] in caught.value.message
    with pytest.raises(HwpruneError):
        record.from_mapping(data)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"null"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"report\.json"):
        record.read(tmp_path)


def test_a_report_of_a_newer_version(tmp_path: Path, sample_record: dict[str, Any]) -> None:
    (tmp_path / "report.json").write_text(json.dumps({**sample_record, "schema_version": 3}))
    with pytest.raises(ArtifactError, match=r"has schema_version 3, this .* up to 2") as caught:
        record.read(tmp_path)
    assert "the hwprune that wrote it" in (caught.value.hint or "")


def test_missing_files_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no .*report\.json") as caught:
        record.read(tmp_path)
    assert "output folder" in (caught.value.hint or "")


def test_every_null_has_its_reason(tmp_path: Path, sample_record: dict[str, Any]) -> None:
    assert record.unexplained(record.from_mapping(sample_record)) == []
    data = changed(sample_record, "accuracy.extreme", None)
    data = changed(data, "parity.top1_agreement", None)
    found = record.from_mapping(data)
    assert record.unexplained(found) == ["accuracy.extreme", "parity.top1_agreement"]
    data["notes"] = [*data["notes"], "parity: the output is not (samples, classes)"]
    found = record.from_mapping(data)
    assert record.unexplained(found) == ["accuracy.extreme"]  # a section's note is enough
    record.write(found, tmp_path / "report.json")
    written = record.read(tmp_path)
    assert "accuracy.extreme: not measured" in written.notes
    assert record.unexplained(written) == []


def test_a_report_of_schema_1_is_read(tmp_path: Path, sample_record: dict[str, Any]) -> None:
    old = changed(changed(sample_record, "metric", ...), "schema_version", 1)
    (tmp_path / "report.json").write_text(json.dumps(old))
    assert record.read(tmp_path) == record.from_mapping(sample_record)
    unmeasured = dict.fromkeys(("dense", "extreme", "final", "metric", "split", "samples"))
    old["accuracy"] |= unmeasured | {"trajectory": []}
    (tmp_path / "report.json").write_text(json.dumps(old))
    found = record.read(tmp_path).metric
    assert (found.name, found.higher_is_better, found.final, found.trajectory) == (
        None, None, None, (),
    )  # fmt: skip


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, sample_record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "report.json"
    place.write_text("old")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        record.write(record.from_mapping(sample_record), place)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert place.read_text() == "old"


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        record.write_text("text", tmp_path / "gone" / "report.json")


def test_the_file_has_ordinary_permissions(tmp_path: Path) -> None:
    record.write_text("a", tmp_path / "ours")
    (tmp_path / "plain").write_text("a")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path, sample_record: dict[str, Any]) -> None:
    data = sample_record | {"model": "m\udcff", "command": "hwprune 'm\udcff'", "notes": ["\ud800"]}
    record.write(record.from_mapping(data), tmp_path / "report.json")
    found = record.read(tmp_path)
    assert (found.model, found.command) == ("m\\udcff", "hwprune 'm\\udcff'")
    assert "\\ud800" in found.notes


def test_the_schema_is_closed() -> None:
    assert Record.model_json_schema()["additionalProperties"] is False
