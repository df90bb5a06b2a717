"""``compile --recipe``: what the file says, what the command line says, and which comes first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hwprune.cli.main import main
from hwprune.errors import UsageError
from hwprune.ir import Model, TensorSpec
from hwprune.job import DEFAULT_EPOCHS, DEFAULT_STRATEGY, Job, resolve
from hwprune.targets import load
from hwprune.training import Recipe

TEXT = 'epochs = 6\ncutout = 2\n[strategy]\nname = "cubic"\nuntil = 0.5\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    return path


def job(**asked: Any) -> Job:
    spec = TensorSpec("x", (None, 4), "float32")
    model = Model("net", "net.pt", "state-dict", nn.Linear(4, 2), None, (spec,))
    return resolve(model, load("raspberry-pi-5"), None, Path("nowhere"), **asked)


def test_the_command_line_comes_before_the_file(recipe: Path) -> None:
    found = job(recipe=recipe)
    assert (found.recipe.epochs, found.strategy) == (6, "cubic")
    assert found.strategy_options == {"until": 0.5}
    assert found.recipe.cutout == 2
    found = job(recipe=recipe, epochs=0, strategy="cubic")
    assert (found.recipe.epochs, found.strategy_options) == (0, {"until": 0.5})
    found = job(recipe=recipe, strategy="one-shot")
    assert (found.recipe.epochs, found.strategy, found.strategy_options) == (6, "one-shot", {})
    assert found.recipe.cutout == 2


def test_without_a_file_all_is_as_asked_or_the_default() -> None:
    assert job().recipe == Recipe(epochs=DEFAULT_EPOCHS)
    assert (job().strategy, job().strategy_options) == (DEFAULT_STRATEGY, {})
    found = job(strategy="one-shot", recipe={"cutout": 4, "epochs": 3})
    assert (found.strategy, found.recipe) == ("one-shot", Recipe(epochs=3, cutout=4))
    assert job(epochs=0).recipe == Recipe(epochs=0)
    assert job(budget_bytes=1000).budget_bytes == 1000
    assert job().budget_bytes == load("raspberry-pi-5").budget_bytes


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"strategy": "cubik"}, "there is no strategy 'cubik'"),
        ({"strategy": ""}, "there is no strategy ''"),
        ({"recipe": ""}, '"" is not a recipe'),
        ({"strategy_options": {"till": 1}}, "has no option 'till'"),
        ({"epochs": -1}, "epochs is -1"),
        ({"epochs": 3}, "--epochs 3 without data"),
        ({"max_drop": "much"}, "'much'"),
        ({"max_drop": -0.1}, "is no drop of a metric"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"budget_bytes": 0}, "the budget is 0 bytes"),
        ({"limits": ["accuracy>=0.5"]}, "accuracy needs data with labels"),
        ({"device": "tpu"}, "there is no device 'tpu'"),
        ({"recipe": {"epoch": 1}}, "epoch: unknown field; did you mean 'epochs'"),
        ({"recipe": {"momentum": "much"}}, 'momentum = "much": expected a number'),
        ({"recipe": {"momentum": 2}}, r"momentum is 2.0, expected \[0, 1\)"),
        ({"share_weights": ["auto"]}, "have to be trained, and there is nothing"),
        ({"values": "int3"}, "cannot decode int3 values"),
    ],
)
def test_what_cannot_be_is_refused_at_the_door(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        job(**asked)


def test_a_wrong_recipe_ends_before_anything_is_read(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text("epoch = 3\n")
    words = ["compile", str(tmp_path / "none.pt"), "--target", "nrf52840", "--recipe", str(recipe)]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert str(recipe) in told
    assert "did you mean 'epochs'?" in told
    assert main([*words[:-1], "rewnd"]) == 2
    assert "did you mean rewind?" in capsys.readouterr().err
    assert main(["compile", "--help"]) == 0
    assert "--recipe NAME|FILE.toml" in capsys.readouterr().out
