"""Masks that cut outputs off: found exactly, mended at the same count, judged only where sure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hwprune.extreme.reachability import Reachability, RepairedMasks
from hwprune.extreme.sharing import share
from hwprune.ir import Masks, Ranking
from hwprune.sparsity import LazyScores, MaskEvent
from hwprune.training.sparse import SparseParameters

SIZES = (6, 9, 9, 9, 5)
EVENT = MaskEvent(0.0, "prune", density=0.5)


class Chain(nn.Module):
    """Layers without a way around, with BN and biases that must not count as ways."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(SIZES))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) for _, b in pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 6) to (n, 5)."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        return x


class Residual(nn.Module):
    """A stem, blocks with a way around, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 2, 8, 8) to (n, 4)."""
        x = F.hardswish(self.stem(x))
        for block in self.blocks:
            x = F.relu6(self.norm(block(x)) + x)
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


def looked(module: nn.Module, shape: tuple[int, ...]) -> tuple[Reachability, SparseParameters]:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    names = [name for name, p in module.named_parameters() if p.ndim > 1]
    sparse = SparseParameters(module, names)
    return Reachability(module, sparse, lambda: (torch.zeros(shape),)), sparse


def drawn(sparse: SparseParameters, share: float, seed: int) -> Masks:
    draw = np.random.default_rng(seed)
    return Masks({name: draw.random(shape) < share for name, shape in sparse.shapes.items()})


def reached_in_chain(masks: Masks) -> np.ndarray:
    alive = np.ones(SIZES[0], bool)
    for name in masks:
        alive = masks[name] @ alive
    return alive


@pytest.mark.parametrize("seed", range(6))
def test_what_is_cut_is_found_exactly_and_mended_at_the_same_count(seed: int) -> None:
    paths, sparse = looked(Chain(), (2, 6))
    masks = drawn(sparse, 0.12, seed)
    reached = reached_in_chain(masks)
    assert paths.cut(masks) == tuple(np.flatnonzero(~reached))
    mended = paths.mend(masks)
    assert reached_in_chain(mended.masks).all()
    assert mended.masks.nonzeros == masks.nonzeros
    assert (mended.mended, mended.left) == (int((~reached).sum()), 0)
    if mended.opened is not None:
        for name in masks:
            new = mended.masks[name] & ~masks[name]
            assert np.array_equal(mended.opened[name], new)


def test_an_empty_layer_and_a_broken_chain_are_mended_with_the_fewest() -> None:
    paths, sparse = looked(Chain(), (2, 6))
    shapes = [(after, before) for before, after in pairwise(SIZES)]
    masks = {f"layers.{n}.weight": np.zeros(shape, bool) for n, shape in enumerate(shapes)}
    for n, mask in enumerate(masks.values()):
        mask[n % 2, :] = True  # each layer writes where the next does not read, but for a few
    masks["layers.3.weight"][:] = False
    masks["layers.3.weight"][:, 7] = True  # nothing writes 7
    whole = Masks(masks)
    assert paths.cut(whole) == (0, 1, 2, 3, 4)
    mended = paths.mend(whole)
    assert mended.opened is not None
    assert reached_in_chain(mended.masks).all()
    assert mended.opened.nonzeros == 1  # layers.2 reaches 7 with a single one
    assert np.count_nonzero(mended.opened["layers.2.weight"][7]) == 1
    # In its place goes the smallest of those that no output needs.
    needed = paths.needed(Masks({n: whole[n] | mended.opened[n] for n in whole}))
    sizes = {n: np.abs(array) for n, array in sparse.values().items()}
    spare = np.concatenate([sizes[n][whole[n] & ~needed[n]] for n in whole])
    closed = np.concatenate([sizes[n][whole[n] & ~mended.masks[n]] for n in whole])
    assert spare.size > 1
    assert closed.tolist() == [spare.min()]


def test_what_can_live_reaches_as_many_as_it_can() -> None:
    paths, _ = looked(Chain(), (2, 6))
    shapes = [(after, before) for before, after in pairwise(SIZES)]
    masks = Masks({f"layers.{n}.weight": np.zeros(shape, bool) for n, shape in enumerate(shapes)})
    for mask in masks.by_name.values():
        mask[1, 2] = True  # one each, and no two meet
    mended = paths.mend(masks)
    assert mended.masks.nonzeros == 4
    assert mended.left == 5 - reached_in_chain(mended.masks).sum()
    paths.after_mask_change(EVENT, mended)
    assert any("have no path" in note for note in paths.notes) == (mended.left > 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_residual_network_has_its_ways_around(seed: int) -> None:
    paths, sparse = looked(Residual(), (2, 2, 8, 8))
    masks = drawn(sparse, 0.2, seed)
    blocks = [masks[f"blocks.{n}.weight"].copy() for n in range(3)]
    for n in range(3):
        masks[f"blocks.{n}.weight"][:] = False
    assert paths.cut(masks) == tuple(
        np.flatnonzero(~(masks["head.weight"] @ masks["stem.weight"].any((1, 2, 3))))
    )
    for n, block in enumerate(blocks):
        masks[f"blocks.{n}.weight"][:] = block
    masks["stem.weight"][:] = False
    assert paths.cut(masks) == (0, 1, 2, 3)
    mended = paths.mend(masks)
    assert paths.cut(mended.masks) == ()
    assert mended.masks.nonzeros == masks.nonzeros


def test_shared_weights_have_their_ways_too() -> None:
    """A scalar in front of a shared tensor lets everything through; a bias does not."""
    torch.manual_seed(0)  # which connections are opened, and so whether they suffice, depends
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    share(module, groups=[["1.weight", "2.weight"]], pretrained=False)
    sparse = SparseParameters(module, ["0.weight", "1.weight"])
    paths = Reachability(module, sparse, lambda: (torch.zeros(1, 4),))
    masks = Masks({name: np.eye(4, dtype=bool) for name in sparse.shapes})
    masks["1.weight"][:] = np.roll(masks["1.weight"], 1, axis=0)
    assert paths.cut(masks) == ()
    masks["0.weight"][2] = False
    assert paths.cut(masks) == (0,)  # 2 goes to 3, and from there to 0
    masks["1.weight"][3] = False
    assert paths.cut(masks) == (0, 3)
    mended = paths.mend(masks)
    assert (mended.mended, mended.left) == (2, 0)
    assert paths.cut(mended.masks) == ()
    assert mended.masks.nonzeros == masks.nonzeros


def test_what_each_of_several_outputs_can_spare_is_closed() -> None:
    """Two inputs feed one unit that three outputs read: halves of each, more than one in all."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4))
    paths, _ = looked(module, (1, 2))
    masks = Masks({"0.weight": np.zeros((2, 2), bool), "1.weight": np.zeros((4, 2), bool)})
    masks["0.weight"][0] = True
    masks["1.weight"][:3, 0] = True
    mended = paths.mend(masks)
    assert (mended.mended, mended.left) == (1, 0)
    assert mended.masks.nonzeros == 5
    assert paths.cut(mended.masks) == ()


class Grouped(nn.Module):
    """A transposed convolution in groups: its columns are shared by outputs of all groups."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 4, 2, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 4, 1, 1) to (n, 4)."""
        return self.up(x).amax((2, 3))


def test_columns_of_grouped_transposed_convolutions_are_no_outputs() -> None:
    paths, _ = looked(Grouped(), (1, 4, 1, 1))
    masks = Masks({"up.weight": np.zeros((4, 2, 2, 2), bool)})
    masks["up.weight"][:2, 0] = True
    masks["up.weight"][2:, 1] = True  # every row and every column has something
    assert paths.cut(masks) == (1, 2)
    mended = paths.mend(masks)
    assert (mended.mended, mended.left) == (2, 0)


class LayerScale(nn.Module):
    """A learnt factor by channel, as ConvNeXt has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gamma = nn.Linear(4, 4), nn.Parameter(torch.full((4,), 1e-6))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 4) to (n, 3)."""
        return self.head(self.gamma * self.layer(x))


def test_a_scale_by_channel_passes_things_on() -> None:
    module = LayerScale()
    paths, sparse = looked(module, (1, 4))
    masks = Masks({name: np.ones(shape, bool) for name, shape in sparse.shapes.items()})
    masks["head.weight"][1] = False
    mended = paths.mend(masks)
    assert (mended.mended, mended.problem) == (1, "")


def test_weights_are_looked_at_once_for_all_that_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each look makes the array anew: one for each connection would take hours."""
    module = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    paths, sparse = looked(module, (1, 40))
    masks = Masks({name: np.zeros((40, 40), bool) for name in sparse.shapes})
    masks["0.weight"][:20] = True  # 800 that lead nowhere
    masks["1.weight"][:, 30] = True
    made: list[str] = []

    def values() -> LazyScores:
        def value(name: str) -> np.ndarray:
            made.append(name)
            return sparse.parameters[name].detach().numpy()

        return LazyScores(sparse.shapes, value)

    monkeypatch.setattr(sparse, "values", values)
    mended = paths.mend(masks)
    assert (mended.mended, mended.left) == (40, 0)
    assert len(made) <= 2 * _looks(mended)


def _looks(mended: RepairedMasks) -> int:
    assert mended.opened is not None
    return mended.opened.nonzeros


def test_bytes_decide_last_and_what_is_needed_goes_last() -> None:
    paths, sparse = looked(Chain(), (2, 6))
    masks = drawn(sparse, 0.2, 3)
    mended = paths.mend(masks)
    assert mended.opened is not None
    needed = paths.needed(mended.masks).nonzeros
    room = max(needed, masks.nonzeros - 3)

    def fill(ranking: Ranking) -> Masks:
        assert len(ranking) == masks.nonzeros
        return ranking.masks(room)

    filled = paths.filled(mended, fill)
    assert filled.masks.nonzeros == room
    assert filled.left == 0
    assert paths.cut(filled.masks) == ()


class Positions(nn.Module):
    """Learnt positions reach the output whatever lives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.where = nn.Linear(4, 3), nn.Parameter(torch.ones(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 4) to (n, 3)."""
        return self.layer(x + self.where)


class Difference(nn.Module):
    """What is positive is taken away again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 4) to (n, 3)."""
        y = self.layer(x)
        return y - y.mean(1, keepdim=True)


class Strict(nn.Module):
    """Takes one type of numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 4) to (n, 3)."""
        return self.layer(x) @ torch.eye(3, dtype=torch.float32)


class Refusing(nn.Module):
    """Fails on numbers that are all alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 4) to (n, 3)."""
        if bool((x == x[0, 0]).all()):
            raise ValueError("these are no pictures")
        return self.layer(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Positions, "judged: an output is not zero where all inputs are"),
        (Difference, "judged: an output may be zero with every weight kept"),
        (Refusing, "judged: these are no pictures"),
    ],
)
def test_networks_that_cannot_be_judged_are_left_alone(
    kind: Callable[[], nn.Module], reason: str
) -> None:
    module = kind()
    sparse = SparseParameters(module, ["layer.weight"])
    paths = Reachability(module, sparse, lambda: (torch.zeros(2, 4),))
    masks = Masks({"layer.weight": np.zeros((3, 4), bool)})
    mended = paths.mend(masks)
    assert mended.masks is masks
    paths.after_mask_change(EVENT, mended)
    assert paths.notes == (f"paths from the input to the outputs could not be {reason}",)
    again = Reachability(module, sparse, lambda: (torch.zeros(2, 4),))
    again.load_state_dict(paths.state_dict())
    assert again.notes == paths.notes
    # Where every row and column has something there is nothing to say.
    full = paths.mend(Masks({"layer.weight": np.ones((3, 4), bool)}))
    assert full.problem == ""


def test_what_cannot_be_mended_is_reported() -> None:
    module = Strict()
    paths = Reachability(
        module, SparseParameters(module, ["layer.weight"]), lambda: (torch.zeros(2, 4),)
    )
    masks = Masks({"layer.weight": np.eye(3, 4, dtype=bool) & (np.arange(3) < 2)[:, None]})
    mended = paths.mend(masks)
    assert mended.masks is masks
    paths.after_mask_change(EVENT, mended)
    first, second = paths.notes
    assert first == "1 outputs have no path of kept connections from the input"
    assert second.startswith("paths from the input to the outputs could not be mended: ")


def test_memory_that_is_short_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    paths, _ = looked(module, (1, 4))

    def short(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(module[0], "forward", short)
    with pytest.raises(RuntimeError, match="allocate memory"):
        paths.mend(Masks({"0.weight": np.zeros((3, 4), bool)}))


def test_depth_does_not_matter() -> None:
    """Forty dense layers in a row: numbers that shrink by a row's length each would be lost."""
    module = nn.Sequential(*(nn.Linear(200, 200, bias=False) for _ in range(40)))
    names = [name for name, _ in module.named_parameters()]
    paths = Reachability(module, SparseParameters(module, names), lambda: (torch.zeros(1, 200),))
    masks = Masks({name: np.ones((200, 200), bool) for name in names})
    masks["39.weight"][5] = False
    masks["20.weight"][:, 1:] = False
    assert paths.cut(masks) == (5,)
    mended = paths.mend(masks)
    assert (mended.mended, mended.left) == (1, 0)
    assert mended.opened is not None
    assert np.count_nonzero(mended.opened["39.weight"][5]) == mended.opened.nonzeros == 1


def test_looking_changes_nothing() -> None:
    module = Chain().train()
    module.norms[1].eval()
    paths, sparse = looked(module, (2, 6))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    paths.mend(drawn(sparse, 0.05, 0))
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert module.training
    assert module.norms[0].training
    assert not module.norms[1].training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
