"""Plans hold every row that a reader still needs, and say what they take."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from random_networks import KINDS, conv, network, random_input, tensor

from hwprune.errors import ExportError, InfeasibleError
from hwprune.firmware import emit, memory_plan, reference
from hwprune.firmware.host import HostModel, checksum
from hwprune.firmware.network import Add, IntegerNetwork


def residual(seed: int = 3) -> IntegerNetwork:
    return KINDS["residual"](np.random.default_rng(seed))


def fitting(made: IntegerNetwork, limit: int) -> memory_plan.MemoryPlan | None:
    try:
        return memory_plan.plan(made, limit)
    except InfeasibleError:
        return None


def overlaps(plan: memory_plan.MemoryPlan) -> list[tuple[str, str]]:
    """Two windows that hold bytes of one another while both are needed."""
    spans: dict[int, list[int]] = {}
    for step, number in enumerate(plan.schedule):
        planned = plan.layers[number]
        for name in (planned.output, *planned.inputs):
            spans.setdefault(plan.placements[name].window, []).append(step)
    for name in plan.network.outputs:
        place = plan.placements[plan.renamed.get(name, name)]
        spans[place.window].append(len(plan.schedule))
    found = []
    for a, b in itertools.combinations(plan.placements.values(), 2):
        apart = a.offset + a.size - a.gap <= b.offset - b.gap
        apart = apart or b.offset + b.size - b.gap <= a.offset - a.gap
        one, two = spans[a.window], spans[b.window]
        later = max(one) < min(two) or max(two) < min(one)
        if a.window != b.window and not apart and not later:
            found.append((a.tensor, b.tensor))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_tensors_that_are_needed_share_a_byte(kind: str) -> None:
    for seed in range(5):
        plan = memory_plan.plan(KINDS[kind](np.random.default_rng(seed)))
        assert overlaps(plan) == []
        assert max(p.offset + p.size - p.gap for p in plan.placements.values()) <= plan.arena_size


def test_a_sum_takes_the_place_of_what_it_adds_to() -> None:
    # Three tensors of 8 x 12 x 10 are there at once without it, and `x` beside two of them.
    plan = memory_plan.plan(residual(), 3_000)
    places = plan.placements
    assert places["d"].window in (places["a"].window, places["c"].window)
    assert set(plan.streamed) == {"c"}


def test_all_that_sums_of_sums_add_has_the_margin_of_their_last_reader(tmp_path: Path) -> None:
    rng, scale = np.random.default_rng(6), 2.0**-5
    x = tensor(rng, "x", (3, 6, 7))
    layers, values = [], [x]
    for name in ("a", "b", "c"):
        layer, made = conv(rng, x, name, 8, kernel=(1, 1), scale=scale, density=1)
        layers, values = [*layers, layer], [*values, made]
    sums = [tensor(rng, name, (8, 6, 7), scale) for name in ("d", "e")]
    layers += [Add("d", ("a", "b"), "d", (64, 64)), Add("e", ("d", "c"), "e", (64, 64))]
    last, y = conv(rng, sums[1], "y", 4, kernel=(1, 5), pads=(0, 2, 0, 2))
    made = network([*layers, last], [*values, *sums, y])
    plan = memory_plan.plan(made)
    assert {plan.placements[name].gap for name in "abcde"} == {2}
    assert plan.placements["e"].window == plan.placements["d"].window
    x = random_input(rng, made)
    emit.write(made, tmp_path, plan)
    expected, (_, found) = reference.run(made, x), HostModel(tmp_path, plan).run(x)
    assert [
        n for i, run in enumerate(found) for n in run if checksum(expected[n][i]) != run[n]
    ] == []


def test_less_ram_streams_more_layers_and_computes_the_same(tmp_path: Path) -> None:
    made = residual()
    x = random_input(np.random.default_rng(4), made)
    expected = reference.run(made, x)
    free = memory_plan.plan(made)
    limits = [free.ram_bytes]
    while plan := fitting(made, limits[-1]):
        assert plan.ram_bytes <= limits[-1]
        assert overlaps(plan) == []
        folder = tmp_path / str(len(limits))
        emit.write(made, folder, plan)
        _, sums = HostModel(folder, plan).run(x)
        for i, of_run in enumerate(sums):
            assert [n for n in of_run if checksum(expected[n][i]) != of_run[n]] == []
        limits.append(plan.ram_bytes - 1)
    assert len(limits) > 3
    assert limits[-1] < 0.7 * free.ram_bytes
    with pytest.raises(InfeasibleError, match="of RAM at"):
        memory_plan.plan(made, limits[-1])


def test_more_ram_never_means_more_instructions() -> None:
    rng = np.random.default_rng(0)
    layers, tensors = [], [tensor(rng, "x", (3, 32, 32))]
    for i, (channels, stride) in enumerate(((8, 2), (8, 1), (16, 2), (16, 1), (32, 2), (32, 1))):
        layer, made = conv(
            rng, tensors[-1], f"l{i}", channels, kernel=(3, 3), pads=(1, 1, 1, 1),
            strides=(stride, stride), density=0.3,
        )  # fmt: skip
        layers.append(layer)
        tensors.append(made)
    chain = network(layers, tensors)
    counts = [p.instructions for n in range(2_250, 6_000, 250) if (p := fitting(chain, n))]
    assert len(counts) > 10
    assert counts == sorted(counts, reverse=True)


def test_a_window_beyond_sixteen_bits_is_refused_by_name() -> None:
    rng = np.random.default_rng(5)
    x = tensor(rng, "x", (256, 9, 100))
    layer, y = conv(rng, x, "wide_layer", 1, kernel=(3, 1), density=0.01)
    with pytest.raises(ExportError, match=r"'wide_layer' spans .* bytes"):
        memory_plan.plan(network([layer], [x, y]))
