"""The ONNX file's budget for an image of a given size."""

from __future__ import annotations

import pytest

from hwprune.errors import InfeasibleError
from hwprune.steps.firmware import _largest_budget, _NoFileError

# An image: the runtime's code and what the file holds, some of it in other forms.
CODE, FLOOR, WEIGHTS_THAT_FIT_THE_RAM = 6_000, 3_000, 40_000


def left_at(budget: int, goal: int) -> int:
    if budget < FLOOR:
        raise _NoFileError(f"the file takes {FLOOR}")
    if budget > WEIGHTS_THAT_FIT_THE_RAM:
        raise InfeasibleError("too many for the RAM")
    return goal - (CODE + budget * 9 // 10)


@pytest.mark.parametrize("goal", [9_000, 10_000, 16_384, 32_768, 41_000])
def test_the_largest_that_fits_is_found(goal: int) -> None:
    found = _largest_budget(lambda budget: left_at(budget, goal), goal, goal)
    assert 0 <= left_at(found, goal) <= goal // 50


def test_the_ram_is_kept() -> None:
    goal = 200_000
    found = _largest_budget(lambda budget: left_at(budget, goal), goal, goal)
    assert 0.8 * WEIGHTS_THAT_FIT_THE_RAM < found <= WEIGHTS_THAT_FIT_THE_RAM


def test_an_image_that_no_pruning_makes_fit() -> None:
    goal = 8_192
    with pytest.raises(InfeasibleError, match="of flash with hardly any weights") as caught:
        _largest_budget(lambda budget: left_at(budget, goal), goal, goal)
    assert "8,192 B" in caught.value.message
    assert "--no-firmware" in (caught.value.hint or "")
    least = int((caught.value.hint or "").split("--budget ")[1].split()[0])
    assert least >= CODE + FLOOR * 9 // 10  # what is named does fit
    _largest_budget(lambda budget: left_at(budget, least), least, least)


def test_what_stands_in_the_way_from_the_start_is_said_as_it_is() -> None:
    with pytest.raises(InfeasibleError, match="the file takes 3000"):
        _largest_budget(lambda budget: left_at(budget, 1_000), 1_000, 1_000)
