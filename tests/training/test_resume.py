"""A run that is stopped and continued ends as the run that was not: every bit of it."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.errors import CheckpointError, HwpruneError
from hwprune.ir import Data
from hwprune.sparsity import make
from hwprune.training import Checkpoint, FinetuneConfig, Recipe, TrainResult, checkpoints, finetune
from hwprune.training.statefile import read_state, write_state

EPOCHS = 4
RECIPE = Recipe(epochs=EPOCHS, batch_size=32, precision="fp32", learning_rate=0.05)
RECIPES = {
    "plain": {},
    "best": {"checkpoint": "best"},
    "everything": {
        "ema_decay": 0.9, "interpolate": 2, "sharpness": 0.05, "cutout": 2, "channels_last": False,
        "checkpoint": "best",
    },
}  # fmt: skip


_WHOLE: dict[str, tuple[nn.Module, TrainResult]] = {}


class Stopped(Exception):
    """What stands for the end of the process."""


@pytest.fixture(scope="module")
def data() -> Data:
    return nets.digits(samples=400)


def tune(
    data: Data, checkpoint: Checkpoint | None, **changes: Any
) -> tuple[nn.Module, TrainResult]:
    """Train a network with dropout, which draws from the global generator."""
    module = changes.pop("module", None) or nets.small_cnn(dropout=0.2)
    stop_after = changes.pop("stop_after", None)

    def progress(event: Any) -> None:
        if stop_after is not None and event.message.startswith(f"epoch {stop_after + 1} of"):
            raise Stopped

    arguments: dict[str, Any] = {
        "data": data,
        "names": nets.NAMES,
        "strategy": make("bidirectional-single", density=0.1, depth=0.6, steps=2),
        "fill": nets.fill_count(350),
        "recipe": RECIPE,
        "teacher": copy.deepcopy(module),
        "seed": 3,
        "progress": progress,
        "checkpoint": checkpoint,
    } | changes
    return module, finetune(FinetuneConfig(module=module, **arguments))


def same(first: nn.Module, second: nn.Module) -> bool:
    states = [module.state_dict() for module in (first, second)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def without_seconds(result: TrainResult) -> list[dict[str, Any]]:
    return [{k: v for k, v in point.items() if k != "seconds"} for point in result.trajectory]


def interrupted(path: Path, data: Data, after: int, **changes: Any) -> Checkpoint:
    """Leave the checkpoint of a run that was stopped while the epoch after ``after`` ended."""
    checkpoint = Checkpoint(path / ".resume" / "run", every_seconds=0)
    with pytest.raises(Stopped):
        tune(data, checkpoint, stop_after=after, **changes)
    return dataclasses.replace(checkpoint, resume=True)


@pytest.mark.parametrize(
    ("recipe", "after"),
    [("plain", 1), ("plain", 2), ("plain", 3), ("best", 3), ("everything", 1), ("everything", 3)],
)
def test_the_same_bits(data: Data, tmp_path: Path, recipe: str, after: int) -> None:
    options = {"recipe": dataclasses.replace(RECIPE, **RECIPES[recipe])}
    if recipe not in _WHOLE:
        _WHOLE[recipe] = tune(data, None, **options)
    whole, expected = _WHOLE[recipe]
    checkpoint = interrupted(tmp_path, data, after, **options)
    torch.manual_seed(99)  # of no consequence
    module, result = tune(data, checkpoint, **options)
    assert same(whole, module)
    assert without_seconds(result) == without_seconds(expected)
    for field in ("final_metric", "extreme_metric", "best_epoch", "steps", "dense_metric"):
        assert getattr(result, field) == getattr(expected, field)
    assert f"continued after epoch {after} of {EPOCHS}, from a checkpoint" in result.notes
    seconds = [point["seconds"] for point in result.trajectory]
    assert seconds == sorted(seconds)


COURSES = {
    "gradient": make("bidirectional-single", density=0.1),
    "random": make("set", density=0.1),
}


@pytest.mark.parametrize("course", COURSES)
def test_the_same_bits_along_every_course(data: Data, tmp_path: Path, course: str) -> None:
    options = {"strategy": COURSES[course]}
    whole, expected = tune(data, None, **options)
    module, result = tune(data, interrupted(tmp_path, data, 2, **options), **options)
    assert same(whole, module)
    assert without_seconds(result) == without_seconds(expected)


def test_data_that_differ_each_time_are_told_by_their_labels_and_shapes(
    data: Data, tmp_path: Path
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Noisy(nets.ArraySplit):
        def batch(self, indices: Any) -> tuple[Any, ...]:
            return (super().batch(indices)[0] + np.random.default_rng().normal(0, 0.01),)

    assert isinstance(data.train, nets.ArraySplit)
    train = Noisy(data.train.arrays, data.train.labels)
    noisy = dataclasses.replace(data, train=train)
    checkpoint = interrupted(tmp_path, noisy, 3)
    _, result = tune(noisy, checkpoint)
    assert result.epochs == EPOCHS
    assert train.labels is not None
    other = dataclasses.replace(data, train=Noisy(train.arrays, train.labels[::-1].copy()))
    with pytest.raises(CheckpointError, match="the training data was"):
        tune(other, checkpoint)


def test_after_the_last_epoch_nothing_is_trained_twice(data: Data, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run", every_seconds=0)
    whole, expected = tune(data, checkpoint)
    told: list[str] = []
    module, result = tune(
        data,
        dataclasses.replace(checkpoint, resume=True),
        progress=lambda event: told.append(event.message),
    )
    assert same(whole, module)
    assert without_seconds(result) == without_seconds(expected)
    assert told == [f"continued after epoch {EPOCHS} of {EPOCHS}, from a checkpoint"]


def test_without_a_checkpoint_it_starts_and_says_so(data: Data, tmp_path: Path) -> None:
    told: list[str] = []
    module, _ = tune(
        data,
        Checkpoint(tmp_path / "none", resume=True),
        progress=lambda event: told.append(event.message),
    )
    assert "no checkpoint to resume from" in told[0]
    assert same(module, tune(data, None)[0])
    assert not (tmp_path / "none").exists()  # 30 s had not passed


def test_without_resume_the_new_run_replaces_it_once_it_has_one(data: Data, tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path, data, 2)
    before = checkpoint.path.read_bytes()
    told: list[str] = []

    def progress(event: Any) -> None:
        told.append(event.message)
        if event.message.startswith("epoch 1 of"):
            assert checkpoint.path.read_bytes() == before
            raise Stopped

    with pytest.raises(Stopped):
        tune(data, Checkpoint(checkpoint.path, every_seconds=0), progress=progress)
    assert "--resume would have continued it" in told[0]
    tune(data, Checkpoint(checkpoint.path, every_seconds=0))
    assert read_state(checkpoint.path)["state"]["progress"][1] == EPOCHS
    checkpoint.discard()
    assert list(tmp_path.iterdir()) == []


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 4}, "seed was 3 in the checkpoint, is 4 in this run"),
    "rate": (
        {"recipe": dataclasses.replace(RECIPE, learning_rate=0.04)},
        "recipe.learning_rate was 0.05 in the checkpoint, is 0.04 in this run",
    ),
    "epochs": ({"recipe": dataclasses.replace(RECIPE, epochs=5)}, "recipe.epochs was 4"),
    "strategy": ({"strategy": make("cubic", density=0.1)}, "strategy was bidirectional"),
    "options": (
        {"strategy": make("bidirectional-single", density=0.1, depth=0.6, steps=3)},
        "strategy was bidirectional",
    ),
    "network": ({"module": nets.small_cnn(seed=1)}, "the network was Sequential"),
    "data": ({"data": nets.digits(samples=402)}, "the training data was 280 samples"),
    "batchnorm": ({"train_batchnorm": False}, "BN is trained was True"),
}


@pytest.fixture(scope="module")
def left(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The checkpoint of a run that was stopped after its first epoch; nobody changes it."""
    return interrupted(tmp_path_factory.mktemp("left"), data, 1)


@pytest.mark.parametrize("other", OTHERS)
def test_the_checkpoint_of_another_run_is_refused(data: Data, left: Checkpoint, other: str) -> None:
    changes, says = OTHERS[other]
    before = left.path.read_bytes()
    with pytest.raises(CheckpointError, match="of another run") as caught:
        tune(**{"data": data, "checkpoint": left, **changes})
    assert says in caught.value.message
    assert "--resume" in (caught.value.hint or "")
    assert left.path.read_bytes() == before


def test_other_code_and_what_the_caller_adds_are_refused(
    data: Data, left: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = dataclasses.replace(left, identity={"the budget": "12 KiB"})
    with pytest.raises(CheckpointError, match=r"the budget was None in the .* is 12 KiB in this"):
        tune(data, mine)
    monkeypatch.setattr("hwprune.training.identity.code_digest", lambda: "abc")
    with pytest.raises(CheckpointError, match=r"hwprune was .*, is .*, code abc in this run"):
        tune(data, left)


def test_elsewhere_it_goes_on_and_says_so(
    data: Data, left: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "0.1")
    _, result = tune(data, left)
    assert any("not bit for bit" in note and "now" in note for note in result.notes)


def test_a_run_ends_in_the_arithmetic_that_it_began_in(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"recipe": dataclasses.replace(RECIPE, epochs=2, precision="auto")}
    monkeypatch.setattr("hwprune.training.precision._cpu_has_bf16", lambda: True)
    whole, expected = tune(data, None, **options)
    checkpoint = interrupted(tmp_path, data, 1, **options)
    monkeypatch.setattr("hwprune.training.precision._cpu_has_bf16", lambda: False)
    module, result = tune(data, checkpoint, **options)
    assert (expected.precision, result.precision) == ("bf16", "bf16")
    assert same(whole, module)


@pytest.mark.parametrize("cut", [0, 5, 100, 0.5, -1])
def test_a_truncated_checkpoint_is_refused(
    data: Data, left: Checkpoint, tmp_path: Path, cut: float
) -> None:
    whole = left.path.read_bytes()
    size = int(cut * len(whole)) if isinstance(cut, float) else cut
    path = tmp_path / "run"
    path.write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        tune(data, dataclasses.replace(left, path=path))
    assert "without --resume" in (caught.value.hint or "")


def test_a_flipped_bit_is_found_wherever_it_is(left: Checkpoint, tmp_path: Path) -> None:
    whole = bytearray(left.path.read_bytes())
    path = tmp_path / "run"
    for at in [*range(0, 64, 7), *range(64, len(whole), len(whole) // 40), len(whole) - 1]:
        changed = whole.copy()
        changed[at] ^= 4
        path.write_bytes(changed)
        with pytest.raises(CheckpointError):
            read_state(path)


@pytest.mark.parametrize("header", ["3", "[]", '{"__metadata__": 3}', '{"__metadata__": {}}'])
def test_a_header_of_another_form_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "run"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(path)


def test_a_full_disk_does_not_end_the_run(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fine = checkpoints.write_state, [True, False, False, True]

    def write(path: Path, tree: Any) -> None:
        if not fine.pop(0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, tree)

    monkeypatch.setattr(checkpoints, "write_state", write)
    module, result = tune(data, Checkpoint(tmp_path / "run", every_seconds=0))
    assert same(module, tune(data, None)[0])
    assert sum("No space left on device" in note for note in result.notes) == 1
    assert read_state(tmp_path / "run")["state"]["progress"][1] == EPOCHS


def test_half_a_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    write_state(path, {"number": 1})

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="full"):
            write_state(path, {"number": 2})
    assert read_state(path) == {"number": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_the_file_is_safetensors_and_gives_back_what_it_was_given(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    kernel = torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last)
    tree = {
        "kernel": kernel,
        "list": [1, 2.5, None, True, "a\nb", (0.1, 3)],
        "every third": torch.arange(9.0)[::3],
        "half": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "nothing": torch.empty(0, 4),
        "mask": np.array([[True, False]]),
        "by number": {0: {"momentum_buffer": kernel + 1}},
        "float": float("0.1") + 0.2,
    }
    write_state(tmp_path / "run", tree)
    found = read_state(tmp_path / "run")
    assert list(found) == list(tree)
    assert found["list"] == tree["list"]
    assert found["float"] == tree["float"]
    assert torch.equal(found["kernel"], kernel)
    assert found["kernel"].stride() == kernel.stride()
    assert torch.equal(found["by number"][0]["momentum_buffer"], kernel + 1)
    assert torch.equal(found["every third"], torch.tensor([0.0, 3.0, 6.0]))
    assert found["half"].dtype == torch.bfloat16
    assert found["scalar"].shape == ()
    assert found["nothing"].shape == (0, 4)
    np.testing.assert_array_equal(found["mask"], tree["mask"])
    assert found["mask"].dtype == np.bool_
    raw = load_file(tmp_path / "run")
    assert torch.equal(raw["/scalar"], torch.tensor([3]))
    with pytest.raises(HwpruneError, match="cannot hold the object at '/x'"):
        write_state(tmp_path / "run", {"x": object()})


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + b"0" * 60, b"\x80\x04" + b"\xff" * 60, b"", b"[" * 2000]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "run")
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "run").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "run")


def test_a_header_that_says_it_is_endless_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes((2**28 + 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="it is not a checkpoint of hwprune"):
        read_state(path)
    path.write_bytes((2**28).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError) as raised:
        read_state(path)
    assert "it is not a checkpoint" not in raised.value.message


@pytest.mark.parametrize("fails", ["unlink", "rmdir"])
def test_a_checkpoint_goes_although_the_disk_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """One that stayed would keep the next run from beginning without --resume or --restart."""
    real, calls = getattr(os, fails), iter(range(10))

    def fails_once(*args: Any, **options: Any) -> None:
        if next(calls) == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*args, **options)

    checkpoint = Checkpoint(tmp_path / ".resume" / "state")
    checkpoint.path.parent.mkdir()
    write_state(checkpoint.path, {})
    with monkeypatch.context() as patch:
        patch.setattr(f"os.{fails}", fails_once)
        checkpoint.discard()
    assert not checkpoint.path.parent.exists()
