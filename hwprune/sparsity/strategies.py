"""The strategies by name, and the one place where their options are checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hwprune.errors import UsageError
from hwprune.sparsity.bothways import (
    bidirectional,
    bidirectional_feedback,
    bidirectional_iterative,
    bidirectional_one_shot,
    cyclic,
)
from hwprune.sparsity.course import Strategy, among
from hwprune.sparsity.east import east
from hwprune.sparsity.oneway import cubic, dense, feedback, granet, iterative, one_shot, rigl, set_

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "bidirectional": bidirectional,
    "bidirectional-one-shot": bidirectional_one_shot,
    "bidirectional-iterative": bidirectional_iterative,
    "bidirectional-feedback": bidirectional_feedback,
    "cyclic": cyclic,
    "iterative": iterative,
    "one-shot": one_shot,
    "cubic": cubic,
    "granet": granet,
    "feedback": feedback,
    "rigl": rigl,
    "set": set_,
    "east": east,
    "dense": dense,
}


def make(name: str, *, density: float, **options: Any) -> Strategy:
    """Return the strategy of that name.

    Args:
        name: a key of STRATEGIES.
        density: the density the plan expects at the full budget (max_nonzeros / weights).
        options: the strategy's own keyword arguments.

    Raises:
        UsageError: an unknown name or option, a value of another type, or options that do not go
            together.
    """
    check_options(name, options)
    if name == "dense":
        return dense()
    return STRATEGIES[name](density, **options)


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a strategy with their defaults."""
    parameters = inspect.signature(STRATEGIES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check names and types of a strategy's options.

    Raises:
        UsageError: a strategy or an option that there is not, or a value of another type.
    """
    among("strategy", name, STRATEGIES)
    known = options_of(name)
    for option, value in options.items():
        if option not in known:
            raise UsageError(
                f"the strategy {name!r} has no option {option!r}",
                hint=f"one of {', '.join(known)}" if known else f"{name} has no options",
            )
        wanted = type(known[option])
        fits = isinstance(value, bool) if wanted is bool else (
            not isinstance(value, bool)
            and isinstance(value, (int, float) if wanted is float else wanted)
        )  # fmt: skip
        if not fits:
            raise UsageError(
                f"{name}: {option} is {value!r}",
                hint=f"give a value like its default, {known[option]!r}",
            )
