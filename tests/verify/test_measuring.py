from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from hwprune.errors import ArtifactError, DataError, UsageError, VerificationError
from hwprune.tasks import CLASSIFICATION
from hwprune.verify import check, environment, latency, measure, metric_of, resident, runner

WriteArtifact = Callable[..., Path]


class Samples:
    """A split of random images whose labels are given."""

    def __init__(self, count: int, labels: NDArray[np.int64] | None) -> None:
        generator = np.random.default_rng(7)
        self.images = generator.standard_normal((count, 3, 4, 4)).astype(np.float32)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        return (self.images[indices],)


def outputs_of(path: Path, samples: Samples) -> NDArray[np.float32]:
    session = runner.open_session(str(path))
    return runner.run_in_batches(session, [samples.images], batch=1)[0]


@pytest.mark.parametrize("batch", ["N", 4])
def test_accuracy_is_that_of_the_file(write_artifact: WriteArtifact, batch: int | str) -> None:
    path = write_artifact(batch=batch)
    samples = Samples(10, None)
    answers = outputs_of(path, samples).argmax(axis=1)
    wrong = np.where(np.arange(10) < 3, (answers + 1) % 5, answers)
    samples.labels = wrong.astype(np.int64)
    assert metric_of(str(path), samples, CLASSIFICATION, batch=3) == pytest.approx(0.7)


@pytest.mark.parametrize(("count", "labels"), [(3, None), (0, np.zeros(0, np.int64))])
def test_accuracy_needs_labelled_samples(
    write_artifact: WriteArtifact, count: int, labels: NDArray[np.int64] | None
) -> None:
    with pytest.raises(DataError, match="labelled samples"):
        metric_of(str(write_artifact()), Samples(count, labels), CLASSIFICATION)


def test_latency_of_two_files(write_artifact: WriteArtifact) -> None:
    files = {"a": str(write_artifact("a.onnx")), "b": str(write_artifact("b.onnx", form="dense"))}
    found = measure(files, runs=7, warmup=1, batch=3)
    assert list(found) == ["a", "b"]
    for result in found.values():
        assert 0 < result.p50_ms <= result.p90_ms
        assert result.load_ms > 0
        assert (result.runs, result.threads, result.batch) == (7, 1, 3)
        assert result.host.startswith("this host: ")


def test_files_are_measured_in_turn(
    write_artifact: WriteArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = runner.open_session

    class Spy:
        def __init__(self, session: Any, path: str) -> None:
            self.session, self.name = session, Path(path).stem

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run(self, *arguments: Any) -> Any:
            order.append(self.name)
            return self.session.run(*arguments)

    def spy(path: str, *, threads: int, kernels: bool) -> Spy:
        assert not kernels
        return Spy(real(path, threads=threads), path)

    monkeypatch.setattr(runner, "open_session", spy)
    files = {name: str(write_artifact(f"{name}.onnx")) for name in "ab"}
    measure(files, runs=3, warmup=2)
    # The inputs are tried once, then two runs warm up.
    assert order == ["a", "b"] * 6


def test_the_percentiles_are_those_of_the_runs(
    write_artifact: WriteArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([50.0, 7.0, 6.0, *range(1, 12)])  # three loads, then eleven runs
    monkeypatch.setattr(latency, "_since", lambda start: float(next(times)))
    found = measure({"a": str(write_artifact())}, runs=11, warmup=4)["a"]
    assert (found.load_ms, found.p50_ms, found.p90_ms) == (7, 6, 10)


def test_latency_refuses_a_batch_that_the_file_does_not_have(write_artifact: WriteArtifact) -> None:
    path = str(write_artifact(batch=4))
    assert measure({"a": path}, runs=1, warmup=0)["a"].batch == 4
    with pytest.raises(UsageError, match="fixed to 4"):
        measure({"a": path}, runs=1, batch=2)
    with pytest.raises(UsageError, match="runs is 0"):
        measure({"a": path}, runs=0)


def test_random_inputs_follow_the_seed(write_artifact: WriteArtifact) -> None:
    session = runner.open_session(str(write_artifact()))
    one, same = (runner.random_inputs(session, batch=2, seed=1)[0] for _ in range(2))
    other = runner.random_inputs(session, batch=2, seed=2)[0]
    assert one.shape == (2, 3, 4, 4)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_batch_is_the_axis_called_n(tmp_path: Path) -> None:
    shape = [20, "N", 8]
    one, two = (helper.make_tensor_value_info(name, 1, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [one], [two])
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "a.onnx")
    path = str(tmp_path / "a.onnx")
    session = runner.open_session(path)
    assert runner.fixed_batch(session) is None
    assert runner.random_inputs(session, batch=3)[0].shape == (20, 3, 8)
    assert [measure({"a": path}, runs=1, batch=b)["a"].batch for b in (None, 3)] == [1, 3]


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file"):
        runner.open_session(str(tmp_path / "gone.onnx"))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a model")
    with pytest.raises(VerificationError, match="does not load"):
        runner.open_session(str(damaged))
    with pytest.raises(VerificationError, match="does not load in a fresh process"):
        resident(str(damaged))


def test_paths_that_are_not_utf8(write_artifact: WriteArtifact) -> None:
    path = str(write_artifact("m\udcff.onnx"))
    assert check(path).exit_code == 0
    assert measure({"a": path}, runs=1, warmup=0)["a"].runs == 1
    assert resident(path).added_bytes > 0
    with pytest.raises(ArtifactError, match="no file"):
        runner.open_session(path + "gone")


def test_resident_memory_is_that_of_a_process_with_the_file(write_artifact: WriteArtifact) -> None:
    found = resident(str(write_artifact()))
    assert found.resident_bytes > 10 * 2**20  # Python and onnxruntime alone take more
    assert 0 <= found.added_bytes < found.resident_bytes


def test_environment_names_no_place() -> None:
    import platform

    found = environment()
    assert found["python"] == platform.python_version()
    assert found["cpu"]
    assert found["cpu_cores"] >= 1
    assert found["memory_bytes"] > 2**20
    assert not any(isinstance(value, str) and "/" in value for value in found.values())


def test_made_up_floats_that_rows_are_looked_up_by_are_whole_numbers() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[N,3] x, float[N,2] z) => (float[N,3] y) <float[2] t = {5, 7}>"
        "{ i = Cast <to = 7> (x)  r = Gather (t, i)  s = ReduceSum (z)  y = Add (r, s) }"
    )
    imports = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    arrays = runner.random_inputs(session, batch=20)
    assert [array.shape for array in arrays] == [(20, 3), (20, 2)]
    assert all({*array.reshape(-1).tolist()} == {0.0, 1.0} for array in arrays)
    runner.run(session, arrays)
