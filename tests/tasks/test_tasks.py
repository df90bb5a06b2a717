"""Every built-in task, and a file of one's own, as docs/tasks.md has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hwprune
from hwprune.cli.main import main
from hwprune.errors import DataError, HwpruneError, ModelError, UsageError
from hwprune.frontend import load_data
from hwprune.frontend.task_file import load_task
from hwprune.tasks import CLASSIFICATION, TASKS
from hwprune.training.batches import Batch, Batches
from hwprune.training.losses import Objective, check_labels
from hwprune.training.recipe import Recipe
from hwprune.trees import Outputs
from hwprune.verify import metric_of

pytestmark = pytest.mark.usefixtures("no_memory_measured")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text()
DATA, PARTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class Body(nn.Module):
    """Two layers that are worth pruning, in front of whatever a task asks for."""

    def __init__(self, inputs: int, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(torch.relu(self.body(x)))


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.two(torch.relu(self.one(x))))))


class Tokens(Body):
    def __init__(self) -> None:
        super().__init__(24, 12)
        self.symbols = nn.Embedding(12, 24)

    def forward(self, ids: torch.Tensor) -> Any:
        return {"hidden": self.symbols(ids), "logits": super().forward(self.symbols(ids))}


class Parts(Body):
    def forward(self, x: torch.Tensor) -> Any:
        both = super().forward(x)
        return {"first": both[:, :1], "sum": both[:, 1:]}


class Boxes(Pixels):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> Any:
        made = nn.functional.avg_pool2d(super().forward(x), 4)
        return {"scores": made[:, :1], "boxes": torch.sigmoid(made[:, 1:])}


def boxes() -> dict[str, np.ndarray]:
    """Return images of 16 by 16 with one bright rectangle each, and where it is."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 8, (400, 2))
    high = low + rng.integers(4, 8, (400, 2))
    images = rng.random((400, 1, 16, 16), np.float32) / 4
    for image, (x0, y0), (x1, y1) in zip(images, low, high, strict=True):
        image[0, y0:y1, x0:x1] = 1
    column, row = ((low + high) // 2 // 4).T
    box = np.concatenate([low, high], 1).astype(np.float32) / 16
    return {"x": images, "y.cell": 4 * row + column, "y.box": box}


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "multilabel": lambda: Body(8, 3),
    "regression": lambda: Body(8, 1),
    "segmentation": Pixels,
    "reconstruction": lambda: Body(8, 8),
    "ctc": lambda: Body(6, 6),
    "causal-lm": Tokens,
    "parts": lambda: Parts(8, 2),
    "detection": Boxes,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's own data and task file."""
    place = tmp_path_factory.mktemp("tasks")
    (place / "parts.py").write_text(PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(DATA, {})
        np.savez("detection.npz", **boxes())
    return place


def compiled(folder: Path, name: str, task: str, output: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    size = sum(4 * p.numel() for p in network.parameters())
    example = torch.zeros(1, 10, dtype=torch.int64) if name == "causal-lm" else None
    options = {"budget": 1500 + size // 8, "epochs": 1, "values": "int8", **options}
    return network, hwprune.compile(
        network, target="raspberry-pi-5", data=f"npz:{folder / name}.npz?normalize=none",
        task=task, example_input=example, output=output, device="cpu", **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_task_runs_and_the_files_metric_is_that_of_torch(
    folder: Path, tmp_path: Path, name: str
) -> None:
    text = {
        "parts": str(folder / "parts.py"),
        "causal-lm": "causal-lm?output=logits",
        "detection": str(ROOT / "examples" / "detection_task.py"),
    }.get(name, name)
    network, artifact = compiled(folder, name, text, tmp_path, require=["metric_drop<=1e9"])
    task, report = load_task(text), artifact.report
    assert artifact.verdict.exit_code == 0, report["notes"]
    assert artifact.bytes <= report["budget"]["bytes"]
    found = report["metric"]
    assert found["name"] == task.metric.name
    assert found["higher_is_better"] == task.metric.higher_is_better
    assert report["accuracy"]["final"] is None
    split = load_data(f"npz:{folder / name}.npz?normalize=none", task=task).test
    assert found["samples"] == len(split)
    assert found["final"] == metric_of(artifact.path, split, task)
    network.load_state_dict(load_file(tmp_path / "checkpoint" / "weights.safetensors"))
    every = np.arange(len(split))
    (inputs,) = split.batch(every)
    with torch.no_grad():
        made = network.eval()(torch.from_numpy(inputs))
    made = {k: v.numpy() for k, v in made.items()} if isinstance(made, dict) else made.numpy()
    rows = task.metric.rows(task.counted(made), task.targets((inputs,), split.labels))
    assert task.metric.value(rows) == pytest.approx(found["final"], abs=1e-3)


@pytest.mark.parametrize("outputs", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_unlabelled_regression_is_no_worse_than_least_squares_alone(
    outputs: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1200, 8)).astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
        )
    y = np.tanh(x[:, :3]).sum(1, keepdims=True) * 2 + 3
    y = np.concatenate([y, x[:, 3:4] * x[:, 4:5], np.abs(x[:, 5:6])], 1)[:, :outputs]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    np.savez(tmp_path / "bare.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, y=y)
    split = load_data(
        f"npz:{tmp_path / 'labelled.npz'}?normalize=none", task=TASKS["regression"]
    ).test
    reached = {}
    for epochs in (0, 4):
        artifact = hwprune.compile(
            network, target="raspberry-pi-zero-2w", budget="4KiB", epochs=epochs, values="int8",
            data=f"npz:{tmp_path / 'bare.npz'}?normalize=none", output=tmp_path / str(epochs),
        )  # fmt: skip
        reached[epochs] = metric_of(artifact.path, split, TASKS["regression"])
        assert artifact.report["metric"]["final"] is None
    (inputs,) = split.batch(np.arange(len(split)))
    with torch.no_grad():
        answers = network(torch.from_numpy(inputs)).numpy()
    rmse = TASKS["regression"].metric
    dense = rmse.value(rmse.rows(answers, split.labels))
    assert reached[4] <= reached[0]
    assert reached[4] <= 1.6 * dense


def test_a_regression_uses_its_bytes_and_is_no_worse_than_without_training(tmp_path: Path) -> None:
    """At 92 % sparsity most channels are gone: what is left takes the bytes that they had."""
    rng = np.random.default_rng(0)
    x = rng.random((1000, 10)).astype(np.float32)
    y = (10 * np.sin(3 * x[:, :1] * x[:, 1:2]) + 10 * x[:, 3:4]).astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)
        )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    found, notes = {}, {}
    for name, recipe in (
        ("none", {"epochs": 0}), ("bad", {"epochs": 1, "learning_rate": 1e-9}),
    ):  # fmt: skip
        artifact = hwprune.compile(
            network, target="raspberry-pi-zero-2w", budget=4096, values="int8", task="regression",
            data=f"npz:{tmp_path / 'data.npz'}?normalize=none", recipe=recipe, max_drop="off",
            output=tmp_path / name,
        )  # fmt: skip
        assert 0.995 * 4096 <= artifact.bytes <= 4096
        found[name] = artifact.report["metric"]["final"]
        notes[name] = " ".join(artifact.report["notes"])
    assert "with least squares alone (--epochs 0), whose weights were taken" in notes["bad"]
    assert found["bad"] == pytest.approx(found["none"], rel=0.02)


def test_check_measures_the_task_on_the_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, artifact = compiled(folder, "parts", str(folder / "parts.py"), tmp_path)
    data = f"npz:{folder / 'parts.npz'}?normalize=none"
    capsys.readouterr()
    task = ["--task", str(folder / "parts.py"), "--data", data]
    (tmp_path / "report.json").rename(tmp_path / "old.json")  # nobody knows the dense file's
    found = artifact.report["metric"]["final"]

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = main(["check", artifact.path, "--json", *arguments])
        return code, json.loads(capsys.readouterr().out)

    code, document = run(*task, "--require", f"worst_error<={found + 1e-6}")
    assert code == 0, document
    assert document["artifacts"][0]["limits"][0]["value"] == pytest.approx(found)
    assert run(*task, "--require", f"metric<={found / 2}")[0] == 3
    assert run(*task, "--require", "worst_error<=1.1x")[0] == 2
    (tmp_path / "old.json").rename(tmp_path / "report.json")
    assert run(*task, "--require", "worst_error<=99x")[0] == 0
    code, document = run("--task", "regression")
    assert code == 2
    assert "without --data" in document["error"]["message"]


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("regresion", "'regresion' is not a task", "did you mean regression?"),
        ("regression?metric=rsme", "'rsme' is not a metric", "rmse"),
        ("regression?weight=1", "'weight' is not an option", "?metric=NAME"),
        ("gone.py", "there is no such file", "--task"),
        ("def loss(o, b): ...", "there is no metric; it has loss", "function of outputs"),
        ("def metric(o, l): ...", "the metric has no direction", "higher_is_better = True"),
        ("metric = 3\nhigher_is_better = True", "metric is 3", "update, compute"),
        (
            "def metric(o, l): ...\nhigher_is_better = True\nimitation = 'softly'",
            "imitation is 'softly'", "yes-or-no",
        ),
        ("def metric(o, l): ...\nhigher_is_better = True\nloss = 3", "loss is 3", ""),
    ],
)  # fmt: skip
def test_what_is_no_task(tmp_path: Path, text: str, says: str, hint: str) -> None:
    if " " in text:
        (tmp_path / "t.py").write_text(text)
        text = str(tmp_path / "t.py")
    with pytest.raises(HwpruneError) as caught:
        load_task(text)
    assert says in caught.value.message
    assert hint in (caught.value.hint or "")


class Streaming:
    """As torchmetrics has it; torch tensors where it is a module."""

    higher_is_better = False

    def reset(self) -> None:
        self.total = 0.0

    def update(self, outputs: Any, labels: Any) -> None:
        assert isinstance(outputs, np.ndarray)
        self.total += float(np.abs(outputs - labels).sum())

    def compute(self) -> float:
        return self.total


class StreamingModule(nn.Module, Streaming):
    def update(self, outputs: Any, labels: Any) -> None:
        assert isinstance(outputs, torch.Tensor)
        self.total += float((outputs - labels).abs().sum())


@pytest.mark.parametrize("kind", [Streaming, StreamingModule])
def test_a_metric_may_be_an_object(tmp_path: Path, kind: type) -> None:
    (tmp_path / "t.py").write_text(
        f"from {__name__} import {kind.__name__}\nmetric = {kind.__name__}()\n"
    )
    metric = load_task(str(tmp_path / "t.py")).metric
    rows = metric.rows(np.ones((4, 2), np.float32), np.zeros((4, 2), np.float32))
    assert (metric.name, metric.higher_is_better) == (kind.__name__.lower(), False)
    assert metric.value(rows) == metric.value(rows) == 8.0


def test_outputs_that_are_not_there_are_named() -> None:
    outputs = Outputs([np.zeros((2, 3)), np.ones((2, 1))], ["boxes", "scores"])
    assert outputs["scores"] is outputs[1]
    task = load_task("regression?output=score")
    with pytest.raises(ModelError, match="no output 'score'; it has boxes, scores"):
        task.counted(outputs)
    assert load_task("regression?output=scores").counted(outputs) is outputs[1]
    assert load_task("regression?output=1").counted(tuple(outputs)) is outputs[1]
    with pytest.raises(KeyError, match="it has boxes, scores"):
        outputs["score"]


def test_the_input_is_what_outputs_are_compared_with_where_the_task_says_so() -> None:
    inputs, labels = [np.zeros(3), np.zeros(2)], np.ones(3)
    found = {
        name: [task.targets(inputs, given) for given in (labels, None)]
        for name, task in TASKS.items()
    }
    assert found["causal-lm"][0] is labels
    assert found["causal-lm"][1] is inputs[0]
    assert all(each is inputs[0] for each in found["reconstruction"])
    assert found["regression"][0] is labels
    assert found["regression"][1] is None


@pytest.mark.parametrize(
    ("name", "arrays", "says"),
    [
        ("regression", {"x": (9, 4), "y": (8, 1)}, "8 for 9 samples"),
        ("regression", {"x": (9, 4), "y.a": (9, 1), "y.b": (7,)}, "labels b: 7 for 9 samples"),
        ("regression", {"x": (9, 4), "y": (9,), "x_test": (3, 4)}, "test has no labels"),
        ("regression", {"x.a": (9, 4), "x.b": (8, 4)}, "x.b has 8 samples, others 9"),
        ("classification", {"x": (9, 4), "y.a": (9,)}, "several parts"),
        ("classification", {"x": (9, 4), "y": (9,)}, "expected integers"),
    ],
)
def test_labels_that_do_not_fit(
    tmp_path: Path, name: str, arrays: dict[str, tuple[int, ...]], says: str
) -> None:
    np.savez(tmp_path / "d.npz", **{k: np.ones(shape, np.float32) for k, shape in arrays.items()})
    with pytest.raises(DataError, match=says) as caught:
        load_data(f"npz:{tmp_path / 'd.npz'}", task=TASKS[name])
    if "integers" in says:
        assert "--task regression" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "labels", "outputs", "says"),
    [
        ("classification", [0, 3], (2, 3), "from 0 to 3, but the network has 3 outputs"),
        ("segmentation", [[[0, 3]]], (1, 3, 1, 2), "from 0 to 3"),
        ("ctc", [[0, 1]], (1, 5, 3), "0 is the blank"),
        ("causal-lm", [[1, 7]], (1, 2, 5), "from 1 to 7"),
        ("multilabel", [[0, 2]], (1, 2), "takes 0 and 1"),
    ],
)
def test_labels_that_no_output_answers(
    name: str, labels: list[Any], outputs: tuple[int, ...], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        check_labels(TASKS[name], torch.tensor(labels), torch.zeros(outputs))
    check_labels(TASKS["segmentation"], torch.tensor([[[255, -1]]]), torch.zeros(1, 3, 1, 2))


def test_a_loss_has_to_be_one_number(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(
        "def loss(o, b): return o\ndef metric(o, l): return 0.0\nhigher_is_better = True\n"
    )
    with pytest.raises(UsageError, match="which is no scalar tensor"):
        compiled(folder, "regression", str(tmp_path / "t.py"), tmp_path / "o")


@pytest.mark.parametrize("given", ["float('nan')", "None", "'good'"])
def test_a_metric_has_to_be_a_finite_number(folder: Path, tmp_path: Path, given: str) -> None:
    (tmp_path / "t.py").write_text(
        "def loss(o, b): return (o - b.labels).square().mean()\n"
        f"def metric(o, l): return {given}\nhigher_is_better = True\n"
    )
    with pytest.raises(DataError, match="which is no finite number"):
        compiled(folder, "regression", str(tmp_path / "t.py"), tmp_path / "o")


def test_the_dense_network_is_imitated_as_the_task_says(folder: Path) -> None:
    split = load_data(f"npz:{folder / 'regression.npz'}", task=TASKS["regression"]).train
    batches = Batches(split, device="cpu", resident_bytes=0, channels_last=False)
    recipe = Recipe(distillation_weight=1.0, temperature=1.0)
    teacher = Body(8, 1).eval()
    batch = next(iter(batches))
    with torch.no_grad():
        answers = teacher(batch.inputs[0])
    values = Objective(TASKS["regression"], recipe, batches, teacher)
    assert float(values(answers, batch, answers)) == 0.0
    moved = float(values(answers + answers.std(), batch, answers))
    assert moved == pytest.approx(np.log(2), abs=0.1)  # off by one standard deviation
    # One output is never a softmax of one class, which would be right whatever it says.
    classes, bare = TASKS["segmentation"], Batch(batch.inputs, None)
    grid = answers.reshape(-1, 1, 1, 1)
    yes = Objective(classes, recipe, batches, teacher)
    assert float(yes(grid + 1, bare, grid)) > float(yes(grid, bare, grid))
    logits = torch.randn(6, 3)
    kl = Objective(CLASSIFICATION, recipe, batches, None)
    assert float(kl(logits + 5, Batch((logits,), None), logits)) == pytest.approx(0.0, abs=1e-6)
