"""``hwprune.Pruner`` in loops that are not ours: exact bytes, a resume, and what it refuses."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import hwprune
from hwprune.errors import HwpruneError, UsageError
from hwprune.pruner import Pruner

STEPS = 40
BUDGET = 3072


class Regressor(nn.Module):
    """A small convolutional network with BN and three outputs that are no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 2, 8, 8) to (n, 3)."""
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.body(x)) + x
        return self.head(x.mean((2, 3)))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Regressor()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(step))
    return images, images.mean((2, 3))[:, :1] * torch.tensor([1.0, -2.0, 3.0])


def backward(model: nn.Module, step: int) -> None:
    images, targets = batch(step)
    nn.functional.mse_loss(model(images), targets).backward()


def made(model: nn.Module, optimizer: Any, **options: Any) -> Pruner:
    arguments: dict[str, Any] = {
        "target": "raspberry-pi-zero-2w", "budget": BUDGET, "example_input": batch(0)[0][:1],
        "steps": STEPS, "values": "int8",
    }  # fmt: skip
    return Pruner(model, optimizer, **{**arguments, **options})


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    model.train()
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def outputs(artifact: hwprune.Artifact, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    images = batch(99)[0]
    session = hwprune.session(artifact.path)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        return found, model.eval()(images).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "bidirectional", "prune_steps": 8, "exchanges": 6},
        {"strategy": "bidirectional-single", "gradient_batches": 2, "steps": STEPS},
        {"values": "codebook16", "strategy": "one-shot"},
        {"values": "fp32", "budget": 6000},
    ],
    ids=["default", "exchanges", "regrows", "codebook", "floats"],
)
def test_the_file_is_the_trained_network_and_uses_its_bytes(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = network()
    optimizer = sgd(model)
    pruner = made(model, optimizer, **options)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    train(model, optimizer, range(STEPS))
    assert pruner.finished
    assert model.training or options.get("values") == "codebook16"
    artifact = pruner.export(tmp_path / "out")
    assert artifact.verdict.exit_code == 0
    budget = options.get("budget", BUDGET)
    assert 0.98 * budget <= artifact.bytes <= budget
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    found, expected = outputs(artifact, model)
    assert np.allclose(found, expected, atol=1e-3 * float(np.abs(expected).max() + 1))
    report = artifact.report
    assert report["strategy"] == options.get("strategy", "cubic")
    assert any("in a loop of the caller's own" in note for note in report["notes"])
    assert (tmp_path / "out" / "report.json").is_file()
    pruner.detach()


@pytest.mark.parametrize(
    ("strategy", "after"),
    [
        ("bidirectional", 15),
        ("bidirectional-single", 12),
        pytest.param("cubic", 35, marks=pytest.mark.slow),
        pytest.param("bidirectional", 35, marks=pytest.mark.slow),
    ],
)
def test_a_resume_gives_the_same_file(tmp_path: Path, strategy: str, after: int) -> None:
    """In the middle of the events, and in the value phase; the plan is not made anew."""
    few = {"prune_steps": 8, "exchanges": 6} if strategy == "bidirectional" else {}
    files = []
    for interrupted in (False, True):
        model = network()
        optimizer = sgd(model)
        pruner = made(model, optimizer, strategy=strategy, gradient_batches=3, **few)
        train(model, optimizer, range(after))
        if interrupted:
            path = tmp_path / "run.pt"
            torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], path)
            saved = torch.load(path, weights_only=True)
            model = Regressor()
            model.load_state_dict(saved[0])
            optimizer = sgd(model)
            pruner = made(model, optimizer, strategy=strategy, gradient_batches=3, **few)
            optimizer.load_state_dict(saved[1])
            pruner.load_state_dict(saved[2])
            assert pruner.step == after
        train(model, optimizer, range(after, STEPS))
        artifact = pruner.export(tmp_path / str(interrupted))
        files.append(Path(artifact.path).read_bytes())
    assert files[0] == files[1]


def test_accumulated_gradients_and_an_average(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruner = made(model, optimizer)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    for step in range(4 * STEPS):
        backward(model, step)
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
    assert (pruner.step, pruner.finished) == (STEPS, True)
    artifact = pruner.export(tmp_path / "out", model=average)
    assert artifact.verdict.exit_code == 0
    saved = load_file(tmp_path / "out" / "checkpoint" / "weights.safetensors")
    kept = load_file(tmp_path / "out" / "checkpoint" / "masks.safetensors")
    for name, mask in kept.items():
        assert not saved[name][~mask.astype(bool)].any(), name
    pruner.apply_masks(average)
    masks = pruner.masks
    for name, parameter in average.module.named_parameters():
        if name in masks:
            assert not np.any(parameter.detach().numpy()[~masks[name]])
    found, expected = outputs(artifact, average.module)
    assert np.allclose(found, expected, atol=0.05 * float(np.abs(expected).max()))
    assert not np.allclose(found, outputs(artifact, model)[1], atol=1e-6)


def test_what_is_not_met_is_rejected(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    pruner = made(model, optimizer)
    train(model, optimizer, range(STEPS))
    artifact = pruner.export(tmp_path / "out", require="size<=100")
    assert artifact.verdict.exit_code == 3
    assert Path(artifact.path).name == "rejected.onnx"
    with pytest.raises(UsageError, match="accuracy"):
        pruner.export(tmp_path / "out", require="accuracy>=0.5")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "budget": ({"budget": "1MiB"}, "the dense model fits"),
    "steps": ({"steps": 3, "strategy": "cubic"}, "3 steps are too few for the"),
    "strategy": ({"strategy": "cubik"}, "there is no strategy 'cubik'"),
    "option": ({"untill": 0.5}, "no option 'untill'"),
    "values": ({"values": "int3"}, "cannot decode int3"),
    "phase": ({"quantise_from": 2.0}, "quantise_from is 2.0"),
    "dyrelu": ({"strategy": "east", "steps": 400}, "swaps activations"),
    "example": ({"example_input": torch.zeros(1, 3, 8, 8)}, ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said_before_training(case: str) -> None:
    model = network()
    options, says = REFUSED[case]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(HwpruneError) as caught:
        made(model, sgd(model), **options)
    assert says in caught.value.message
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    made(model, sgd(model)).detach()  # nothing of the refused one is left


def test_parameters_have_to_be_the_optimisers(tmp_path: Path) -> None:
    model = network()
    assert isinstance(model, Regressor)
    with pytest.raises(UsageError, match=r"does not hold stem\.weight"):
        made(model, torch.optim.SGD(model.head.parameters(), lr=0.1))
    with pytest.raises(UsageError, match="LBFGS"):
        made(model, torch.optim.LBFGS(model.parameters()))
    model.body.weight.requires_grad_(False)
    with pytest.raises(UsageError, match=r"body\.weight is frozen") as caught:
        made(model, sgd(model))
    assert "prune_frozen" in (caught.value.hint or "")
    frozen = model.body.weight.detach().clone()
    trained = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    pruner = made(model, trained, prune_frozen=True, quantise_from=1.0)
    train(model, trained, range(STEPS))
    kept = torch.from_numpy(pruner.masks["body.weight"])
    assert torch.equal(model.body.weight[kept], frozen[kept])
    assert pruner.export(tmp_path / "out").verdict.exit_code == 0


def test_one_pruner_a_module_and_no_export_before_the_end(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    pruner = made(model, optimizer)
    with pytest.raises(UsageError, match="has a Pruner already"):
        made(torch.compile(model), optimizer)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the optimiser has not stepped"):
        pruner.export(tmp_path / "out")
    train(model, optimizer, range(5))
    with pytest.raises(UsageError, match="not final at step 5 of 40"):
        pruner.export(tmp_path / "out")
    other = sgd(model)
    pruner.attach(other)
    train(model, optimizer, range(1))
    assert pruner.step == 5
    train(model, other, range(5, STEPS))
    assert pruner.finished
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(UsageError, match="are not zero any more") as caught:
        pruner.export(tmp_path / "out")
    assert "apply_masks" in (caught.value.hint or "")
    pruner.apply_masks(model)
    pruner.export(tmp_path / "out")


def test_the_state_of_another_pruner_is_refused() -> None:
    model = network()
    state = made(model, sgd(model)).state_dict()
    for change, says in (
        ({"budget": 4000}, "budget_bytes was 3072, is 4000"),
        ({"steps": 50}, "steps was 40, is 50"),
        ({"target": "jetson-nano"}, "target was 'raspberry-pi-zero-2w'"),
        ({"strategy": "one-shot"}, "strategy was 'cubic'"),
    ):
        other = network()
        with pytest.raises(UsageError, match=re.escape(says)):
            made(other, sgd(other), **change).load_state_dict(state)


def test_the_page_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "loop.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(example, "docs/loop.md", "exec"), names)
    artifact = names["artifact"]
    assert artifact.verdict.exit_code == 0
    assert 0.995 * 6144 <= artifact.bytes <= 6144
    session = hwprune.session(artifact.path)
    inputs, targets = names["inputs"], names["targets"]
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    error = np.square(found - targets.numpy()).mean() / np.square(targets.numpy()).mean()
    assert error < 0.2  # it has learnt something


def test_a_compiled_module_is_traced_once() -> None:
    model = network()
    optimizer = sgd(model)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    pruner = made(compiled, optimizer, strategy="bidirectional", prune_steps=8, exchanges=6)
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(compiled, optimizer, range(STEPS))
    assert pruner.finished
    plain = network()
    alone = sgd(plain)
    made(plain, alone, strategy="bidirectional", prune_steps=8, exchanges=6)
    train(plain, alone, range(STEPS))
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-4), name


def test_the_buckets_of_several_processes_stay_valid() -> None:
    states = []
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        for wrapped in (False, True):
            model = network()
            outer = nn.parallel.DistributedDataParallel(model) if wrapped else model
            optimizer = sgd(outer)
            pruner = made(outer, optimizer)
            train(outer, optimizer, range(STEPS))
            assert pruner.finished
            states.append(model.state_dict())
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_resumed_pruner_keeps_the_plan_of_the_unpruned_weights() -> None:
    model = network()
    state = made(model, sgd(model)).state_dict()
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(torch.rand(parameter.shape) < 0.1)
    pruner = made(other, sgd(other))
    state["density"] /= 2  # what these weights would not be planned with
    pruner.load_state_dict(state)
    assert pruner.state_dict()["density"] == state["density"]
    for name, tensor in pruner.state_dict()["pretrained"].items():
        assert torch.equal(tensor, model.state_dict()[name])
