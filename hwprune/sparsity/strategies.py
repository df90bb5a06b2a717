"""The strategies by name: what each needs, and the one place where options are checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hwprune.errors import UsageError
from hwprune.sparsity.auto import auto
from hwprune.sparsity.east import east
from hwprune.sparsity.gradual import cubic, dense, iterative, rigl
from hwprune.sparsity.mask_schedule import Strategy
from hwprune.sparsity.prune_regrow import (
    bidirectional,
    bidirectional_iterative,
    bidirectional_single,
)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a strategy is, for those that decide by it before its events are known.

    Attributes:
        build: (density, options) -> the strategy; its keyword arguments are the options.
        fixed: those of them that make this strategy of a more general one.
        prunes: False where every weight has to fit.
        shares_weights: later residual blocks use the weights of earlier ones, unless told not to.
        starts_from_fit: without labels, or of an ONNX file, training goes on from least squares.
        adapts: it goes by what is known of the run: ``steps`` and ``convolutional`` are given.
    """

    build: Callable[..., Strategy]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    prunes: bool = True
    shares_weights: bool = False
    starts_from_fit: bool = False
    adapts: bool = False


STRATEGIES: dict[str, Declaration] = {
    "auto": Declaration(auto, adapts=True),
    "cubic": Declaration(cubic),
    "bidirectional": Declaration(bidirectional),
    "bidirectional-single": Declaration(bidirectional_single),
    "bidirectional-one-shot": Declaration(
        bidirectional_iterative,
        {"name": "bidirectional-one-shot", "removed": 1.0, "prune_until": 0.0},
    ),
    "bidirectional-iterative": Declaration(
        bidirectional_iterative, {"name": "bidirectional-iterative"}
    ),
    "iterative": Declaration(iterative, {"name": "iterative"}),
    "one-shot": Declaration(
        iterative,
        {"name": "one-shot", "removed": 1.0, "rewind": False, "shrink": 0.0},
        starts_from_fit=True,
    ),
    "rigl": Declaration(rigl, {"name": "rigl"}),
    "set": Declaration(rigl, {"name": "set", "grow_score": "random"}),
    "east": Declaration(east, shares_weights=True),
    "dense": Declaration(lambda density: dense(), prunes=False),
}

# What is gone, and what to use instead: our own records had it behind, or nothing ever used it.
REMOVED: dict[str, str] = {
    "feedback": "use cubic",
    "bidirectional-feedback": "use cubic or bidirectional",
    "cyclic": "use bidirectional",
    "granet": "use cubic with exchange = 0.3, which does the same",
}
_REMOVED_OPTIONS: dict[str, str] = {
    "per_byte": "leave it out: gain per byte never was ahead of the gain alone",
    **dict.fromkeys(
        ("taylor", "descent", "momentum", "second-order"), "use gradient, magnitude or random"
    ),
    "uniform": "use global or erk",
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
    return STRATEGIES[name].build(density, **STRATEGIES[name].fixed, **options)


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a strategy with their defaults."""
    found = STRATEGIES[name]
    parameters = inspect.signature(found.build).parameters.values()
    given = [p for p in parameters if p.default is not p.empty and p.name not in found.fixed]
    return {p.name: p.default for p in given}


def refuse_removed(name: str, options: Mapping[str, Any]) -> None:
    """Raise UsageError where a strategy, an option or its value is no more, with what to use."""
    if name in REMOVED:
        raise UsageError(f"the strategy {name!r} was removed", hint=REMOVED[name])
    for option, value in options.items():
        for given in (option, value):
            if isinstance(given, str) and given in _REMOVED_OPTIONS:
                what = f"{option!r}" if given == option else f"{option} = {value!r}"
                raise UsageError(f"{name}: {what} was removed", hint=_REMOVED_OPTIONS[given])


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check names and types of a strategy's options.

    Raises:
        UsageError: a strategy or an option that there is not, or a value of another type.
    """
    refuse_removed(name, options)
    if name not in STRATEGIES:
        raise UsageError(
            f"there is no strategy {name!r}", hint=f"use one of {', '.join(STRATEGIES)}"
        )
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
