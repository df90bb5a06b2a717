"""DyReLU phasing: every ReLU is found, a share of zero changes no bit, and nothing is left."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets as nets
from torch import nn
from torch.nn import functional as F

from hwprune.errors import UsageError
from hwprune.extreme import extreme_hooks
from hwprune.extreme.dyrelu import DyReLU, Phased
from hwprune.ir import Data
from hwprune.sparsity import Phasing, Strategy, make
from hwprune.training import Checkpoint, FinetuneConfig, Recipe, accuracy, finetune
from hwprune.training.hooks import Stage
from hwprune.training.sparse import SparseParameters

RECIPE = Recipe(epochs=4, batch_size=32, precision="fp32", distillation_weight=0.0)
HALF = Phasing(0.25, 0.5)


class Everything(nn.Module):
    """ReLU written in every way there is, and ReLU6, which is another function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.module = nn.ReLU()
        self.inside = nn.ReLU(inplace=True)
        self.other = nn.ReLU6()
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call relu nine times."""
        x = self.module(self.conv(x) - 0.1)
        x = F.relu(x - 0.1)
        x = F.relu(x - 0.1, inplace=True)
        x = torch.relu(x - 0.1)
        x = (x - 0.1).relu()
        x = x - 0.1
        self.inside(x)  # what it returns is not used
        y = x - 0.1
        y.relu_()
        y = torch.relu_(self.other(y) - 0.1)
        return self.head(F.relu(y.mean((2, 3)) - 0.01))


def network(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def phased(module: nn.Module, images: torch.Tensor, plan: Phasing | None = HALF) -> Phased:
    names = [name for name, p in module.named_parameters() if p.ndim > 1]
    return Phased(
        Stage(
            module, SparseParameters(module, names) if names else None,  # type: ignore[arg-type]
            Strategy("x", (), phasing=plan), lambda: (images,), 1, 100, lambda p: round(100 * p),
        )
    )  # fmt: skip


def is_phased(module: nn.Module) -> bool:
    return "_hwprune_dyrelu" in dict(module.named_children())


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(2))


def test_every_relu_is_found_however_it_is_written(images: torch.Tensor) -> None:
    module = network(Everything)
    found = phased(module, images)
    assert found.count == 9
    standins = module.get_submodule("_hwprune_dyrelu")
    assert [standin.squeeze.in_features for standin in standins] == [8] * 9
    assert [standin.squeeze.out_features for standin in standins] == [2] * 9
    assert [standin.excite.out_features for standin in standins] == [2 * 2 * 8] * 9


def test_exported_programs_have_their_relus_found(images: torch.Tensor) -> None:
    program = torch.export.export(network(Everything).eval(), (images,))
    module = program.module()
    found = phased(module, images)
    assert found.count == 9
    found.before_step(0, None)
    with torch.no_grad():
        module.get_submodule("_hwprune_dyrelu.3").excite.bias.fill_(0.7)
        assert not torch.equal(module(images), program.module()(images))


@pytest.mark.parametrize("kind", [Everything, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())])
def test_a_share_of_zero_is_relu_to_the_bit(
    images: torch.Tensor, kind: Callable[[], nn.Module]
) -> None:
    module = network(kind)
    expected, state = module(images), dict(module.state_dict())
    found = phased(module, images)
    with torch.no_grad():
        for parameter in module.get_submodule("_hwprune_dyrelu").parameters():
            parameter.normal_()
    assert torch.equal(module(images), expected)  # before the first step
    found.before_step(40, None)
    assert found.beta == pytest.approx(0.4)
    assert not torch.equal(module(images), expected)
    with found.plain():
        assert torch.equal(module(images), expected)
    found.before_step(50, None)
    assert not is_phased(module)
    assert "forward" not in vars(module)
    assert torch.equal(module(images), expected)
    assert module.state_dict().keys() == state.keys()


def test_drawing_the_stand_ins_leaves_every_generator_alone(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also CUDA's: each process has seeded its own, and goes on with it."""
    module = network(Everything)
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    phased(module, images)
    assert torch.equal(torch.get_rng_state(), before)
    assert seeded == []


def test_the_share_falls_linearly_after_a_quarter(images: torch.Tensor) -> None:
    found = phased(network(Everything), images)
    shares = []
    for step in range(100):
        found.before_step(step, None)
        shares.append(found.beta)
    falling = [1 - n / 25 for n in range(25)]
    assert shares == pytest.approx([*[1.0] * 25, *falling, *[0.0] * 50])
    assert shares[24:27] == pytest.approx([1.0, 1.0, 0.96])
    assert shares[49:51] == pytest.approx([0.04, 0.0])


def test_a_mixture_is_a_mixture_and_the_lines_are_those_of_the_paper(images: torch.Tensor) -> None:
    module = nn.ReLU()
    found = phased(module, images)
    found.before_step(0, None)
    assert torch.allclose(module(images), F.relu(images))  # a new one is ReLU
    (dynamic,) = module.get_submodule("_hwprune_dyrelu").children()
    assert isinstance(dynamic, DyReLU)
    with torch.no_grad():
        for parameter in dynamic.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    means = images.mean((2, 3))
    told = dynamic.excite(F.relu(dynamic.squeeze(means)))
    first, second, up, down = (2 * torch.sigmoid(told) - 1).reshape(4, 4, 3, 1, 1).unbind(1)
    lines = (images * (1 + first) + up / 2, images * second + down / 2)
    assert torch.allclose(module(images), torch.maximum(*lines), atol=1e-6)
    found.before_step(40, None)
    mixed = 0.4 * torch.maximum(*lines) + 0.6 * F.relu(images)
    assert torch.allclose(module(images), mixed, atol=1e-6)


def test_in_place_means_in_place_and_gradients_flow(images: torch.Tensor) -> None:
    module = network(Everything)
    found = phased(module, images)
    found.before_step(0, None)
    module(images).sum().backward()
    for parameter in module.get_submodule("_hwprune_dyrelu").parameters():
        assert parameter.grad is not None
    outer = nn.Sequential(nn.ReLU(inplace=True))
    found = phased(outer, images)
    found.before_step(0, None)
    seen = images.clone()
    assert outer(seen) is seen
    assert torch.allclose(seen, F.relu(images))


def test_bf16_and_memory_order_are_kept(images: torch.Tensor) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).to(memory_format=torch.channels_last)
    ordered = images.contiguous(memory_format=torch.channels_last)
    phased(module, ordered).before_step(40, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(ordered)
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_the_optimiser_forgets_them(images: torch.Tensor) -> None:
    module = network(Everything)
    found = phased(module, images)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    before = len(optimizer.param_groups[0]["params"])
    module(images).sum().backward()
    optimizer.step()
    found.before_step(50, optimizer)
    assert not is_phased(module)
    kept = optimizer.param_groups[0]["params"]
    assert (before, len(kept)) == (4 + 9 * 4, 4)
    assert {id(p) for p in optimizer.state} <= {id(p) for p in kept}


def test_without_a_relu_it_says_so_and_a_network_that_changes_is_refused(
    images: torch.Tensor,
) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6())
    found = phased(module, images)
    assert not is_phased(module)
    assert "calls no ReLU" in found.notes[0]

    class Moody(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return F.relu(x) if self.calls == 1 else F.relu(F.relu(x))

    moody = Moody()
    found = phased(moody, images)
    with pytest.raises(UsageError, match="called ReLU 2 times, and 1 times at first"):
        moody(images)
    found.close()
    moody(images)


# -- in a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> Data:
    return nets.digits(samples=400)


def tune(data: Data, strategy: Strategy, **changes: Any) -> tuple[nn.Module, Any]:
    module = nets.small_cnn(dropout=0.1)
    arguments: dict[str, Any] = {
        "data": data,
        "names": nets.NAMES,
        "strategy": strategy,
        "fill": nets.fill_count(350),
        "recipe": RECIPE,
        "teacher": None,
        "seed": 3,
        "hooks": extreme_hooks,
    } | changes
    return module, finetune(FinetuneConfig(module=module, **arguments))


def test_a_run_trains_them_and_leaves_nothing(data: Data) -> None:
    seen: list[tuple[float, int, float]] = []
    fresh = nets.small_cnn(dropout=0.1)
    module = copy.deepcopy(fresh)

    def progress(event: Any) -> None:
        if event.message.startswith("epoch"):
            trained = 0.0
            if is_phased(module):
                standins = module.get_submodule("_hwprune_dyrelu")
                trained = float(standins[0].excite.weight.detach().abs().sum())
            parameters = sum(p.requires_grad for p in module.parameters())
            seen.append((event.step / event.of, parameters, trained))

    strategy = make("east", density=0.1)
    finetune(FinetuneConfig(
        module=module, data=data, names=nets.NAMES, strategy=strategy, fill=nets.fill_count(350),
        recipe=RECIPE, teacher=None, seed=3, progress=progress, hooks=extreme_hooks,
    ))  # fmt: skip
    own = len(list(fresh.parameters()))
    for at, parameters, trained in seen:
        # The step at half of the training is the first without.
        assert parameters == (own + 2 * 4 if at <= 0.5 else own)
        assert (trained > 0) == (at <= 0.5)
    assert [name for name, _ in module.named_modules()] == [n for n, _ in fresh.named_modules()]
    assert module.state_dict().keys() == fresh.state_dict().keys()
    assert "forward" not in vars(module)


@pytest.mark.parametrize(
    ("after", "changes"),
    [(1, {}), (2, {"ema_decay": 0.9, "checkpoint": "best"}), (3, {"ema_decay": 0.9})],
    ids=str,
)
def test_a_run_is_continued_to_the_bit_in_every_phase(
    data: Data, tmp_path: Path, after: int, changes: dict[str, Any]
) -> None:
    strategy = dataclasses.replace(make("cubic", density=0.1), phasing=Phasing(0.3, 0.7))
    options = {"recipe": dataclasses.replace(RECIPE, **changes)}
    whole, expected = tune(data, strategy, **options)
    checkpoint = Checkpoint(tmp_path / "run", every_seconds=0)

    def stop(event: Any) -> None:
        if event.message.startswith(f"epoch {after + 1} of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(data, strategy, checkpoint=checkpoint, progress=stop, **options)
    again = dataclasses.replace(checkpoint, resume=True)
    module, result = tune(data, strategy, checkpoint=again, **options)
    states = [each.state_dict() for each in (whole, module)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert result.final_metric == expected.final_metric
    assert any("continued after epoch" in note for note in result.notes)


def test_a_run_that_fails_leaves_the_network_as_it_was_made(data: Data) -> None:
    module = nets.small_cnn()

    def stop(event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(FinetuneConfig(
            module=module, data=data, names=nets.NAMES, strategy=make("east", density=0.1),
            fill=nets.fill_count(350), recipe=RECIPE, teacher=None, seed=3, progress=stop,
            hooks=extreme_hooks,
        ))  # fmt: skip
    assert not is_phased(module)
    assert "forward" not in vars(module)


def test_a_phase_that_outlasts_the_steps_ends_all_the_same(data: Data) -> None:
    strategy = dataclasses.replace(make("one-shot", density=0.1), phasing=Phasing(0.9, 0.99))
    module, result = tune(data, strategy, recipe=dataclasses.replace(RECIPE, epochs=1))
    assert not is_phased(module)
    # The last step was taken without, and what is reported is the plain network's.
    assert accuracy(module, data.validation) == result.final_metric
