"""Least squares on the surviving weights: exact where an answer is known; nothing else moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwprune.errors import HwpruneError
from hwprune.ir import Masks
from hwprune.least_squares import reconstruct
from hwprune.least_squares.parameter_uses import ParameterUse, survey, watch
from hwprune.least_squares.reconstruct import Reconstruction, least_squares
from hwprune.least_squares.ridge_solver import GramSums, solve
from hwprune.training.module_state import set_mode


class Layer(nn.Module):
    """One weight, used in any way."""

    def __init__(
        self, shape: tuple[int, ...], use: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        self.use = use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(x, self.weight)


class Unlabelled:
    """A split whose labels must not be looked at."""

    def __init__(self, *shape: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        # Columns that depend on each other: otherwise there is nothing to make up for.
        rough = generator.standard_normal(shape).astype(np.float32)
        last = rough.mean(axis=-1, keepdims=True)
        self.x = rough + rough.mean(axis=1, keepdims=True) * 2 + last * 2 * (rough.ndim > 2)

    @property
    def labels(self) -> None:
        raise AssertionError("labels were read")

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Any) -> tuple[Any, ...]:
        return (self.x[indices],)


class Quiet(Unlabelled):
    """As batches are made, whether there are labels is asked."""

    @property
    def labels(self) -> None:
        return None


def random_masks(module: nn.Module, names: tuple[str, ...], density: float) -> Masks:
    generator = np.random.default_rng(3)
    parameters = dict(module.named_parameters())
    return Masks({n: generator.random(parameters[n].shape) < density for n in names})


def masked(dense: nn.Module, masks: Masks) -> nn.Module:
    module = copy.deepcopy(dense)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in masks.by_name:
                parameter.mul_(torch.from_numpy(masks[name]))
    return module


def refit(
    dense: nn.Module, split: Any, masks: Masks, **options: Any
) -> tuple[nn.Module, Reconstruction]:
    set_mode(dense, training=False)
    module = masked(dense, masks)
    return module, least_squares(module, dense, split, tuple(masks), masks, **options)


CONV = functional.conv2d
USES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Callable[..., torch.Tensor]]] = {
    "conv2d": ((8, 6, 3, 3), (6, 7, 7), lambda x, w: CONV(x, w, stride=2, padding=1)),
    "dilated": ((8, 6, 3, 3), (6, 7, 7), lambda x, w: CONV(x, w, padding=(2, 1), dilation=(2, 1))),
    "grouped": ((8, 3, 3, 3), (6, 7, 7), lambda x, w: CONV(x, w, groups=2)),
    "depthwise": ((6, 1, 3, 3), (6, 7, 7), lambda x, w: CONV(x, w, groups=6, padding=1)),
    "conv1d": ((8, 6, 5), (6, 9), lambda x, w: functional.conv1d(x, w, padding=2)),
    "conv3d": ((4, 3, 2, 2, 2), (3, 4, 4, 4), functional.conv3d),
    "transposed": (
        (6, 4, 3, 3), (6, 5, 5),
        lambda x, w: functional.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
    ),
    "transposed groups": (
        (6, 2, 3, 2), (6, 5, 5),
        lambda x, w: functional.conv_transpose2d(x, w, groups=3, dilation=(2, 1), padding=(0, 2)),
    ),
    "linear": ((8, 12), (12,), functional.linear),
    "linear on a sequence": ((8, 12), (5, 12), functional.linear),
    "matmul": ((12, 8), (12,), torch.matmul),
    "matmul on a sequence": ((12, 8), (5, 12), torch.matmul),
    "weight on the left": ((8, 12), (12, 5), lambda x, w: torch.matmul(w, x)),
    "einsum": ((8, 12), (5, 12), lambda x, w: torch.einsum("btk,rk->btr", x, w)),
}  # fmt: skip


def columns_of(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The outputs' derivative by the weight, (outputs, weights): the layer as one linear system."""
    weight = layer.weight.detach()
    assert isinstance(weight, torch.Tensor)
    return torch.func.jacrev(lambda w: layer.use(x, w))(weight).reshape(-1, weight.numel())


@pytest.mark.parametrize("kind", USES)
def test_every_use_gets_the_known_least_squares_solution(kind: str) -> None:
    shape, inputs, use = USES[kind]
    dense = Layer(shape, use)
    count = 40 if len(inputs) > 2 else 400
    split = Quiet(count, *inputs)
    masks = random_masks(dense, ("weight",), 0.5)
    module, report = refit(dense, split, masks, ridges=(1e-9,), seed=5, samples=count)
    alive = torch.from_numpy(masks["weight"])
    weight = module.weight.detach()
    assert not torch.any(weight[~alive])
    # The samples that were fitted on: all but the first eighth of the order.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(5))[count // 8 :]
    x = torch.from_numpy(split.batch(order.numpy())[0])
    jacobian = columns_of(dense, x).double()
    target = jacobian @ dense.weight.detach().double().flatten()
    wanted = torch.linalg.lstsq(jacobian[:, alive.flatten()], target).solution
    # Rows that would not have got better on held-out samples are as they were.
    found = weight[alive].double()
    kept = found == dense.weight.detach()[alive]
    assert report.layers[0].refitted >= 0.7 * report.layers[0].rows
    assert torch.allclose(found[~kept], wanted[~kept], atol=2e-3)
    assert int((~kept).sum()) > 0.6 * len(kept)
    assert report.layers[0].after < 0.9 * report.layers[0].before


@pytest.mark.parametrize("kind", USES)
def test_full_masks_change_nothing(kind: str) -> None:
    shape, inputs, use = USES[kind]
    dense = Layer(shape, use)
    masks = random_masks(dense, ("weight",), 2.0)
    module, report = refit(dense, Quiet(16, *inputs), masks)
    assert torch.equal(module.weight, dense.weight)
    assert report.layers[0].refitted == 0


def test_a_weight_with_two_uses_is_one_system() -> None:
    shape = (6, 6, 3, 3)

    def twice(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return CONV(torch.tanh(CONV(x, w, padding=1)), w, padding=1)

    dense = Layer(shape, twice)
    masks = random_masks(dense, ("weight",), 0.5)
    split = Quiet(40, 6, 7, 7)
    module, report = refit(dense, split, masks)
    assert [layer.name for layer in report.layers] == ["weight"]
    assert report.layers[0].after < report.layers[0].before
    x = torch.from_numpy(split.x)
    error = [
        float((net(x) - dense(x)).detach().square().mean())
        for net in (masked(dense, masks), module)
    ]
    assert error[1] < error[0]


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda x, w: x @ w + w.sum(), "also read by aten.sum"),
        (lambda x, w: functional.linear(x @ w, w), "two layouts"),
        (lambda x, w: x * w[0], "not the weight|also read by aten.mul"),
    ],
)
def test_other_uses_are_left_alone_and_said(use: Any, reason: str) -> None:
    dense = Layer((12, 12), use)
    masks = random_masks(dense, ("weight",), 0.5)
    module, report = refit(dense, Quiet(16, 12), masks)
    assert torch.equal(module.weight, masked(dense, masks).weight)
    assert report.layers == ()
    ((name, told),) = report.skipped
    assert name == "weight"
    assert any(part in told for part in reason.split("|")), told


class Residual(nn.Module):
    """Two convolutions with BN and a sum before the activation, and a head."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.other = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.other(self.second(functional.relu(self.norm(self.first(x)))))
        if self.in_place:
            y += x
            y.relu_()
        else:
            y = functional.relu(y + x)
        return self.head(y.mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def residual() -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Residual()
        for norm in (module.norm, module.other):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.normal_(norm.bias)
    return module.eval()


NAMES = ("first.weight", "second.weight", "head.weight")


def use_of(module: nn.Module, name: str, x: torch.Tensor) -> list[ParameterUse]:
    found: list[ParameterUse] = []
    watch(module, {name: 1}, (x,), found.extend)
    return found


def test_the_end_of_a_layer_is_behind_bn_and_the_sum(residual: Residual) -> None:
    x = torch.randn(3, 6, 5, 5, generator=torch.Generator().manual_seed(2))
    uses = survey(residual, NAMES, (x,))
    assert tuple(uses.counts()) == tuple(uses.ends) == NAMES
    (seen,) = use_of(residual, "second.weight", x)
    with torch.no_grad():
        inner = functional.relu(residual.norm(residual.first(x)))
        assert torch.equal(seen.output, residual.other(residual.second(inner)) + x)
    assert torch.equal(seen.x, inner)
    norm = residual.other
    assert torch.allclose(seen.scale, norm.weight / torch.sqrt(norm.running_var + norm.eps))
    assert seen.offset is residual.second.bias
    (first,) = use_of(residual, "first.weight", x)
    assert first.offset is residual.norm.bias


def test_steps_in_place_change_nothing_of_what_is_seen(residual: Residual) -> None:
    twin = copy.deepcopy(residual)
    twin.in_place = True
    masks = random_masks(residual, NAMES, 0.5)
    split = Quiet(64, 6, 5, 5)
    one, _ = refit(residual, split, masks)
    two, _ = refit(twin, split, masks)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_network_comes_nearer_and_repeats_itself(residual: Residual) -> None:
    before = {key: value.clone() for key, value in residual.state_dict().items()}
    masks = random_masks(residual, NAMES, 0.5)
    split = Quiet(64, 6, 5, 5)
    told: list[Any] = []
    module, _ = refit(residual, split, masks, progress=lambda *what: told.append(what))
    again, _ = refit(residual, split, masks)
    other, _ = refit(residual, split, masks, seed=1)
    assert list(dict.fromkeys(told)) == [
        (name, number, 3) for number, name in enumerate(NAMES, start=1)
    ]
    for key, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        if "running" in key:
            assert torch.equal(value, before[key])
    assert not torch.equal(module.first.weight, other.first.weight)
    assert all(torch.equal(before[key], value) for key, value in residual.state_dict().items())
    x = torch.from_numpy(Quiet(64, 6, 5, 5, seed=9).x)
    with torch.no_grad():
        errors = [
            float((net(x) - residual(x)).square().mean())
            for net in (masked(residual, masks), module)
        ]
    assert errors[1] < 0.5 * errors[0]
    for name in NAMES:
        weight = dict(module.named_parameters())[name]
        assert not torch.any(weight[torch.from_numpy(~masks[name])])


def test_an_offset_moves_unless_something_else_reads_it(residual: Residual) -> None:
    masks = random_masks(residual, NAMES, 0.3)
    split = Quiet(64, 6, 5, 5)
    module, _ = refit(residual, split, masks)
    assert not torch.equal(module.norm.bias, residual.norm.bias)
    assert not torch.equal(module.second.bias, residual.second.bias)
    assert torch.equal(module.other.bias, residual.other.bias)
    shared = copy.deepcopy(residual)
    shared.other.bias = shared.norm.bias
    module, _ = refit(shared, split, masks)
    assert torch.equal(module.norm.bias, shared.norm.bias)


def test_the_memory_bound_holds_and_changes_little(
    residual: Residual, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = random_masks(residual, NAMES, 0.5)
    split = Quiet(64, 6, 5, 5)
    small = 54 * (54 + 6) * 8  # what the products of a convolution take
    few: list[bool] = []

    def solving(data: GramSums, *what: Any, **options: Any) -> Any:
        few.append(data.few)
        assert not data.few or data.count < 54
        return solve(data, *what, **options)

    monkeypatch.setattr(reconstruct, "solve", solving)
    one, _ = refit(residual, split, masks, memory_bytes=2 * small)
    assert few == [False, False, False]
    two, report = refit(residual, split, masks, memory_bytes=2 * small - 2)
    assert few[3:] == [True, True, False]
    # Fewer columns, so the answer is another one, but an answer to the same question.
    for name in NAMES[:2]:
        weights = [dict(net.named_parameters())[name] for net in (one, two)]
        assert torch.allclose(*weights, atol=0.5)
        assert not torch.equal(*weights)
    assert all(layer.after < layer.before for layer in report.layers[:2])


def test_a_row_that_would_get_worse_stays(residual: Residual) -> None:
    # Two samples, one of them held out: what fits the one is of no use for the other.
    dense = Layer((8, 64), functional.linear)
    masks = random_masks(dense, ("weight",), 0.5)
    module, report = refit(dense, Quiet(2, 64), masks, ridges=(1e-9,))
    fit = report.layers[0]
    assert fit.refitted < fit.rows
    assert fit.after <= fit.before
    same = (module.weight == masked(dense, masks).weight).all(dim=1)
    assert int(same.sum()) == fit.rows - fit.refitted


def test_the_teacher_must_be_another_network(residual: Residual) -> None:
    masks = random_masks(residual, NAMES, 0.5)
    with pytest.raises(HwpruneError, match="apart"):
        least_squares(residual, residual, Quiet(8, 6, 5, 5), NAMES, masks)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_attention_and_exported_programs_are_seen() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    names = (
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    )
    masks = random_masks(dense, names, 0.5)
    _, report = refit(dense, Quiet(32, 6, 16), masks)
    assert [layer.name for layer in report.layers] == list(names)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(plain, (torch.randn(2, 3, 6, 6),), dynamic_shapes=({0: batch},))
    module = program.module()
    names = ("0.weight", "3.weight")
    masks = random_masks(module, names, 0.5)
    _, report = refit(module, Quiet(32, 3, 6, 6), masks)
    assert [layer.name for layer in report.layers] == list(names)
    assert all(layer.after < layer.before for layer in report.layers)
