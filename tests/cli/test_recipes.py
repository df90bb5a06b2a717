"""``compile --recipe``: what the file says, what the command line says, and which comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprune.cli.main import main
from hwprune.compiler import DEFAULT_EPOCHS, DEFAULT_STRATEGY, Options

TEXT = 'epochs = 6\ncutout = 2\n[strategy]\nname = "cubic"\nuntil = 0.5\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    return path


def test_the_command_line_comes_before_the_file(recipe: Path) -> None:
    found = Options().following(recipe)
    assert (found.epochs, found.strategy, found.strategy_options) == (6, "cubic", {"until": 0.5})
    assert found.recipe == {"cutout": 2}
    found = Options().following(recipe, epochs=0, strategy="cubic")
    assert (found.epochs, found.strategy_options) == (0, {"until": 0.5})
    found = Options().following(recipe, strategy="one-shot")
    assert (found.epochs, found.strategy, found.strategy_options) == (6, "one-shot", None)
    assert found.recipe == {"cutout": 2}


def test_without_a_file_nothing_changes() -> None:
    assert Options().following(None) == Options()
    assert (Options().epochs, Options().strategy) == (DEFAULT_EPOCHS, DEFAULT_STRATEGY)
    assert Options().following(None, epochs=3, strategy="one-shot") == Options(
        epochs=3, strategy="one-shot"
    )


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
