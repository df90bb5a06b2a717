"""``hwprune plan``: what it promises, compile keeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from e2e_tools import Runner
from torch import nn

import hwprune as hwprune_package
from hwprune.frontend import load_model
from hwprune.frontend.zoo import ARCHITECTURES


def test_what_a_plan_says_is_what_compile_does(
    hwprune: Runner, digits_pt: Path, tmp_path: Path
) -> None:
    words = (digits_pt, "--target", "nrf52840", "--budget", "12KiB", "--values", "int8", "--json")
    plan = hwprune("plan", *words).document
    record = hwprune("compile", *words, "-o", tmp_path / "o").document
    assert plan["plans"]["int8"]["max_nonzeros"] == record["budget"]["max_nonzeros"]
    assert plan["plans"]["int8"]["floor_bytes"] == record["budget"]["floor_bytes"]
    assert plan["weights"] == record["result"]["weights"]
    parts = plan["plans"]["int8"]["floor_parts"]
    assert sum(part["bytes"] for part in parts) == plan["plans"]["int8"]["floor_bytes"]
    used, slack = (plan["plans"]["int8"][name] for name in ("used_bytes", "slack_bytes"))
    assert used + slack == 12 * 1024
    assert slack < 60


def test_the_text_names_budget_floor_and_what_is_not_pruned(
    hwprune: Runner, digits_pt: Path
) -> None:
    ran = hwprune("plan", digits_pt, "--target", "nrf52840", "--budget", "12KiB")
    assert ran.code == 0
    assert ran.err == ""
    for said in (
        "recognised as digits-cnn", "budget  12,288 B", "74,976 weights", "features.2.0.weight",
        "96x64x3x3", "Floor: what no pruning removes", "function bodies", "not pruned, 40 B",
    ):  # fmt: skip
        assert said in ran.out, said


def test_a_model_that_fits_is_said_to_fit(hwprune: Runner, digits_pt: Path) -> None:
    ran = hwprune("plan", digits_pt, "--target", "raspberry-pi-5")
    assert ran.code == 0
    assert "The dense fp32 model fits. Pruning starts at a budget below" in ran.out
    assert "last-level cache" in ran.out  # why the default budget is what it is


def test_shared_weights_are_counted_once(hwprune: Runner, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(load_model(None, arch="cifar-resnet20", seed=0).module.state_dict(), path)
    words = ("plan", path, "--target", "nrf52840", "--budget", "40KiB", "--values", "int8")
    apart = hwprune(*words, "--json").document
    shared = hwprune(*words, "--share-weights", "auto", "--json").document
    # The third block of each stage uses the second one's two convolutions.
    saved = 2 * 9 * (16**2 + 32**2 + 64**2)
    assert shared["weights"] == apart["weights"] - saved
    assert any(f"{saved:,} weights fewer" in note for note in shared["notes"])
    layers = shared["plans"]["int8"]["layers"]
    assert len(layers) == len(apart["plans"]["int8"]["layers"]) - 6
    hwprune.refused(*words, "--share-weights", "no.such,other", code=2, says=["no.such"])
    # As compile does: the dense network where it fits, and no sharing where all would fit then.
    roomy = ("plan", path, "--target", "raspberry-pi-5", "--share-weights", "auto", "--json")
    assert "weights are not shared: the dense network fits" in hwprune(*roomy).document["notes"]
    loose = (*words[:5], "400KiB", *words[6:], "--share-weights", "auto")
    hwprune.refused(*loose, code=2, says=["nothing would be pruned"])


class Keywords(nn.Module):
    """Keyword spotting by two layers of LSTM over 49 frames: 97 % of its bytes are W and R."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(40, 128, 2, batch_first=True), nn.Linear(128, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.rnn(x)[0][:, -1])
        return scores


@pytest.mark.parametrize("target", ["raspberry-pi-5", "jetson-nano"])
def test_keyword_spotting_with_an_lstm_at_15_percent_of_its_bytes(target: str) -> None:
    frames = torch.zeros(2, 49, 40)
    found = hwprune_package.plan(
        Keywords(), target=target, example_input=frames, budget=132_800, values="int8"
    )
    assert 0.14 < found.budget_bytes / found.dense_bytes < 0.15
    assert found.plans["int8"].max_nonzeros > 80_000


def test_a_budget_below_every_floor_names_the_lowest(hwprune: Runner, digits_pt: Path) -> None:
    words = ("plan", digits_pt, "--target", "raspberry-pi-5", "--budget")
    floors = {
        kind: plan["floor_bytes"]
        for kind, plan in hwprune(*words, "4KiB", "--json").document["plans"].items()
    }
    kind = min(floors, key=floors.__getitem__)
    ran = hwprune.refused(*words, 100, code=4, says=["header", f"{kind} values"])
    assert ran.out == ""
    enough = int(re.findall(r"--budget (\d+)", ran.err)[0])
    assert enough >= floors[kind] - 50  # what a file of 4 KiB says of itself is not in one of 100 B
    hwprune.refused(*words, int(0.98 * enough), code=4)
    assert hwprune(*words, enough).code == 0


def test_a_target_that_only_decodes_int8(hwprune: Runner, digits_pt: Path) -> None:
    words = ("plan", digits_pt, "--target", "stm32l072", "--budget", "8KiB")
    assert list(hwprune(*words, "--json").document["plans"]) == ["int8"]
    hwprune.refused(*words, "--values", "fp32", says=["cannot decode fp32", "use int8"])


def test_torchscript_is_planned_but_not_compiled(
    hwprune: Runner, digits_net: torch.nn.Module, digits_pt: Path, tmp_path: Path
) -> None:
    path = tmp_path / "script.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.trace(digits_net, torch.zeros(2, 1, 8, 8)).save(path)
    words = (path, "--target", "nrf52840", "--budget", "12KiB", "--input", "x:Nx1x8x8:float32")
    plan = hwprune("plan", *words, "--json").document
    same = hwprune("plan", digits_pt, *words[1:5], "--json").document
    assert plan["weights"] == same["weights"]
    assert plan["notes"] == []  # the batch stayed dynamic
    kept = (p["plans"]["int8"]["max_nonzeros"] for p in (plan, same))
    assert abs(next(kept) - next(kept)) < 20  # names of inputs differ in length
    hwprune.refused(
        "compile", *words, "-o", tmp_path / "o", says=["can be planned, not compiled", "state_dict"]
    )
    hwprune.refused("plan", *words[:5], says=["--input"])


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:resnet10t"])
def test_collections_of_networks(hwprune: Runner, tmp_path: Path, name: str) -> None:
    from hwprune.frontend.torchvision_shim import import_torchvision

    collection, _, network = name.partition(":")
    torchvision = import_torchvision()  # before timm, which imports it
    if collection == "torchvision":
        module = torchvision.models.get_model(network, num_classes=10)
    else:
        module = pytest.importorskip("timm").create_model(network, num_classes=10)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    ran = hwprune(
        "plan", tmp_path / "net.pt", "--target", "raspberry-pi-5", "--arch", name,
        "--values", "int8", "--json", "--input", "x:Nx3x64x64:float32",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert any("10 classes" in note for note in ran.document["notes"])
    weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
    assert ran.document["weights"] == weights


def test_a_wrapped_checkpoint_and_safetensors_are_the_same_network(
    hwprune: Runner, digits_pt: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    state = torch.load(digits_pt)
    save_file(state, tmp_path / "a.safetensors")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "b.pt"
    )
    words = ("--target", "nrf52840", "--budget", "12KiB", "--json")
    plans = [
        hwprune("plan", path, *words).document
        for path in (digits_pt, tmp_path / "a.safetensors", tmp_path / "b.pt")
    ]
    assert plans[0]["plans"] == plans[1]["plans"] == plans[2]["plans"]
    assert any("module." in note for note in plans[2]["notes"])


def test_help_tells_the_truth(hwprune: Runner) -> None:
    from hwprune.job import DEFAULT_EPOCHS, DEFAULT_STRATEGY
    from hwprune.sparsity import STRATEGIES

    # Without spaces: lines are broken at hyphens too.
    shown = "".join(hwprune("compile", "--help").out.split())
    assert f"{DEFAULT_STRATEGY}(thedefault)" in shown
    assert f"default:therecipe's,else{DEFAULT_EPOCHS}" in shown
    for name in STRATEGIES:
        assert name in shown
    names = " ".join(hwprune("plan", "--help").out.split())
    assert "--budget" in names
    assert set(ARCHITECTURES) >= {"cifar-resnet20", "digits-cnn"}
