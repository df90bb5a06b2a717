"""What a user can get wrong: a clear error, the right exit code, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e_tools import Runner, save_npz, snapshot

pytestmark = pytest.mark.slow

BUDGET = ("--budget", "12KiB")
TARGET = ("--target", "nrf52840")


class Trap:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


Spoil = Callable[[dict[str, torch.Tensor], Path], None]


def save(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    return lambda state, path: torch.save(change(state), path)


def set_first(value: float) -> Spoil:
    def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state["classifier.weight"][0, 0] = value
        return state

    return save(change)


def cut(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


MODELS: dict[str, tuple[Spoil, str]] = {
    "truncated": (cut, "truncated or damaged"),
    "random": (lambda s, p: _write(p, np.random.default_rng(0).bytes(9999)), "not a model file"),
    "empty": (lambda s, p: _write(p, b""), "is empty"),
    "nan": (set_first(float("nan")), "NaN or infinite: classifier.weight (1 of 960)"),
    "inf": (set_first(float("-inf")), "NaN or infinite: classifier.weight (1 of 960)"),
    "code": (save(lambda s: {**s, "x": Trap(Path("pwned"))}), "would run code"),
    "shapes": (
        save(lambda s: {**s, "features.0.0.weight": torch.zeros(7, 1, 5, 5)}),
        "nearest: digits-cnn",
    ),
    "keys": (save(lambda s: {f"net.{k}.x": v for k, v in s.items()}), "no built-in architecture"),
    "nothing": (save(lambda s: {}), "net.pt"),
    "number": (save(lambda s: 3), "net.pt"),
}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("command", ["compile", "plan"])
def test_bad_models(
    hwprune: Runner,
    digits_pt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, complaint = MODELS[name]
    spoil(torch.load(digits_pt), tmp_path / "net.pt")
    hwprune.refused(command, "net.pt", *TARGET, says=[complaint])
    assert os.listdir(tmp_path) == ["net.pt"]


def test_a_wrong_architecture_names_the_first_mismatches(hwprune: Runner, digits_pt: Path) -> None:
    words = ("compile", digits_pt, *TARGET, "--arch")
    says = ["does not fit --arch cifar-resnet20", "conv1.weight"]
    hwprune.refused(*words, "cifar-resnet20", says=says)
    hwprune.refused(*words, "cifar-resnet2", says=["cifar-resnet20"])
    hwprune.refused(*words, "nowhere.py:Net", says=["nowhere.py"])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("x:Nx3x8x8:float32", "the network does not take x:Nx3x8x8:float32"),
        ("x:Nx1x8x8:int64", "the network does not take x:Nx1x8x8:int64"),
        ("rubbish", "is not NAME:SHAPE:DTYPE"),
        ("x:Nx0x8x8", "not a size"),
    ],
)
def test_inputs_of_the_wrong_shape(
    hwprune: Runner, digits_pt: Path, given: str, complaint: str
) -> None:
    hwprune.refused("plan", digits_pt, *TARGET, "--input", given, says=[complaint])


@pytest.fixture
def images() -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    return generator.random((60, 1, 8, 8), dtype=np.float32), np.arange(60) % 10


DATA: dict[str, tuple[Callable[[Any, Any], dict[str, Any]], str]] = {
    "channels": (lambda x, y: {"x": np.repeat(x, 3, axis=1), "y": y}, "3x8x8"),
    "size": (lambda x, y: {"x": np.pad(x, ((0, 0), (0, 0), (0, 4), (0, 4))), "y": y}, "1x12x12"),
    "flat": (lambda x, y: {"x": x.reshape(60, 64), "y": y}, "64"),
    "label too high": (lambda x, y: {"x": x, "y": y + 1}, "label 10 is out of range"),
    "label of test": (
        lambda x, y: {"x": x, "y": y, "x_test": x, "y_test": y * 0 + 12}, "label 12",
    ),
    "label negative": (lambda x, y: {"x": x, "y": y - 1}, "is negative"),
    "label float": (lambda x, y: {"x": x, "y": y / 2}, "integers"),
    "too few labels": (lambda x, y: {"x": x, "y": y[:7]}, "7 labels for 60 samples"),
    "nan": (lambda x, y: {"x": x * np.nan, "y": y}, "NaN"),
    "none": (lambda x, y: {"x": x[:0], "y": y[:0]}, "none of them zero"),
    "one": (lambda x, y: {"x": x[:1], "y": y[:1]}, "too few"),
    "objects": (lambda x, y: {"x": np.array([object()] * 3)}, "would run code"),
    "no x": (lambda x, y: {"images": x, "y": y}, "x"),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_bad_data(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, images: tuple[Any, Any], name: str
) -> None:
    change, complaint = DATA[name]
    spec = save_npz(tmp_path / "d.npz", **change(*images))
    # Whether the network has to be pruned or not makes no difference.
    for more in (BUDGET, ()):
        words = ("compile", digits_pt, *TARGET, *more, "--data", spec, "-o", tmp_path / "o")
        ran = hwprune.refused(*words, says=[complaint])
        assert "train" not in ran.err.split("error")[0]
    assert os.listdir(tmp_path) == ["d.npz"]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("imagefolder:{}", "no images"),
        ("cifar10:{}", "cifar-10-batches-py"),
        ("cifar100:{}", "cifar-100-python"),
        ("fashion-mnist:{}", "Fashion-MNIST"),
        ("npz:{}/no.npz", "no such file"),
        ("{}/no.py:split", "no such file"),
        ("imagenet:{}", "did you mean imagefolder?"),
        ("digits?normalize=zebra", "zebra"),
        ("digits?size=3", "has no option"),
    ],
)
def test_bad_data_specifications(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, spec: str, complaint: str
) -> None:
    words = ("compile", digits_pt, *TARGET, *BUDGET, "-o", tmp_path / "o")
    hwprune.refused(*words, "--data", spec.format(tmp_path), says=[complaint])
    assert not os.listdir(tmp_path)


def test_data_that_fail_while_they_are_read(
    hwprune: Runner, digits_pt: Path, tmp_path: Path
) -> None:
    source = tmp_path / "mine.py"
    source.write_text("def split(name):\n    raise ValueError('the disk is on fire')\n")
    words = ("compile", digits_pt, *TARGET, *BUDGET, "-o", tmp_path / "o")
    hwprune.refused(*words, "--data", f"{source}:split", says=["the disk is on fire"])


@pytest.mark.parametrize(
    ("budget", "code", "complaint"),
    [
        ("0", 2, "0 bytes"),
        ("-5", 2, "is negative"),
        ("abc", 2, "is not a size"),
        ("", 2, "is not a size"),
        ("10TB", 2, "nrf52840 has"),
        ("1", 4, "function bodies"),
    ],
)
@pytest.mark.parametrize("command", ["compile", "plan"])
def test_budgets_that_cannot_be(
    hwprune: Runner,
    digits_pt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    budget: str,
    code: int,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (command, digits_pt, *TARGET, "--budget", budget)
    hwprune.refused(*words, code=code, says=[complaint])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--target", "rasberry-pi-5"), "did you mean raspberry-pi-5"),
        (("--target", "no-such-thing"), "`hwprune targets` lists all"),
        (("--target", "no.toml"), "no.toml"),
        ((), "Missing option '--target'"),
        ((*TARGET, "--strategy", "west"), "bidirectional-one-shot, bidirectional-iterative"),
        ((*TARGET, "--values", "int2"), "'int8'"),
        ((*TARGET, "--values", "int4"), "cannot decode int4"),
        ((*TARGET, "--epochs", "-1"), "-1"),
        ((*TARGET, "--seed", "-1"), "-1"),
        ((*TARGET, "--seed", str(2**70)), "range"),
        ((*TARGET, "--require", "acuracy>=1"), "did you mean accuracy"),
        ((*TARGET, "--require", "size=12"), "not a comparison"),
        ((*TARGET, "-o", ""), "-o is empty"),
        ((*TARGET, "--resume=yes"), "does not take a value"),
    ],
)
def test_bad_usage(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, words: tuple[str, ...], complaint: str
) -> None:
    output = () if "-o" in words else ("-o", tmp_path / "o")
    hwprune.refused("compile", digits_pt, *output, *words, says=[complaint])
    assert not os.listdir(tmp_path)


def test_failures_are_one_json_document(hwprune: Runner, digits_pt: Path, tmp_path: Path) -> None:
    for words, code, kind in (
        (("--budget", "1"), 4, "InfeasibleError"),
        (("--budget", "zero"), 2, "UsageError"),
        (("--arch", "cifar-resnet20"), 2, "ModelError"),
        (("--no-such-option",), 2, "UsageError"),
        (("-o", tmp_path / "file"), 2, "OutputError"),
    ):
        (tmp_path / "file").write_text("")
        output = () if "-o" in words else ("-o", tmp_path / "o")
        ran = hwprune.refused("compile", digits_pt, *TARGET, *output, *words, "--json", code=code)
        error = ran.document["error"]
        assert list(error) == ["type", "exit_code", "message", "hint"]
        assert (error["type"], error["exit_code"]) == (kind, code)


# -- the output folder --------------------------------------------------------------------------


def test_somebody_elses_folder_is_left_alone(
    hwprune: Runner, digits_pt: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "report.json").write_text("{}")
    before = snapshot(tmp_path)
    hwprune.refused(
        "compile", digits_pt, *TARGET, *BUDGET, "-o", tmp_path, says=["hwprune did not write it"]
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/hwprune/out", "/dev/null"])
def test_output_that_cannot_be_written(
    hwprune: Runner, digits_pt: Path, tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").write_text("x")
    output = tmp_path / where  # an absolute path stays as it is
    ran = hwprune.refused("compile", digits_pt, *TARGET, *BUDGET, "-o", output)
    assert "is a file" in ran.err or "cannot be written" in ran.err
    assert snapshot(tmp_path) == {"file": b"x"}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "hwprune-test", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(hwprune: Runner, digits_pt: Path, full_disk: Path) -> None:
    words = ("compile", digits_pt, *TARGET, *BUDGET, "-o", full_disk / "o")
    hwprune.refused(*words, says=["cannot be written"])
    assert snapshot(full_disk) == {}


@pytest.mark.parametrize("fails", ["checkpoint", "model.onnx", "dense.onnx", "report", "publish"])
def test_a_disk_that_fills_up_at_any_moment(
    hwprune: Runner,
    digits_pt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
) -> None:
    """The older artifact stays whole whatever it is that cannot be written."""
    out = tmp_path / "o"
    words = ("compile", digits_pt, *TARGET, "-o", out, "--budget")
    assert hwprune(*words, "12KiB").code == 0
    before = snapshot(out)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if fails == "checkpoint":
            import safetensors.torch

            patch.setattr(safetensors.torch, "save_model", full)
        elif fails == "report":
            patch.setattr("hwprune.files.os.fsync", full)
        elif fails == "publish":
            patch.setattr("hwprune.steps.output.os.replace", full)
        else:
            real = Path.open

            def opens(self: Path, *args: Any, **options: Any) -> Any:
                return full() if self.name == fails else real(self, *args, **options)

            patch.setattr(Path, "open", opens)
        hwprune.refused(*words, "11KiB", says=["No space left"])
    assert snapshot(out) == before
    assert hwprune(*words, "11KiB").code == 0
    assert json.loads((out / "report.json").read_text())["budget"]["bytes"] == 11 * 1024


def test_an_unreadable_model_is_not_an_internal_error(hwprune: Runner, tmp_path: Path) -> None:
    hwprune.refused("compile", tmp_path, *TARGET, says=["is a folder"])
    hwprune.refused("compile", tmp_path / "none.pt", *TARGET, says=["there is no file"])
    loop = tmp_path / "loop.pt"
    loop.symlink_to(loop)
    hwprune.refused("compile", loop, *TARGET)
    os.mkfifo(tmp_path / "pipe.pt")
    hwprune.refused("compile", tmp_path / "pipe.pt", *TARGET, says=["not an ordinary file"])
