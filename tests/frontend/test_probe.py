"""probe: what a network refuses is found, for a large one too, and nothing is left behind in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hwprune.errors import ModelError
from hwprune.frontend import probe as probing
from hwprune.frontend.probe import forward_names, probe
from hwprune.ir import TensorSpec


class Keeps(nn.Module):
    """Counts its real runs, and keeps a table that it computed for the device it ran on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.runs = [0]
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.table = torch.arange(4.0, device=x.device)
        self.runs[0] += not x.is_meta
        return self.fc(x + self.table)


class Makes(nn.Module):
    """Makes a tensor without asking where its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + torch.ones(4))


def spec(*shape: int, dtype: str = "float32") -> tuple[TensorSpec, ...]:
    return (TensorSpec("x", (None, *shape), dtype),)


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_LARGE", 1)


@pytest.mark.usefixtures("everything_is_large")
def test_a_large_network_runs_on_shapes_and_stays_as_it_was() -> None:
    module = Keeps()
    probe(module, spec(4))
    assert module.runs == [0]
    assert module.table is None
    assert not module.fc.weight.is_meta


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (Keeps(), spec(5)),
        (nn.ConvTranspose2d(4, 2, 3), spec(3, 8, 8)),
        (nn.Linear(4, 3), spec(4, dtype="float64")),
        (nn.Conv2d(3, 4, 5), spec(3, 2, 2)),
        (nn.Sequential(nn.Flatten(0), nn.Linear(8, 2), nn.Unflatten(0, (3, 1))), spec(4)),
    ],
)
def test_a_large_network_refuses_what_a_small_one_refuses(
    module: nn.Module, inputs: tuple[TensorSpec, ...]
) -> None:
    with pytest.raises(ModelError, match="does not take"):
        probe(module, inputs)


@pytest.mark.usefixtures("everything_is_large")
def test_a_network_that_shapes_alone_do_not_run_is_run() -> None:
    probe(Makes(), spec(4))


def test_a_small_network_stays_as_it_was() -> None:
    module = Keeps()
    probe(module, spec(4))
    assert module.runs == [0]
    assert module.table is None


def test_a_buffer_that_a_forward_method_counts_in_stays_as_it_was() -> None:
    module = nn.BatchNorm1d(4)  # in training mode it changes its statistics
    before = module.running_mean.clone()
    probe(module, spec(4))
    assert torch.equal(module.running_mean, before)
    assert module.num_batches_tracked == 0


class Rows(nn.Module):
    """Looks up by floats what begins at a number, as recommenders that read one matrix do."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(4, 3), first

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.long() - self.first).sum(1)


def test_a_lookup_by_floats_is_tried_with_whole_numbers() -> None:
    notes = probe(Rows(0).eval(), spec(6))
    assert any("0 was tried" in note for note in notes)
    with pytest.raises(ModelError, match="does not take x:Nx6:float32") as caught:
        probe(Rows(1).eval(), spec(6))
    assert "int64" in (caught.value.hint or "")


class Doubles(nn.Module):
    """Writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mul_(2))


class Several(Doubles):
    """Gives its inputs no names."""

    def forward(self, *args: Tensor, **options: float) -> Tensor:
        return self.fc(args[0] + args[1]) * options.get("scale", 1.0)


def test_a_network_that_writes_to_its_input_is_not_called_random_and_no_longer_does() -> None:
    module, x = Doubles(), torch.ones(2, 4)
    expected = module(x.clone())
    probe(module, spec(4))
    assert torch.equal(module(x), expected)
    assert torch.equal(x, torch.ones(2, 4))


def test_inputs_without_names_are_given_in_their_order() -> None:
    module = Several()
    both = (TensorSpec("a", (None, 4), "float32"), TensorSpec("b", (None, 4), "float32"))
    probe(module, both)
    assert forward_names(module) == ("a", "b")
    one, other = torch.rand(2, 2, 4)
    assert torch.equal(module(one, other), module.fc(one + other))


class Casts(Doubles):
    """Was trained in double precision, and says so in its forward method."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.double())


def test_a_cast_to_what_the_weights_were_is_named() -> None:
    with pytest.raises(ModelError, match="same dtype") as caught:
        probe(Casts(), spec(4))
    assert "hwprune runs a network in float32" in (caught.value.hint or "")
