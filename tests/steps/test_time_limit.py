"""A limit on latency from --require to masks, by given costs: nothing is timed here."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from steps_tools import At, job_of, pack, weights_in
from torch import nn

from hwprune.budget import NetworkTime, TensorTime
from hwprune.compiler import compile_model
from hwprune.errors import HwpruneError, InfeasibleError, UsageError
from hwprune.frontend import load_data
from hwprune.ir import Data
from hwprune.job import resolve
from hwprune.pruner import Pruner
from hwprune.steps import planning
from hwprune.steps.fitting import plan_model
from hwprune.steps.planning import Candidate, Prepared, candidates_of, frontier, time_notes
from hwprune.steps.pruning import prune_and_regrow, strategy_for
from hwprune.steps.time_limit import network_time, time_limit
from hwprune.targets import load
from hwprune.training.finetune import Run
from hwprune.verify.limits import parse_limit

BUDGET = 6_000
# A connection of these takes so many cycles: the first layers have the large maps.
EACH = (6400, 1600, 100, 100)


def given(template: Any, target: Any) -> NetworkTime:
    """Costs that make the first two layers dear."""
    del target
    tensors = {
        tensor.name: TensorTime(
            tensor.weights, 10_000, each, 10_000 + each * tensor.weights / 2, 0.9
        )
        for tensor, each in zip(template.prunable, EACH, strict=True)
    }
    return NetworkTime(tensors, 50_000, 10**9, "given costs")


def limited(network: Prepared, text: str) -> Prepared:
    """The network as ``prepare`` gives it with a limit, at given costs."""
    found, limits = given(network.template, None), [parse_limit(text)]
    time = time_limit(found, limits)
    return dataclasses.replace(network, limits=limits, network=found, time=time)


def planned(network: Prepared, text: str) -> Candidate:
    return candidates_of(limited(network, text), ("int8",), BUDGET)["int8"]


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits")


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "network_time", given)


def test_a_plan_meets_both_limits_and_trades_dear_connections_for_cheap_ones(prepared: At) -> None:
    network = prepared()
    alone = candidates_of(network, ("int8",), BUDGET)["int8"]
    time = given(network.template, None)
    share = time.share(alone.plan)
    found = planned(network, f"latency.p50<={share / 2:.3f}x")
    assert found.plan.used_bytes <= BUDGET
    assert time.share(found.plan) <= share / 2
    before, after = ([layer.nonzeros for layer in p.layers] for p in (alone.plan, found.plan))
    assert after[0] < before[0]
    assert after[1] < before[1]
    assert sum(after[2:]) > sum(before[2:])
    # Bytes are still used up: time was traded, not given away.
    assert found.plan.limited_by == "budget"
    assert found.plan.used_bytes > 0.995 * BUDGET


@pytest.mark.parametrize("text", ["latency.p50<=1.5x", "latency.p90<=0.1x", "size<=4KiB"])
def test_what_does_not_limit_time_leaves_a_plan_as_it_is(prepared: At, text: str) -> None:
    network = prepared()
    alone = candidates_of(network, ("int8",), BUDGET)["int8"]
    found = planned(network, text)
    assert found.time is None
    assert not found.prices
    assert found.plan == alone.plan


def test_a_loose_limit_costs_nothing(prepared: At) -> None:
    network = prepared()
    share = given(network.template, None).share(planned(network, "size<=1MiB").plan)
    loose = planned(network, f"latency.p50<={min(0.99, 1.3 * share):.3f}x")
    assert loose.time is not None
    assert not loose.prices
    assert loose.plan == planned(network, "size<=1MiB").plan


def test_where_time_ends_first_bytes_are_left(prepared: At) -> None:
    network = limited(prepared(), "latency.p50<=0.2x")
    found = candidates_of(network, ("int8",), 18_000)["int8"]
    assert found.plan.limited_by == "time"
    assert found.plan.used_bytes < 18_000
    assert given(network.template, None).share(found.plan) <= 0.2
    # The masks are those that were planned: the order is not turned towards time twice.
    ranking = planning.rank_weights(weights_in(network), prices=found.prices)
    masks = found.masks(ranking)
    planned_counts = {layer.name: layer.nonzeros for layer in found.plan.layers}
    assert {name: int(np.count_nonzero(masks[name])) for name in masks} == planned_counts


def test_milliseconds_are_cycles_of_the_clock_and_the_tightest_counts(prepared: At) -> None:
    network = given(prepared().template, None)
    dense_ms = 1000 * network.dense / network.clock_hz
    limits = [parse_limit(f"latency.p50<={dense_ms / 2}ms"), parse_limit("latency.p50<0.9x")]
    found = time_limit(network, limits)
    assert found is not None
    assert found.most == pytest.approx(0.9 * network.dense / 2)
    assert found.text == limits[0].text


def test_what_no_masks_meet_is_refused_with_what_is_missing(prepared: At) -> None:
    with pytest.raises(InfeasibleError) as caught:
        limited(prepared(), "latency.p50<=0.01x")
    said = f"{caught.value.message} {caught.value.hint}"
    for part in ("latency.p50<=0.01x cannot be met", "4 pruned layers", "not pruned", "given cost"):
        assert part in said
    # What the hint offers is enough.
    offered = str(caught.value.hint).split()[1]
    assert limited(prepared(), offered).time is not None


def test_a_network_of_calls_is_judged_and_not_planned(prepared: At) -> None:
    network = network_time(prepared().template, load("raspberry-pi-5"))
    assert network is not None
    assert time_limit(network, [parse_limit("latency.p50<=0.01x")]) is None


def test_the_model_follows_maps_cores_and_what_has_a_kernel(prepared: At) -> None:
    template = prepared().template
    found = {name: network_time(template, load(name)) for name in ("raspberry-pi-5", "jetson-nano")}
    for network in found.values():
        assert network is not None
        first, second, third, last = network.tensors.values()
        assert first.each > second.each > third.each == last.each > 0  # 64, 16 and 1 positions
        assert all(t.fixed > 0 for t in network.tensors.values())
    assert found["raspberry-pi-5"] != found["jetson-nano"]
    assert network_time(template, load("stm32f746")) is None
    assert network_time(dataclasses.replace(template, inline=True), load("jetson-nano")) is None


@pytest.mark.parametrize(
    ("strategy", "epochs"),
    [("cubic", 2), ("bidirectional", 2), ("one-shot", 1), ("rigl", 2), ("one-shot", 0)],
)
@pytest.mark.slow
def test_every_strategy_ends_within_both(
    prepared: At, data: Data, strategy: str, epochs: int
) -> None:
    network = limited(prepared(), "latency.p50<=0.3x")
    candidate = candidates_of(network, ("int8",), BUDGET)["int8"]
    assert candidate.prices
    options = {"steps": 4} if strategy == "cubic" else {}
    pretrained = weights_in(network)
    job = job_of(
        network, data, strategy=strategy, epochs=epochs, strategy_options=options,
        recipe={"precision": "fp32"},
    )  # fmt: skip
    chosen = strategy_for(job, candidate)
    assert chosen.prices == candidate.prices
    found = prune_and_regrow(job, network, candidate, chosen, lambda status: None)
    assert candidate.time is not None
    assert candidate.time.holds(found.masks)
    packed = pack(network, found.masks, "int8", pretrained, BUDGET, candidate)
    assert candidate.time.holds(packed.masks)
    assert len(packed.written.data) <= BUDGET


@pytest.mark.parametrize("options", [{"allocation": "erk"}, {"exchange": 0.3}])
def test_prices_move_connections_under_other_options(
    prepared: At, data: Data, options: dict[str, Any]
) -> None:
    def first_layer(prices: dict[str, float]) -> int:
        network = prepared()
        candidate = candidates_of(network, ("int8",), BUDGET)["int8"]
        job = job_of(
            network, data, strategy="cubic", epochs=1, recipe={"precision": "fp32"},
            strategy_options={"steps": 3, **options},
        )  # fmt: skip
        strategy = dataclasses.replace(strategy_for(job, candidate), prices=prices)
        masks = prune_and_regrow(job, network, candidate, strategy, lambda status: None).masks
        return int(np.count_nonzero(masks[network.template.names[1]]))

    names = prepared().template.names
    assert first_layer(dict(zip(names, (1.0, 50.0, 1.0, 1.0), strict=True))) < first_layer({})


def test_frontier_and_notes_say_what_a_tenth_more_buys(prepared: At) -> None:
    network = limited(prepared(), "latency.p50<=0.3x")
    found = candidates_of(network, ("int8",), BUDGET)["int8"]
    weights = weights_in(network)
    points = {each.what: each for each in frontier(network, found, weights, parts=(0.5,))}
    now, more_time = points["bytes and time"], points["a tenth more time"]
    assert (now.file_bytes, now.nonzeros) == (found.plan.used_bytes, found.plan.max_nonzeros)
    assert now.time < more_time.time <= points["bytes alone"].time
    assert now.kept < more_time.kept <= points["bytes alone"].kept < 1
    assert points["a tenth more bytes"].file_bytes > now.file_bytes
    (limit,) = (each for each in points if each.startswith("at most"))
    assert points[limit].time <= 0.5 * points["bytes alone"].time
    ranked = found.masks(planning.rank_weights(weights, prices=found.prices))
    (note,) = time_notes(network, found, weights, ranked)
    assert "predicted, not measured" in note
    assert "a tenth more time" in note
    assert "a tenth more bytes" in note
    bare = candidates_of(dataclasses.replace(network, time=None), ("int8",), BUDGET)["int8"]
    (note,) = time_notes(dataclasses.replace(network, time=None), bare, weights, ranked)
    assert "time is not limited" in note


@pytest.mark.usefixtures("costs", "no_memory_measured")
def test_compile_plans_for_it_and_refuses_what_cannot_be(prepared: At, tmp_path: Path) -> None:
    def compiled(folder: str, *limits: str) -> dict[str, Any]:
        job = resolve(
            prepared().model, load("raspberry-pi-5"), None, tmp_path / folder,
            budget_bytes=BUDGET, values="int8", limits=limits,
        )  # fmt: skip
        compile_model(job)
        name = next((tmp_path / folder).glob("*.onnx"))
        assert name.stat().st_size <= BUDGET
        return dict(json.loads((tmp_path / folder / "report.json").read_text()))

    def first(record: dict[str, Any]) -> int:
        return int(record["result"]["layers"][0]["nonzeros"])

    alone, timed = compiled("a"), compiled("b", "latency.p50<=0.3x")
    assert first(timed) < first(alone)
    assert any("planned for latency.p50<=0.3x" in note for note in timed["notes"])
    # The limit is judged by what was measured, whatever was predicted.
    assert timed["verdict"]["limits"][0]["value"] == timed["latency"]["kernels"]["p50_ms"]
    again = compiled("c", "latency.p50<=99x")
    assert [layer["nonzeros"] for layer in again["result"]["layers"]] == [
        layer["nonzeros"] for layer in alone["result"]["layers"]
    ]
    with pytest.raises(InfeasibleError, match="cannot be met"):
        compiled("d", "latency.p50<=0.01x")


@pytest.mark.usefixtures("costs")
def test_plan_shows_the_frontier(prepared: At) -> None:
    model, target = prepared().model, load("raspberry-pi-5")
    found = plan_model(
        model, target, budget_bytes=BUDGET, values="int8", limits=("latency.p50<=0.3x",)
    )
    assert found.times["int8"] <= 0.3
    assert found.frontier[0].what == "bytes alone"
    assert found.core == "given costs"
    assert not plan_model(model, target, budget_bytes=BUDGET, values="int8").frontier
    with pytest.raises(UsageError, match="nothing can be planned"):
        plan_model(model, target, limits=("accuracy>=90%",))
    # Where the dense file fits and is too slow, it is pruned for time.
    large = plan_model(model, target, budget_bytes=500_000, limits=("latency.p50<=0.3x",))
    assert not large.fits_dense
    assert {each.limited_by for each in large.plans.values()} == {"time"}


@pytest.mark.usefixtures("costs")
def test_a_pruner_plans_for_it_and_takes_its_prices_along(prepared: At) -> None:
    def pruner(require: str = "latency.p50<=0.3x") -> tuple[Pruner, nn.Module, Any]:
        net = copy.deepcopy(prepared().model.module).train()
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        made = Pruner(
            net, optimizer, target="raspberry-pi-5", example_input=torch.zeros(2, 1, 8, 8),
            steps=6, budget=BUDGET, values="int8", strategy="one-shot", require=require,
        )  # fmt: skip
        return made, net, optimizer

    made, net, optimizer = pruner()
    net(torch.ones(2, 1, 8, 8)).square().mean().backward()
    optimizer.step()
    time = given(made._prepared.template, None)
    assert time.of(made.masks) <= 0.3 * time.dense
    state = copy.deepcopy(made.state_dict())
    assert state["prices"]
    made.detach()
    other, net2, _ = pruner()
    net2.load_state_dict(net.state_dict())
    state["prices"] = {name: price + 1 for name, price in state["prices"].items()}
    other.load_state_dict(state)  # planned for the weights before, not for those that are here
    assert other._strategy.prices == state["prices"]
    other.detach()
    third, *_ = pruner("latency.p50<=0.4x")
    with pytest.raises(HwpruneError, match="limits was"):
        third.load_state_dict(state)
    third.detach()


@pytest.mark.slow
@pytest.mark.usefixtures("costs", "no_memory_measured")
def test_a_run_that_is_resumed_keeps_its_prices(
    prepared: At, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, limit: str = "latency.p50<=0.3x", **asked: Any) -> bytes:
        job = resolve(
            prepared().model, load("raspberry-pi-5"), data, tmp_path / folder,
            budget_bytes=BUDGET, values="int8", epochs=2, strategy="cubic", device="cpu",
            recipe={"precision": "fp32"}, max_drop="off", checkpoint_seconds=0,
            limits=(limit,), **asked,
        )  # fmt: skip
        compile_model(job)
        return next((tmp_path / folder).glob("*.onnx")).read_bytes()

    whole = run("whole")
    step, left = Run._step, [15]

    def counted(*given: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", counted)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    with pytest.raises(HwpruneError, match="limits on latency"):
        run("cut", "latency.p50<=0.4x", resume=True)
    assert run("cut", resume=True) == whole
