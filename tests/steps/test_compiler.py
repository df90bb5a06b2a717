"""The compiler's order and what goes from stage to stage, with stages that do nothing."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from steps_tools import At, job_of, weights_in

from hwprune import compiler
from hwprune.errors import InfeasibleError, UsageError
from hwprune.frontend import load_data
from hwprune.ir import Data, Masks
from hwprune.job import Job, parse_max_drop
from hwprune.sparsity import rank_weights
from hwprune.steps.packing import PackedModel
from hwprune.steps.planning import Prepared, candidates_of
from hwprune.steps.pruning import Pruned, strategy_for
from hwprune.steps.value_type_selection import Choice


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits")


class Stages:
    """Stand-ins for choosing, pruning and packing, which remember what they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: dict[str, Any] = {}
        monkeypatch.setattr(compiler, "choose_value_type", self.choose)
        monkeypatch.setattr(compiler, "prune_and_regrow", self.prune)
        monkeypatch.setattr(compiler, "pack_model", self.pack)

    def choose(self, job: Job, prepared: Prepared, candidates: Any, say: Any) -> Choice:
        self.given["candidates"] = set(candidates)
        return Choice("int8", "values: int8", 1.5)

    def prune(
        self, job: Job, prepared: Prepared, candidate: Any, strategy: Any, say: Any
    ) -> Pruned:
        self.given["strategy"] = strategy.name
        masks = {name: weight != 0 for name, weight in weights_in(prepared).items()}
        for parameter in prepared.model.module.parameters():
            parameter.data.zero_()
        return Pruned("cubic", Masks(masks), epochs=2, cost_epochs=4.0)

    def pack(
        self, module: Any, template: Any, masks: Masks, *, value_type: str, **given: Any
    ) -> PackedModel:
        self.given |= {"kind": value_type, **given}
        written = template.write_dense()
        return PackedModel(written, template, masks, dropped=3, respent=5)


def made(job: Job, prepared: Prepared) -> Any:
    return compiler._pruned(job, prepared, lambda status: None, False)


@pytest.mark.parametrize("trained", [True, False])
def test_packing_gets_the_weights_as_they_were_loaded(
    prepared: At, data: Data, monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    stages, now = Stages(monkeypatch), prepared()
    now = dataclasses.replace(now, model=dataclasses.replace(now.model, trained=trained))
    loaded = weights_in(now)
    found = made(job_of(now, data, budget_bytes=8_000), now)
    assert stages.given["kind"] == "int8"
    assert stages.given["budget_bytes"] == 8_000
    assert stages.given["revive"] == trained  # random weights say nothing of their worth
    for name, weight in stages.given["pretrained"].items():
        assert np.array_equal(weight, loaded[name])
    assert found.pruned.cost_epochs == 4.0 + 1.5  # choosing counts too
    assert found.plan.value_type == "int8"
    notes = " ".join(found.notes)
    assert "values: int8" in notes
    assert "3 kept weights were zero as int8" in notes
    assert "took 5 connections back" in notes


def test_where_nothing_may_be_pruned_only_what_holds_every_weight_is_a_choice(
    prepared: At, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, now = Stages(monkeypatch), prepared()
    made(job_of(now, data, budget_bytes=40_000, strategy="dense"), now)
    assert stages.given["candidates"] == {"int8", "int4", "codebook16"}
    job = job_of(now, data, budget_bytes=8_000, strategy="dense")
    with pytest.raises(InfeasibleError, match="as int8 only"):
        made(job, now)


@pytest.mark.parametrize("asked", [True, False])
def test_whether_sharing_was_asked_for_decides_what_happens_where_all_would_fit(
    prepared: At, data: Data, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    now = prepared()
    seen: list[bool] = []

    def plan(*given: Any, asked: bool) -> Any:
        seen.append(asked)
        raise UsageError("enough")

    monkeypatch.setattr(compiler, "plan_shared", plan)
    job = job_of(now, data, strategy="east", share_weights=("auto",) if asked else ())
    assert job.sharing == ("auto",)
    with pytest.raises(UsageError, match="enough"):
        made(job, now)
    assert seen == [asked]


def test_random_weights_that_all_fit_are_refused(prepared: At, data: Data) -> None:
    now = prepared()
    dense = now.template.write_dense()
    assert compiler._as_it_is(job_of(now, data), now, dense, False).masks is None
    fresh = dataclasses.replace(now, model=dataclasses.replace(now.model, trained=False))
    with pytest.raises(UsageError, match="nothing would be pruned"):
        compiler._as_it_is(job_of(fresh, data), fresh, dense, False)


def test_half_of_the_budget_holds_fewer_connections(prepared: At) -> None:
    now = prepared()
    candidate = candidates_of(now, ("int8",), 8_000)["int8"]
    ranking = rank_weights(weights_in(now), "lamp")
    whole, half = candidate.masks(ranking), candidate.masks(ranking, 0.5)
    assert whole.nonzeros == candidate.plan.max_nonzeros
    sizes = [candidate.cost.encoding(m.positions(), "int8").file_bytes for m in (whole, half)]
    assert 4_000 - 8 <= sizes[1] <= 4_000 < sizes[0] <= 8_000
    # Next to the floor it is the floor, and no error.
    assert candidate.file_bytes(candidate.masks(ranking, 0.01)) <= candidate.plan.floor_bytes


def test_the_strategy_knows_the_density_of_the_plan(prepared: At) -> None:
    now = prepared()
    candidate = candidates_of(now, ("int8",), 8_000)["int8"]
    plan = candidate.plan
    job = job_of(now, strategy="iterative", strategy_options={"removed": 0.5})
    found = strategy_for(job, candidate)
    assert found.density == pytest.approx(plan.max_nonzeros / plan.weights)
    assert found.name == "iterative"
    everything = dataclasses.replace(plan, limited_by="weights")
    assert not strategy_for(job, dataclasses.replace(candidate, plan=everything)).events


def test_what_may_be_lost_is_nothing_a_share_or_anything() -> None:
    given = (None, "auto", "off", "2%", 0.02, 0, "0")
    assert [parse_max_drop(each) for each in given] == [None, None, math.inf, 0.02, 0.02, 0, 0]
    for wrong in (-0.01, "-1%", math.nan):
        with pytest.raises(UsageError):
            parse_max_drop(wrong)


def test_labels_of_whole_numbers_are_classes_whatever_their_size(data: Data) -> None:
    def classes(labels: Any) -> int:
        return compiler._classes(dataclasses.replace(data, test=SimpleNamespace(labels=labels)))

    few = np.array([0, 1, 2, 2])
    assert [classes(few.astype(kind)) for kind in ("uint8", "int16", "int64")] == [3, 3, 3]
    assert [classes(few.astype("float32")), classes(few[:, None]), classes(None)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hwprune compile m.pt -o out", "hwprune compile m.pt -o out --budget 50KiB --data SPEC"),
        ("hwprune compile --budget 1MiB m.pt", "hwprune compile m.pt --budget 50KiB --data SPEC"),
        ("hwprune compile m.pt --budget=1MiB", "hwprune compile m.pt --budget 50KiB --data SPEC"),
        ("hwprune.compile", "budget='50KiB', data=..."),
    ],
)
def test_the_command_to_go_on_can_be_given(given: str, said: str) -> None:
    job = SimpleNamespace(command=tuple(given.split()), data=None)
    assert compiler._with_budget(job, 51_234) == said  # type: ignore[arg-type]
