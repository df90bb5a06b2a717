"""The engine in somebody else's loop: any optimiser, closures, scaled gradients, and a resume."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import training_nets as nets
from torch import nn

from hwprune.sparsity import MaskEvent, Strategy
from hwprune.training.engine import Engine
from hwprune.training.hooks import Hook, Proposal
from hwprune.training.masters import MasterWeights
from hwprune.training.sparse import SparseParameters

STEPS = 12
EVENTS = (
    MaskEvent(0.2, "prune", density=0.4),
    MaskEvent(0.5, "prune", density=0.1),
    MaskEvent(0.5, "regrow", budget_fraction=1.0, score="gradient", initial="pretrained"),
)
STRATEGY = Strategy("x", EVENTS, 0.2)
CHANGES = {2: round(0.4 * nets.WEIGHTS), 6: 700}
VALUES_FROM = 9


class Grid:
    """Rounds to multiples of a step, but never to zero."""

    holds_norms = False

    def __call__(self, weights: Any, *, final: bool = False) -> dict[str, torch.Tensor]:
        return {
            n: (w.abs() / 0.02).round().clamp(min=1) * 0.02 * w.sign() for n, w in weights.items()
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        del state


class Counted(Hook):
    """Notes when it was asked."""

    def __init__(self) -> None:
        self.steps, self.changes = 0, list[int]()

    def after_step(self) -> None:
        self.steps += 1

    def after_mask_change(self, event: MaskEvent, proposal: Proposal) -> None:
        self.changes.append(proposal.masks.nonzeros)


def made(module: nn.Module, **options: Any) -> Engine:
    sparse = SparseParameters(module, nets.NAMES)
    masters = MasterWeights(module, sparse, Grid(), VALUES_FROM)
    arguments: dict[str, Any] = {"steps": STEPS, "seed": 0} | options
    engine = Engine(sparse, masters, STRATEGY, nets.fill_count(700), **arguments)
    engine.hooks["counted"] = Counted()
    return engine


def images(step: int) -> torch.Tensor:
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(step))


def loss_of(module: nn.Module, step: int) -> torch.Tensor:
    return module(images(step)).square().mean()


def holds(engine: Engine) -> None:
    """Check that parameters are what would be shipped now."""
    engine.sparse.check()
    for name, parameter in engine.sparse.parameters.items():
        weight, mask = parameter.detach(), engine.sparse.masks[name]
        if engine.step >= VALUES_FROM:
            assert torch.allclose(weight / 0.02, (weight / 0.02).round(), atol=1e-3)
            assert np.array_equal(weight.numpy() != 0, mask)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_outside_of_a_step_parameters_are_what_would_be_shipped(kind: str) -> None:
    module = nets.small_cnn()
    engine, optimizer = made(module), OPTIMIZERS[kind](module.parameters())
    pointers = [p.data_ptr() for p in module.parameters()]
    engine.attach(optimizer)
    counts = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(module, step).backward()
        before = {n: p.detach().clone() for n, p in engine.sparse.parameters.items()}
        optimizer.step()
        holds(engine)
        counts.append(engine.sparse.masks.nonzeros)
        if step < VALUES_FROM:
            assert any(not torch.equal(before[n], p) for n, p in engine.sparse.parameters.items())
    first, last = sorted(CHANGES)
    # What asks for no gradient of its step is done at the end of the one before.
    kept = [nets.WEIGHTS] * (first - 1) + [CHANGES[first]] * (last - first + 1)
    assert counts == kept + [700] * (STEPS - last)
    assert engine.pending == []
    counted = engine.hooks["counted"]
    assert isinstance(counted, Counted)
    assert (counted.steps, counted.changes) == (STEPS, [CHANGES[2], round(0.1 * nets.WEIGHTS), 700])
    assert [p.data_ptr() for p in module.parameters()] == pointers
    engine.detach()
    optimizer.step()
    assert engine.step == STEPS


def test_progress_that_leaps_over_an_event_keeps_the_averages_that_led_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = nets.small_cnn()
    sparse = SparseParameters(module, nets.NAMES)
    events = (
        MaskEvent(0.5, "prune", density=0.1),
        MaskEvent(0.5, "regrow", budget_fraction=1.0, score="signal-to-noise"),
    )
    engine = Engine(
        sparse, MasterWeights(module, sparse, None, 0), Strategy("x", events, 0.2),
        nets.fill_count(700), steps=STEPS, seed=0,
    )  # fmt: skip
    reached = 0.2
    engine.progress = lambda: reached
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    engine.attach(optimizer)
    seen, real = [], engine.propose
    monkeypatch.setattr(engine, "propose", lambda e, stats: seen.append(stats) or real(e, stats))
    for step in range(5):
        reached = 1.0 if step >= 3 else 0.2  # between two steps, such as at the end of an epoch
        optimizer.zero_grad()
        loss_of(module, step).backward()
        optimizer.step()
    assert sparse.masks.nonzeros == 700
    squares = seen[1].square
    assert set(squares) == set(nets.NAMES)
    # Those of several batches: of a single one there would be ones.
    assert all(0 < float(each.mean()) < 0.5 for each in squares.values())


def test_an_event_clears_the_momentum_of_what_it_prunes() -> None:
    module = nets.small_cnn()
    engine, optimizer = made(module), OPTIMIZERS["adamw"](module.parameters())
    engine.attach(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(module, step).backward()
        optimizer.step()
        for name, parameter in engine.sparse.parameters.items():
            state = optimizer.state[parameter]
            pruned = torch.from_numpy(~engine.sparse.masks[name])
            assert pruned.any() == (step >= 1)
            assert not state["exp_avg"][pruned].any()
            assert not state["exp_avg_sq"][pruned].any()


def test_gradients_are_summed_over_the_last_steps_whatever_their_scale() -> None:
    seen = []
    for scale in (1.0, 8.0):
        module = nets.small_cnn()
        engine = made(module, gradient_batches=3)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0, fused=True)
        optimizer.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
        engine.attach(optimizer)
        sums: dict[str, torch.Tensor] = {}
        real = engine.propose
        found: dict[str, torch.Tensor] = {}

        def propose(event: MaskEvent, stats: Any, found: Any = found, real: Any = real) -> Proposal:
            found.update({n: t.clone() for n, t in stats.gradient.items()})
            return real(event, stats)  # type: ignore[no-any-return]

        engine.propose = propose  # type: ignore[method-assign]
        for step in range(7):
            optimizer.zero_grad()
            (scale * loss_of(module, step)).backward()
            if step > 6 - 3:
                for name, parameter in engine.sparse.parameters.items():
                    assert parameter.grad is not None
                    sums[name] = sums.get(name, 0) + parameter.grad / scale
            optimizer.step()
        assert found.keys() == sums.keys()
        for name, total in sums.items():
            assert torch.allclose(found[name], total, atol=1e-7)
        seen.append(found)
        assert engine.state_dict()["sums"] == {}  # nothing is held without need
    assert all(torch.allclose(seen[0][name], seen[1][name], atol=1e-6) for name in seen[0])


def test_a_step_with_infinite_gradients_is_none() -> None:
    module = nets.small_cnn()
    engine = made(module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, fused=True)
    engine.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    skipped = 0
    for step in range(STEPS + 3):
        optimizer.zero_grad()
        scaler.scale(loss_of(module, step)).backward()
        if step in (3, 8, 11):
            module[0].weight.grad[0, 0, 0, 0] = float("inf")  # type: ignore[index]
        before = {n: p.detach().clone() for n, p in module.named_parameters()}
        scaler.step(optimizer)
        scaler.update()
        if step in (3, 8, 11):
            skipped += 1
            assert all(torch.equal(before[n], p) for n, p in module.named_parameters())
        assert engine.step == step + 1 - skipped
        holds(engine)
    assert engine.pending == []
    assert engine.sparse.masks.nonzeros == 700


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_makes_the_same_weights(keyword: bool) -> None:
    states = []
    for closed in (False, True):
        module = nets.small_cnn()
        engine, optimizer = made(module), OPTIMIZERS["sgd"](module.parameters())
        engine.attach(optimizer)
        for step in range(STEPS):

            def closure(step: int = step, module: Any = module, optimizer: Any = optimizer) -> Any:
                optimizer.zero_grad()
                loss = loss_of(module, step)
                loss.backward()
                return loss

            if not closed:
                closure()
                optimizer.step()
            else:
                loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
                assert loss is not None
            holds(engine)
        states.append(module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_two_optimisers_share_the_parameters() -> None:
    module = nets.small_cnn()
    engine = made(module)
    first, rest = [module[4].weight], [p for p in module.parameters() if p is not module[4].weight]
    optimizers = [OPTIMIZERS["sgd"](rest), OPTIMIZERS["adamw"](first)]
    for optimizer in optimizers:
        engine.attach(optimizer)
    for step in range(STEPS):
        module.zero_grad()
        loss_of(module, step).backward()
        for optimizer in optimizers:
            optimizer.step()
        assert engine.step == step + 1
        holds(engine)
    assert engine.sparse.masks.nonzeros == 700


@pytest.mark.parametrize("after", [4, 10])
def test_a_resume_in_the_middle_gives_the_same_bits(after: int) -> None:
    """Between events, with gradients summed in part, and in the value phase."""

    def trained(steps: range, saved: Any = None) -> tuple[nn.Module, Any]:
        module = nets.small_cnn()
        engine, optimizer = (
            made(module, gradient_batches=3),
            OPTIMIZERS["adamw"](module.parameters()),
        )
        engine.attach(optimizer)
        if saved is not None:
            module.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            engine.load_state_dict(saved[2])
        for step in steps:
            optimizer.zero_grad()
            loss_of(module, step).backward()
            optimizer.step()
        state = (module.state_dict(), optimizer.state_dict(), engine.state_dict())
        return module, copy.deepcopy(state)

    whole, _ = trained(range(STEPS))
    _, saved = trained(range(after))
    again, _ = trained(range(after, STEPS), saved)
    for (name, expected), (_, found) in zip(
        whole.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(expected, found), name
