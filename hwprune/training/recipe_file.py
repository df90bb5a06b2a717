"""A recipe as a TOML file: how to train and, in a table of its own, along which strategy.

    epochs = 60
    ema_decay = 0.999

    [strategy]
    name = "iterative"
    removed = 0.2

The fields at the top are those of ``Recipe``, the fields of the table the arguments of the strategy
of that name: nothing is listed twice, and both are checked against the types that stand there.
"""

from __future__ import annotations

import difflib
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from hwprune import toml
from hwprune.errors import UsageError
from hwprune.sparsity import STRATEGIES, make, options_of, refuse_removed
from hwprune.training.recipe import Recipe

_FOLDER = Path(__file__).resolve().parent / "recipes"
_SHOWN = 8
# Options are tried out before anything is planned; the density of the plan is not known then.
_SOME_DENSITY = 0.1
_WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """What a recipe file says.

    Attributes:
        recipe: the fields of ``Recipe`` that it sets, ``epochs`` apart.
        epochs: passes over the training data, None where it does not say.
        strategy: the strategy's name, None where it does not say.
        options: keyword arguments of that strategy.
        share_weights: which layers share their weights, as ``--share-weights`` spells it.
    """

    recipe: Mapping[str, Any]
    epochs: int | None
    strategy: str | None
    options: Mapping[str, Any]
    share_weights: tuple[str, ...] = ()


def names() -> list[str]:
    """Return the names of the built-in recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load(given: Mapping[str, Any] | str | os.PathLike[str]) -> RecipeFile:
    """Read a recipe.

    Args:
        given: the name of a built-in recipe; the path of a file: anything that ends in ``.toml`` or
            contains a separator; or what such a file holds.

    Raises:
        UsageError: no such recipe, not readable, not TOML, or not valid; names the file, the field,
            what is there and what is expected.
    """
    path, table = _table(given)
    strategy, options = _strategy_of(table.pop("strategy", None), path)
    shared = _texts(table.pop("share_weights", ()), path)
    changed = _checked(_recipe_model(), table, path, "")
    try:
        Recipe(**changed)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint="see docs/recipes.md") from None
    epochs = changed.pop("epochs", None)
    return RecipeFile(changed, epochs, strategy, options, shared)


def _table(given: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Return what a recipe holds, and what it is called in messages."""
    if isinstance(given, Mapping):
        return "recipe", dict(given)
    text = os.fspath(given)
    path = Path(text) if text.lower().endswith(".toml") or os.sep in text else _built_in(text)
    hint = f"give a TOML file, or one of {', '.join(names())}"
    return str(path), toml.read(path, "a recipe", UsageError, hint=hint)


def _built_in(name: str) -> Path:
    known = names()
    if name in known:
        return _FOLDER / f"{name}.toml"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise UsageError(
        f"{_give(name)} is not a recipe",
        hint=(f"did you mean {close[0]}? " if close else "")
        + f"built in are {', '.join(known)}; the path of a recipe of your own ends in .toml",
    )


def _texts(value: Any, path: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (tuple, list)) or not all(isinstance(text, str) for text in texts):
        raise UsageError(
            f"{path}: share_weights = {_give(value)}: expected a text or a list of texts",
            hint='"auto", or groups such as ["a.weight,b.weight"]',
        )
    return tuple(texts)


def _strategy_of(table: Any, path: str) -> tuple[str | None, dict[str, Any]]:
    if table is None:
        return None, {}
    if not isinstance(table, dict):
        raise UsageError(f"{path}: strategy = {_give(table)}: expected a table, [strategy]")
    name = table.get("name")
    rest = {key: value for key, value in table.items() if key != "name"}
    try:
        refuse_removed(str(name), rest)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None
    if not isinstance(name, str) or name not in STRATEGIES:
        given = "missing" if name is None else f"= {_give(name)}"
        close = difflib.get_close_matches(str(name), STRATEGIES, n=1, cutoff=0.5)
        raise UsageError(
            f"{path}: strategy.name {given}: expected one of {', '.join(STRATEGIES)}",
            hint=f"did you mean {close[0]!r}?" if close else None,
        )
    options = _checked(_strategy_model(name), rest, path, "strategy.")
    try:
        make(name, density=_SOME_DENSITY, **options)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None
    return name, options


@cache
def _recipe_model() -> type[BaseModel]:
    hints = typing.get_type_hints(Recipe)
    return _model("Recipe", {field.name: hints[field.name] for field in fields(Recipe)})


@cache
def _strategy_model(name: str) -> type[BaseModel]:
    hints = typing.get_type_hints(STRATEGIES[name].build)
    return _model(name, {each: hints[each] for each in options_of(name)})


def _model(name: str, types: Mapping[str, Any]) -> type[BaseModel]:
    """Return a model of optional fields; what is absent stays absent."""
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    optional: dict[str, Any] = {each: (kind, None) for each, kind in types.items()}
    return create_model(name, __config__=config, **optional)


def _checked(
    model: type[BaseModel], table: dict[str, Any], path: str, prefix: str
) -> dict[str, Any]:
    """Return the table's fields with their right types.

    Raises:
        UsageError: unknown fields, or values of another type; one line each.
    """
    try:
        return model.model_validate(table).model_dump(exclude_unset=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
    lines = list(dict.fromkeys(f"  {_line(details, model, prefix)}" for details in found))
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"  and {len(lines) - _SHOWN} more"]
    raise UsageError(
        "\n".join([f"{path} is not a valid recipe:", *lines]),
        hint="docs/recipes.md lists the fields",
    )


def _line(details: ErrorDetails, model: type[BaseModel], prefix: str) -> str:
    field = str(details["loc"][0])
    value = details["input"]
    if details["type"] == "extra_forbidden":
        known = list(model.model_fields)
        close = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        advice = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        plain = field if field.replace("_", "").replace("-", "").isalnum() else _give(field)
        return f"{prefix}{plain}: unknown field; {advice}"
    expected = _expected(model.model_fields[field].annotation)
    return f"{prefix}{field} = {_give(value)}: expected {expected}"


def _expected(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    if typing.get_origin(kind) in (typing.Union, UnionType):
        inner = [each for each in typing.get_args(kind) if each is not type(None)]
        return f"{_expected(inner[0])}, or nothing at all"
    return _WORDS.get(kind, str(kind))


def _give(value: Any) -> str:
    """Return a value as the file's author would recognise it, shortened, on one line."""
    text = json.dumps(value, default=str, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."
